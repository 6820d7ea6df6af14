"""What the numbers of a weight are added up over: output channels, blocks of inputs, or groups."""

from dataclasses import dataclass
from math import ceil
from typing import Final, final

import torch
from torch import Tensor
from torch.nn import functional as F

from mpq.quantization.channel_bits import GROUPS, INPUTS, OUTPUTS


@final
@dataclass(frozen=True)
class Units:
    """Parts of a weight ``[O, K]`` that are priced each by itself.

    Args:
        axis: ``outputs``: its ``O`` channels. ``inputs``: blocks of its ``K`` inputs, of all
            channels together. ``groups``: blocks of inputs of each channel by itself, row by row.
        size: Consecutive inputs in a block.
    """

    axis: str = OUTPUTS
    size: int = 1

    def count(self, num_rows: int, num_inputs: int) -> int:
        """``U`` of a weight of this shape."""
        if self.axis == OUTPUTS:
            return num_rows
        return ceil(num_inputs / self.size) * (num_rows if self.axis == GROUPS else 1)

    def sums(self, cells: Tensor) -> Tensor:
        """``[..., u]`` of ``[..., r, K]``, some channels of a weight."""
        if self.axis == OUTPUTS:
            return cells.sum(dim=-1)
        if self.axis == INPUTS:
            return self.blocks(cells.sum(dim=-2)).sum(dim=-1)
        return self.blocks(cells).sum(dim=-1).flatten(-2)

    def products(self, gradients: Tensor, changes: Tensor) -> Tensor:
        """``[S, u, F]`` sums of products of ``[S, r, K]`` and ``[F, r, K]``."""
        if self.axis == OUTPUTS:
            return torch.einsum("sok,fok->sof", gradients, changes)
        if self.axis == INPUTS:
            found = torch.einsum("sok,fok->sfk", gradients, changes)
            return self.blocks(found).sum(dim=-1).transpose(1, 2)
        pair = self.blocks(gradients), self.blocks(changes)
        return torch.einsum("sogk,fogk->sogf", *pair).flatten(1, 2)

    def add(self, found: Tensor, some: slice | Tensor, sums: Tensor, num_inputs: int) -> None:
        """Adds ``[u, F]`` of some channels to ``[U, F]`` of all, in place."""
        index = self.index(some, num_inputs)
        if isinstance(index, slice):
            found[index] += sums
        else:
            found.index_add_(0, index, sums)

    def index(self, some: slice | Tensor, num_inputs: int) -> slice | Tensor:
        """Which units some channels (a slice with both ends) have a share in."""
        if self.axis == OUTPUTS:
            return some
        if self.axis == INPUTS:
            return slice(None)
        count = ceil(num_inputs / self.size)
        if isinstance(some, slice):
            return slice(some.start * count, some.stop * count)
        return (some[:, None] * count + torch.arange(count, device=some.device)).flatten()

    def blocks(self, cells: Tensor) -> Tensor:
        """``[..., G, size]`` of ``[..., K]``, the last one filled up with zeros."""
        missing = -cells.shape[-1] % self.size
        filled = F.pad(cells, (0, missing)) if missing else cells
        return filled.reshape(*filled.shape[:-1], -1, self.size)


OF_OUTPUTS: Final = Units()
"""Output channels."""
