"""Gradients through rounding, whose own derivative is 0 almost everywhere."""

from typing import Any

import torch
from torch import Tensor


def straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    """The second argument, with the first one's gradient (Bengio et al. 2013, arXiv:1308.3432).

    Args:
        x: What was rounded.
        rounded: What became of it, of the same shape; no gradient goes there.
    """
    found: Tensor = _StraightThrough.apply(x, rounded)  # type: ignore[no-untyped-call]
    return found


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, __: Tensor, rounded: Tensor) -> Tensor:
        return rounded.detach()

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
