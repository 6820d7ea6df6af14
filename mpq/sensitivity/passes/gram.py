"""Sums of products of columns with themselves."""

from typing import final

import torch
from torch import Tensor

_BLOCK = 96
"""Rows below which a product is too small to be fast."""
_MOST_BLOCKS = 8


@final
class Gram:
    """``sum_p x_p x_p^T`` for each of ``G`` groups, added up piece by piece in float32.

    Args:
        groups: ``G``.
        inputs: Length of a column, ``K``.
        device: Where columns are.
    """

    def __init__(self, groups: int, inputs: int, device: torch.device) -> None:
        # The part above the diagonal's blocks stays 0: it is that below, and costs nothing.
        self._sum = torch.zeros(groups, inputs, inputs, dtype=torch.float32, device=device)
        blocks = min(_MOST_BLOCKS, max(1, inputs // _BLOCK))
        self._ends = [inputs * (i + 1) // blocks for i in range(blocks)]

    def add(self, columns: Tensor, times: int = 1) -> None:
        """Adds ``p`` columns, ``[G, K, p]``, so many times."""
        start = 0
        for end in self._ends:
            rows, others = columns[:, start:end], columns[:, :end].transpose(1, 2)
            self._sum[:, start:end, :end].baddbmm_(rows, others, alpha=times)
            start = end

    def matrix(self) -> Tensor:
        """``[G, K, K]``, symmetric to the last bit."""
        return self._sum.tril() + self._sum.tril(-1).transpose(1, 2)
