"""The best multipliers of very many rows: most rows are read a few times, few are looked at."""

from dataclasses import dataclass
from itertools import product
from typing import Self, final

import numpy as np

from mpq._support.arrays import Array, Columns
from mpq.problem.pairwise_costs import PairwiseCosts
from mpq.problem.tolerances import LAST_DIGITS
from mpq.solvers.additive.multipliers import maximised_within, nearly_maximised
from mpq.solvers.additive.presolve import Reduced
from mpq.solvers.additive.rows import Rows, Totals

_SAMPLE = 40_000
"""Rows for which the best multipliers are found at once."""
_DEVIATIONS = 8.0
"""Rows that a sample must leave open, in units of the square root of its own number of rows."""
_NARROWEST = 1e-9
"""Of a box, as a share of the multipliers; well below what tells equal rows apart."""
_WIDER = 1.5
"""The next box that is tried, in widths of the last one."""
_FARTHEST = 4.0
"""Widths of a box to where its middle may move."""
_MAX_BOXES = 8
_MOST = 0.9
"""Share of the rows that a box may leave open: otherwise it is of no use."""
_LEAST_SHARE = 0.01
"""Of the largest multiplier: the scale of those that are nearly 0, in shares of what is free."""
_SPLIT = 1e-7
"""Share of its losses by which a row may be told from its equals."""
_GOLDEN = 0.6180339887498949


def told_apart(losses: Array, index: Columns) -> Array:
    """Losses ``[N, B]`` by which rows ``index [N]`` that are equal change one after the other.

    Channels of a layer often cost the same; where they also lose the same, all of them change at
    one price, and no multipliers lie between. Multiples of the golden ratio are spread evenly, in
    any stretch of rows.
    """
    return np.asarray(losses * (1.0 + _SPLIT * (index * _GOLDEN % 1.0))[:, None])


def best_prices(
    rows: Rows, index: Columns, room: Array, totals: Totals, reach: "Box | None" = None
) -> Array | None:
    r"""``[R]`` prices of the resources at which the Lagrangian bound is nearly largest.

    A sample has nearly the multipliers of all rows. A column that a row takes at every corner of
    a box of prices around these is taken everywhere in the box, because the row's least is concave
    in the prices and a column's line is not: so the row is decided, and the box's optimum is that
    of the rows that are left, which are a few in a hundred. For these the same is done again,
    until they are few. If their optimum is inside the box, it is the optimum of all rows, because
    the bound is concave. Prune and search, as Dyer (1984, doi:10.1007/BF02591729) and Zemel (1984,
    doi:10.1016/0020-0190(84)90014-0) have it for one budget in linear time; departs from them in
    that a sample says where to look, for any number of budgets.

    Args:
        rows: Tables that ``index`` counts in.
        index: ``[N]`` rows to choose for.
        room: ``[R]`` what they may cost together.
        totals: Of these rows.
        reach: Prices to look among; default: all.

    Returns:
        Loss for a unit of cost, at least 0; ``None`` if even the least costs are beyond the room.
    """
    if len(index) <= _SAMPLE:
        return _priced(rows, index, room, reach)
    sample = _some(index, _SAMPLE)
    seen = rows.totals(sample)
    # Not a share of the rows, but of what they can cost more: a sample has dear and cheap ones.
    share = seen.spread / np.where(totals.spread > 0, totals.spread, 1.0)
    centre = _priced(rows, sample, seen.floor + (room - totals.floor) * share, reach)
    if centre is None:
        return None
    scale = _scale(centre, room - totals.floor)
    width = _width(rows, sample, centre, scale)
    for _ in range(_MAX_BOXES):
        box = Box.around(centre, width * scale)
        left, held = _open(rows, index, box)
        if len(left) > _MOST * len(index):
            break
        # Beyond the box, rows that were decided would change, too: but it tells where to go.
        further = Box.around(centre, _FARTHEST * width * scale)
        found = best_prices(rows, left, room - held, rows.totals(left), further)
        if found is not None and box.has_inside(found):
            return found
        centre, width = centre if found is None else found, _WIDER * width
    return centre


