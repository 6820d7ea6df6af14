"""Very many rows within budgets: the relaxation decides nearly all, the rest is searched."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Self, final

import numpy as np

from mpq._support.arrays import Array, Columns
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.problem.solution import Status
from mpq.problem.tolerances import LAST_DIGITS, PROVED_BOUND, is_within
from mpq.quantization.precision import Precision
from mpq.solvers.additive.filling import filled
from mpq.solvers.additive.milp import Answer
from mpq.solvers.additive.multipliers import Dual, nearest_vertex
from mpq.solvers.additive.relaxed_rows import Relaxed
from mpq.solvers.additive.rows import Choice, Rows, Totals
from mpq.solvers.additive.sifting import best_prices, priced, reduced_rows

FEW = 2000
"""Rows whose choice is searched."""
_MOST_OPEN = 0.5
"""Gap of the core, of which the relaxation may lose next to nothing."""
Search = Callable[[Problem, float], Answer]
"""Solves a small problem to a gap, a share of what is lost above the least of every row."""


@final
@dataclass(frozen=True, eq=False)
class Allocation:
    """The answer for ``Rows``.

    Args:
        status: How the search ended.
        columns: ``[G]`` column of every row, in the smallest type that holds it; ``None`` if
            nothing was found.
        loss: Sum of the losses; ``nan`` without a choice.
        used: ``[R]`` sums of the costs; without a choice the least that each can be by itself.
        bound: No choice within the limits loses less; ``None``: not proved.
        prices: ``[R]`` loss for a unit of each resource, the multipliers that prove the bound.
    """

    status: Status
    columns: Choice | None
    loss: float
    used: Array
    bound: float | None
    prices: Array

    @classmethod
    def of(cls, rows: Rows, columns: Choice, status: Status, bound: float, prices: Array) -> Self:
        """A choice with what it loses and uses."""
        loss = rows.lost(columns)
        # Within rounding the two are equal, and the loss is proved.
        return cls(status, columns, loss, rows.used(columns), min(bound, loss), prices)

    @classmethod
    def nothing(cls, status: Status, floor: Array, bound: float | None, prices: Array) -> Self:
        """No choice: the limits cannot be met, or none was found that meets them."""
        return cls(status, None, float("nan"), floor, bound, prices)

    @property
    def gap(self) -> float | None:
        """``(loss - bound) / |loss|``, at least 0; ``None`` where nothing is proved."""
        if self.bound is None or self.columns is None:
            return None
        rise = max(self.loss - self.bound, 0.0)
        return rise / abs(self.loss) if self.loss else rise


def allocated(rows: Rows, gap: float, search: Search) -> Allocation:
    """The choice for many rows: the relaxation's, but for the rows where it nearly has another.

    At the best multipliers all but as many rows as there are budgets have one column that is best
    (Sinha and Zoltners 1979, doi:10.1287/opre.27.3.503), so that of very many rows the bound is
    nearly reached. The rows nearest to another column fill what is left of the budgets, as the
    core of a knapsack does (Balas and Zemel 1980, doi:10.1287/opre.28.5.1130).

    Args:
        rows: What to choose from.
        gap: Where to stop, a share of what is lost above the least of every row.
        search: Solves what is left, a problem of at most ``FEW`` rows.
    """
    trimmed = _trimmed(rows)
    if trimmed is None:
        floor = rows.totals(np.arange(len(rows))).floor
        return Allocation.nothing(Status.INFEASIBLE, floor, None, np.zeros(len(floor)))
    rows, totals = trimmed
    free = Relaxed.at(rows, np.zeros(len(rows.limits)))
    if _is_met(rows, free.columns):
        return Allocation.of(rows, free.columns, Status.OPTIMAL, free.bound, free.prices)
    prices = best_prices(rows, np.arange(len(rows)), rows.allowance, totals)
    relaxed = free if prices is None else Relaxed.at(rows, prices)
    if relaxed.bound > totals.most:
        return Allocation.nothing(Status.INFEASIBLE, totals.floor, None, relaxed.prices)
    found = None
    for found in _completed(rows, relaxed):
        loss = rows.lost(found)
        if _is_met(rows, found) and loss - relaxed.bound <= gap * (loss - totals.least):
            return Allocation.of(rows, found, Status.FEASIBLE, relaxed.bound, relaxed.prices)
    return _searched(rows, relaxed, totals, search, gap, found)


def _searched(
    rows: Rows,
    relaxed: Relaxed,
    totals: Totals,
    search: Search,
    gap: float,
    known: Choice | None = None,
) -> Allocation:
    """The answer of an exact search for the core; or a choice that is known, where that is better.

    A choice has the relaxation's columns in all other rows, and the search's bound holds for it; or
    it has not, and loses what one such column adds to the relaxation's bound at least.
    """
    core, bound = relaxed.core(FEW), relaxed.bound
    beside = relaxed.beside(rows, core)
    answer = search(_problem(rows, relaxed, core), _gap_of(rows, relaxed, core, totals, gap))
    if answer.status is Status.INFEASIBLE and beside == np.inf:
        return Allocation.nothing(answer.status, totals.floor, None, relaxed.prices)
    if answer.bound is not None:
        bound = max(bound, min(beside, _with_rest(rows, relaxed, core, answer.bound)))
    searched = None if answer.columns is None else relaxed.with_core(core, answer.columns)
    found = [each for each in (searched, known) if each is not None and _is_met(rows, each)]
    if not found:
        return Allocation.nothing(Status.UNKNOWN, totals.floor, bound, relaxed.prices)
    best = min(found, key=rows.lost)
    if answer.status is not Status.OPTIMAL:
        return Allocation.of(rows, best, answer.status, bound, relaxed.prices)
    is_best = best is searched and rows.lost(best) <= beside
    status = Status.OPTIMAL if is_best else Status.FEASIBLE
    return Allocation.of(rows, best, status, np.inf if is_best else bound, relaxed.prices)


def _with_rest(rows: Rows, relaxed: Relaxed, core: Columns, bound: float) -> float:
    """A bound of the core, with what all other rows lose at the relaxation's columns."""
    kept = rows.lost(relaxed.columns) - float(rows.loss[core, relaxed.columns[core]].sum())
    # Rounded down, as the two are sums that are added up in another order.
    return kept + bound - PROVED_BOUND * (abs(kept) + abs(bound))


