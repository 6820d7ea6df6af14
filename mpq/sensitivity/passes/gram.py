"""Sums of products of columns with themselves, or with others."""

from typing import final

import torch
from torch import Tensor

from mpq._support.ranks import Ranks
from mpq.rounding.diagonal_blocks import blocks

_TILE = 96
"""Rows below which a product is too small to be fast."""
_MOST_TILES = 8


@final
class Gram:
    """``sum_p x_p x_p^T`` for each of ``G`` groups, added up piece by piece in float32.

    Args:
        shape: ``[G, K, k]`` of the sum: groups, length of a column, inputs of a block along the
            diagonal (``mpq.rounding.diagonal_blocks``).
        device: Where columns are.
    """

    def __init__(self, shape: tuple[int, int, int], device: torch.device) -> None:
        # What is above the diagonal's tiles is not added up: it is that below.
        self._sum = torch.zeros(shape, dtype=torch.float32, device=device)

    def add(self, columns: Tensor, times: int = 1) -> None:
        """Adds ``p`` columns, ``[G, K, p]``, so many times."""
        for part, block in blocks(self._sum):
            some, start = columns[:, part], 0
            for end in _ends(block.shape[-1]):
                rows, others = some[:, start:end], some[:, :end].transpose(1, 2)
                block[:, start:end, :end].baddbmm_(rows, others, alpha=times)
                start = end

    def share(self, ranks: Ranks) -> None:
        """Adds the sums of other processes."""
        ranks.add(self._sum)

    def matrix(self) -> Tensor:
        """``[G, K, k]``, each block symmetric to the last bit; the very memory of the sum."""
        for _, block in blocks(self._sum):
            start = 0
            for end in _ends(block.shape[-1]):
                tile = block[:, start:end, start:end]
                tile.copy_(tile.tril() + tile.tril(-1).mT)
                block[:, start:end, end:] = block[:, end:, start:end].mT
                start = end
        return self._sum


def _ends(inputs: int) -> list[int]:
    """Where the tiles of a block end whose products are made one by one."""
    count = min(_MOST_TILES, max(1, inputs // _TILE))
    return [inputs * (i + 1) // count for i in range(count)]


def add_crossed(into: Tensor, columns: Tensor, others: Tensor, times: int) -> None:
    """Adds ``sum_p x_p y_p^T`` to ``[G, K, k]``, in place.

    Args:
        into: Blocks along the diagonal.
        columns: ``[G, K, p]``, the ``x``.
        others: ``[G, K, p]``, the ``y``.
        times: How often.
    """
    for part, block in blocks(into):
        block.baddbmm_(columns[:, part], others[:, part].mT, alpha=times)