def _some(index: Columns, most: int) -> Columns:
    """At most so many of the rows: one at random of every stretch, always the same."""
    step = -(-len(index) // most)
    starts = np.arange(0, len(index) - step + 1, step)
    # Every step-th row would be a poor sample of rows whose kinds alternate.
    return np.asarray(index[starts + np.random.default_rng(0).integers(0, step, len(starts))])


def _scale(prices: Array, free: Array) -> Array:
    """``[R]`` what a price is varied by: itself, or where it is next to 0, what another is."""
    worth = prices * free
    unit = np.where(free > 0, free, 1.0)
    return np.asarray(np.maximum(worth, _LEAST_SHARE * worth.max(initial=0.0)) / unit)


@final
@dataclass(frozen=True, eq=False)
class Box:
    """Prices ``[R]`` from ``low`` to ``high``."""

    low: Array
    high: Array

    @classmethod
    def around(cls, centre: Array, reach: Array) -> Self:
        """So far to both sides of prices ``[R]``."""
        return cls(np.maximum(centre - reach, 0.0), centre + reach)

    def has_inside(self, prices: Array) -> bool:
        """Whether prices are inside; no price is below 0."""
        is_above = (prices > self.low) | (self.low == 0)
        return bool((is_above & (prices < self.high)).all())

    @property
    def corners(self) -> list[Array]:
        """``2 ** R`` prices, the first of them all low."""
        return [np.array(corner) for corner in product(*zip(self.low, self.high, strict=True))]


def _open(rows: Rows, index: Columns, box: Box) -> tuple[Columns, Array]:
    """Rows whose column is not the same in the whole box, and ``[R]`` what the others cost."""
    left, held = list[Columns](), np.zeros(len(rows.limits))
    for part in rows.parts(index):
        losses, costs = told_apart(rows.losses(part), part), rows.expenses(part)
        first, *others = (_taken(losses, costs, corner) for corner in box.corners)
        is_open = np.any([other != first for other in others], axis=0)
        decided = np.flatnonzero(~is_open)
        held += costs[:, decided, first[decided]].sum(axis=1)
        left.append(part[is_open])
    return np.concatenate(left), held


def _taken(losses: Array, costs: Array, prices: Array) -> Columns:
    return np.asarray(priced(losses, costs, prices).argmin(axis=1))


def priced(losses: Array, costs: Array, prices: Array) -> Array:
    """``[N, B]`` losses, with costs ``[R, N, B]`` at prices ``[R]``."""
    found = losses.copy()
    for price, cost in zip(prices.tolist(), costs, strict=True):
        found += price * cost
    return found


def _width(rows: Rows, sample: Columns, centre: Array, scale: Array) -> float:
    """Of a box around a sample's multipliers that holds those of all rows."""
    # What a sum over a sample is off by grows with the square root of its rows: so many of them
    # are to be open. Few rows of it are enough to see how many these are.
    share = _DEVIATIONS / np.sqrt(len(sample))
    some = _some(sample, _SAMPLE // 4)
    width = _NARROWEST
    while width < 1.0:
        left, _ = _open(rows, some, Box.around(centre, width * scale))
        if len(left) >= share * len(some):
            break
        width *= 2.0
    return width


def _priced(rows: Rows, index: Columns, room: Array, reach: Box | None) -> Array | None:
    """The best prices of few rows; ``None`` if the least costs are beyond the room."""
    reduced = reduced_rows(rows, index, room)
    if reduced is None:
        return None
    if reach is None or len(room) == 1:
        dual, _ = nearly_maximised(reduced)
    else:
        dual = maximised_within(reduced, reach.low * reduced.free, reach.high * reduced.free)
    return np.asarray(dual.multipliers / reduced.free)


def reduced_rows(rows: Rows, index: Columns, room: Array) -> Reduced | None:
    """Rows ``index [N]`` in shares of what ``room [R]`` leaves free; ``None`` if it is too small.

    Columns that alone are beyond the room stay: of a sample, the room is only a part of what there
    is. A budget that leaves nothing free has 1 as its unit.
    """
    losses, costs, usable = (
        told_apart(rows.losses(index), index), rows.expenses(index), rows.usable(index)
    )  # fmt: skip
    floors = np.where(usable, costs, np.inf).min(axis=2)
    free = room - floors.sum(axis=1)
    if (free < -LAST_DIGITS * (np.abs(room) + np.abs(floors).sum(axis=1))).any():
        return None
    unit = np.where(free > 0, free, 1.0)
    excess = np.where(usable, costs - floors[:, :, None], 0.0) / unit[:, None, None]
    rise = np.where(usable, losses - losses.min(axis=1, keepdims=True), 0.0)
    nothing = np.zeros(0, dtype=np.intp)
    shape = (0, 1 + len(room), losses.shape[1], losses.shape[1])
    none = PairwiseCosts(nothing, nothing, np.zeros(shape))
    return Reduced(rise, excess, usable, unit, np.zeros(len(room)), 0.0, False, none)
