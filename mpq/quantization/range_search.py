"""The search for the best among shrunken copies of rows' full ranges."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from mpq.quantization.number_format import NumberFormat

if TYPE_CHECKING:
    from torch import Tensor

NUMBERS_AT_ONCE: Final = 1 << 17
"""That are rounded at once, which stays in a processor's cache."""


def shrunken(
    rows: "Tensor",
    number: NumberFormat,
    symmetric: bool,
    num_shrinks: int,
    summed: "Callable[[Tensor], Tensor]",
) -> "tuple[Tensor, Tensor]":
    """The range with the least error of each row: ``[O]`` low and ``[O]`` high.

    Args:
        rows: ``[O, K]`` float32.
        number: A format that needs a scale.
        symmetric: Whether zero is the middle.
        num_shrinks: Ranges that are tried, from the full one down to a fifth of it, in equal steps;
            halves where scales are powers of two.
        summed: From the errors of some copies of the rows, ``[F O, K]``, to one number each.
    """
    import torch

    from mpq.quantization.grid import make_grid

    low, high = rows.amin(dim=1), rows.amax(dim=1)
    best, shrink = torch.full_like(low, torch.inf), torch.ones_like(low)
    factors = torch.linspace(1.0, 0.2, num_shrinks).to(rows.device)
    if number.block_scale == "e8m0":
        # Scales are powers of two: all that lie within these ranges, each of them once.
        factors = torch.tensor([1.0, 0.5, 0.25][:num_shrinks], device=rows.device)
    # As many ranges at once as fit: all would be ``num_shrinks`` copies of a large weight.
    for some in factors.split(max(1, NUMBERS_AT_ONCE // max(rows.numel(), 1))):
        lows, highs = (torch.outer(some, end).flatten() for end in (low, high))
        grid = make_grid(number, symmetric, lows, highs)
        # By a grid as it is made afterwards, so that the rounding of its zero point counts.
        copies = rows.repeat(len(some), 1) if len(some) > 1 else rows  # [F O, K]
        errors = summed(grid.round(copies).sub_(copies)).view(len(some), -1)  # [F, O]
        for factor, error in zip(some, errors, strict=True):
            better = error < best  # the widest of equals, as it was tried first
            best = torch.where(better, error, best)
            shrink = torch.where(better, factor, shrink)
    return low * shrink, high * shrink
