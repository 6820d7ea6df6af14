"""The search for the best among shrunken copies of rows' full ranges."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from mpq.quantization.number_format import NumberFormat

if TYPE_CHECKING:
    from torch import Tensor

    from mpq.quantization.grid import Grid

NUMBERS_AT_ONCE: Final = 1 << 18
"""That are rounded at once (1 MiB in float32), which stays in a processor's cache."""
LONG_ROW: Final = 1 << 17
"""Numbers of a row above which it is rounded piece by piece: a whole weight with one scale."""


def shrunken(
    rows: "Tensor",
    number: NumberFormat,
    symmetric: bool,
    num_shrinks: int,
    norm: float = 2.0,
    weights: "Tensor | None" = None,
) -> "tuple[Tensor, Tensor]":
    """The range with the least error of each row: ``[O]`` low and ``[O]`` high, float32.

    Args:
        rows: ``[O, K]``, floating point; of a large weight some at a time (``in_tiles``), as all
            ranges are tried on all of them.
        number: A format that needs a scale.
        symmetric: Whether zero is the middle.
        num_shrinks: Ranges that are tried, from the full one down to a fifth of it, in equal steps;
            halves where scales are powers of two.
        norm: Power of the errors that are summed.
        weights: ``[O, K]`` float32, what each error counts; ``None``: all the same.
    """
    import torch

    from mpq.quantization.grid import make_grid

    low, high = rows.amin(dim=1).float(), rows.amax(dim=1).float()
    if not len(rows):
        return low, high
    # Once, and not for every range; of a long row, which is no tile, a copy would be large.
    rows = rows if rows.shape[1] > LONG_ROW else rows.float()
    factors = torch.linspace(1.0, 0.2, num_shrinks).to(rows.device)
    if number.block_scale == "e8m0":
        # Scales are powers of two: all that lie within these ranges, each of them once.
        factors = torch.tensor([1.0, 0.5, 0.25][:num_shrinks], device=rows.device)
    # By grids as they are made afterwards, so that the rounding of zero points counts.
    lows, highs = (torch.outer(factors, end).flatten() for end in (low, high))
    grids = make_grid(number, symmetric, lows, highs)  # [F O]
    errors = torch.cat([_errors(rows, grid, norm, weights) for grid in _some(grids, rows)])
    # The first of equals, which is the widest; an error that is no number is never the least.
    best = errors.nan_to_num_(nan=torch.inf, posinf=torch.inf).argmin(dim=0)
    return low * factors[best], high * factors[best]


def _some(grids: "Grid", rows: "Tensor") -> "Iterator[Grid]":
    """As many of the grids at once as fit: all would be copies of a large weight."""
    step = max(1, NUMBERS_AT_ONCE // max(rows.numel(), 1)) * len(rows)
    parts = (grids.scale.split(step), grids.zero_point.split(step))
    for scale, zero_point in zip(*parts, strict=True):
        yield replace(grids, scale=scale, zero_point=zero_point)


def _errors(rows: "Tensor", grid: "Grid", norm: float, weights: "Tensor | None") -> "Tensor":
    """``[F, O]`` of rows ``[O, K]`` on ``F`` grids each, one behind the other in ``grid``."""
    copies = len(grid.scale) // len(rows)
    found = []
    for start in range(0, rows.shape[1], LONG_ROW):
        part = rows[:, start : start + LONG_ROW].float()
        part = part.repeat(copies, 1) if copies > 1 else part  # [F O, k]
        errors = grid.round(part).sub_(part)
        # A square is quicker, and has the same bits on every machine.
        powers = errors.square_() if norm == 2 else errors.abs_().pow_(norm)
        if weights is not None:
            of_part = weights[:, start : start + LONG_ROW]
            powers = powers.view(copies, *of_part.shape).mul_(of_part)
        found.append(powers.sum(dim=-1).view(copies, -1))
    return sum(found[1:], start=found[0])