def _completed(rows: Rows, relaxed: Relaxed) -> Iterator[Choice]:
    """Choices with the core filled in batches, the quicker one first; those that were found."""
    core = relaxed.core(FEW)
    losses, costs = rows.losses(core), rows.expenses(core)
    taken = relaxed.columns[core].astype(np.intp)
    room = rows.limits - relaxed.held(costs, taken)
    columns = filled(losses, costs, relaxed.prices, room, taken)
    if columns is not None:
        yield relaxed.with_core(core, columns)
    reduced = reduced_rows(rows, core, room)
    if len(room) == 1 or reduced is None:
        return
    # Where one budget is full, another may be half used, which only a mixture of rows mends.
    vertex = nearest_vertex(reduced, Dual.at(reduced, relaxed.prices * reduced.free))
    columns = None if vertex is None else filled(losses, costs, relaxed.prices, room, vertex)
    if columns is not None:
        yield relaxed.with_core(core, columns)


def _trimmed(rows: Rows) -> tuple[Rows, Totals] | None:
    """Without columns that alone are beyond a limit; ``None`` if a limit cannot be met."""
    while True:
        totals = rows.totals(np.arange(len(rows)))
        free = rows.allowance - totals.floor
        edge = LAST_DIGITS * (np.abs(rows.limits) + totals.size)
        if (free < -edge).any():
            return None
        reach = np.maximum(free, 0.0) + edge
        if (totals.largest <= reach).all():
            return rows, totals
        allowed = rows.reached(reach)
        if not allowed.any(axis=1).all():
            return None
        rows = replace(rows, allowed=allowed)  # which may lift the floors


def _problem(rows: Rows, relaxed: Relaxed, core: Columns) -> Problem:
    """The choice for the core, while all other rows keep the relaxation's."""
    usable = rows.usable(core)
    costs = rows.expenses(core)
    limits = rows.limits - relaxed.held(costs, relaxed.columns[core].astype(np.intp))
    names = tuple(map(str, core.tolist()))
    # A solver only tells columns apart: any precisions stand for them.
    columns = tuple(Precision.parse(f"w8g{1 + column}") for column in range(usable.shape[1]))
    tables = [
        CostTable(f"resource{r}", "relative", names, columns, cost) for r, cost in enumerate(costs)
    ]
    losses = CostTable("loss", "relative", names, columns, np.where(usable, rows.losses(core), 0.0))
    budgets = map(Budget.of, tables, limits.tolist())
    return Problem(losses, Constraints(tuple(budgets)), mask=usable)


def _gap_of(rows: Rows, relaxed: Relaxed, core: Columns, totals: Totals, gap: float) -> float:
    """What of the core's own loss may stay open, if half of all that may is left to it."""
    open_loss = 0.5 * gap * max(relaxed.bound - totals.least, 0.0)
    losses, costs = rows.losses(core), rows.expenses(core)
    at = np.arange(len(core)), relaxed.columns[core]
    excess = costs[:, *at].sum(axis=1) - relaxed.used + rows.allowance
    rise = priced(losses, costs, relaxed.prices)[at].sum() - relaxed.prices @ excess
    rise -= losses.min(axis=1).sum()
    share = open_loss / (max(float(rise), 0.0) + open_loss) if open_loss > 0 else gap
    return min(share, _MOST_OPEN)


def _is_met(rows: Rows, columns: Choice) -> bool:
    used = rows.used(columns).tolist()
    return all(map(is_within, used, rows.limits.tolist()))
