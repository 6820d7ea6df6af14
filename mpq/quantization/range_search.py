"""The search for the best among shrunken copies of rows' full ranges."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Final, final

from mpq.quantization.number_format import NumberFormat

if TYPE_CHECKING:
    from torch import Tensor

    from mpq.quantization.grid import Grid

NUMBERS_AT_ONCE: Final = 1 << 18
"""That are rounded at once (1 MiB in float32), which stays in a processor's cache."""
LONG_ROW: Final = 1 << 17
"""Numbers of a row above which it is rounded piece by piece: a whole weight with one scale."""
SMALLEST: Final = 0.2
"""Share of the full range that the smallest one which is tried has."""


@final
@dataclass(frozen=True, eq=False)
class RangeSearch:
    """Rows of numbers, and what a range of each is judged by: the sum of its errors' powers.

    Args:
        rows: ``[O, K]``, floating point; of a large weight some at a time, as all ranges are tried
            on all of them.
        number: A format that needs a scale.
        symmetric: Whether zero is the middle.
        norm: Power of the errors.
        weights: ``[O, K]`` float32, what each error counts; ``None``: all the same.
    """

    rows: "Tensor"
    number: NumberFormat
    symmetric: bool
    norm: float = 2.0
    weights: "Tensor | None" = None

    def ends(self, num_shrinks: int, num_halvings: int) -> "tuple[Tensor, Tensor]":
        """The best range of each row: ``[O]`` low and ``[O]`` high, float32.

        Args:
            num_shrinks: Ranges that are tried, from the full one down to a fifth of it, in equal
                steps; halves where scales are powers of two.
            num_halvings: How often both neighbours of each row's best are tried then, half as far
                away each time.
        """
        import torch

        if not len(self.rows):
            return self._full
        shares = torch.linspace(1.0, SMALLEST, num_shrinks, dtype=torch.float32)
        if self.number.block_scale == "e8m0":
            # Scales are powers of two: all that lie within these ranges, each of them once.
            shares, num_halvings = (
                torch.tensor([1.0, 0.5, 0.25][:num_shrinks], dtype=torch.float32),
                0,
            )
        shares = shares.to(self.rows.device)[:, None].expand(-1, len(self.rows))
        share, error = self._best(shares)
        step = (1.0 - SMALLEST) / max(num_shrinks - 1, 1)
        for _ in range(num_halvings if num_shrinks > 1 else 0):
            step /= 2
            near = torch.stack([share + step, share - step]).clamp(SMALLEST, 1.0)
            closer, remaining = self._best(near)
            share = torch.where(remaining < error, closer, share)
            error = torch.minimum(remaining, error)
        low, high = self._full
        return low * share, high * share

    @cached_property
    def _full(self) -> "tuple[Tensor, Tensor]":
        return self.rows.amin(dim=1).float(), self.rows.amax(dim=1).float()

    @cached_property
    def _numbers(self) -> "Tensor":
        """The rows, widened once and not for every range, where a copy of them is small."""
        return self.rows if self.rows.shape[1] > LONG_ROW else self.rows.float()

    @cached_property
    def _work(self) -> "Tensor":
        """Where rows are rounded: new memory for every range would take longer than rounding."""
        import torch

        shape = len(self.rows), min(self.rows.shape[1], LONG_ROW)
        return torch.empty(shape, device=self.rows.device, dtype=torch.float32)

    def _best(self, shares: "Tensor") -> "tuple[Tensor, Tensor]":
        """Of shares ``[F, O]`` of the full range each row's best, and its error, both ``[O]``."""
        import torch

        from mpq.quantization.grid import make_grid

        # By grids as they are made afterwards, so that the rounding of zero points counts.
        low, high = ((shares * end).flatten() for end in self._full)
        grids = make_grid(self.number, self.symmetric, low, high)  # [F O]
        # As many at once as fit: all would be copies of a large weight.
        step = max(1, NUMBERS_AT_ONCE // max(self.rows.numel(), 1)) * len(self.rows)
        parts = zip(grids.scale.split(step), grids.zero_point.split(step), strict=True)
        some = (replace(grids, scale=scale, zero_point=point) for scale, point in parts)
        # The first of equals, which is the widest; an error that is no number is never the least.
        errors = torch.cat(list(map(self._errors, some)))
        error, best = errors.nan_to_num_(nan=torch.inf, posinf=torch.inf).min(dim=0)
        return shares.gather(0, best[None])[0], error

    def _errors(self, grid: "Grid") -> "Tensor":
        """``[F, O]`` of the rows on ``F`` grids each, one behind the other in ``grid``."""
        copies = len(grid.scale) // len(self.rows)
        found = []
        for start in range(0, self.rows.shape[1], LONG_ROW):
            piece = slice(start, start + LONG_ROW)
            part = self._numbers[:, piece].float()
            part = part.repeat(copies, 1) if copies > 1 else part  # [F O, k]
            work = self._work if self._work.shape == part.shape else None
            errors = grid.round(part, work).sub_(part)
            # A square is quicker, and has the same bits on every machine.
            powers = errors.square_() if self.norm == 2 else errors.abs_().pow_(self.norm)
            if self.weights is not None:
                powers = powers.view(copies, len(self.rows), -1).mul_(self.weights[:, piece])
            found.append(powers.sum(dim=-1).view(copies, -1))
        return sum(found[1:], start=found[0])
