"""Closing the gap of one budget exactly: dynamic programming over the rows that remain open."""

from dataclasses import dataclass
from typing import Any, Self, final

import numpy as np
import numpy.typing as npt

from mpq._support.arrays import Array, Columns
from mpq.problem.tolerances import SEARCHED_SUMS
from mpq.solvers.additive.hull import Hull
from mpq.solvers.additive.multipliers import Dual
from mpq.solvers.additive.presolve import Reduced

_FEW_STATES = 200_000
"""Of all rows together, which are worth a search where what is open is little: with rows that cost
the same, it takes many."""


@final
@dataclass(frozen=True, eq=False)
class _States:
    """Choices for the rows so far, none costing and losing more than another; by rising cost.

    Args:
        cost: ``[P]`` relative to the relaxation's choice.
        reduced: ``[P]`` sum of reduced costs.
        parent: ``[P]`` index among the states before.
        column: ``[P]`` cell of the last row.
    """

    cost: Array
    reduced: Array
    parent: npt.NDArray[np.intp]
    column: npt.NDArray[np.intp]

    @classmethod
    def none_yet(cls) -> Self:
        """Before the first row: the relaxation's choice."""
        # Placeholders: `_traced` stops before this state and reads neither parent nor column.
        zero = np.zeros(1, dtype=np.intp)
        return cls(np.zeros(1), np.zeros(1), zero, zero)

    def kept(self, which: npt.NDArray[Any]) -> Self:
        """Some of them, in the given order."""
        return type(self)(
            self.cost[which], self.reduced[which], self.parent[which], self.column[which]
        )

    def extended(self, cost: Array, reduced: Array, below: float) -> Self:
        """With one row more, whose cells differ from the relaxation's by ``[B]``."""
        sums = self.reduced[:, None] + reduced  # [P, B]
        # Cut before anything else is built. Cells that are not usable are infinite and go here too.
        parent, column = np.nonzero(sums < below)
        return type(self)(self.cost[parent] + cost[column], sums[parent, column], parent, column)

    def undominated(self, multiplier: float) -> Self:
        """Without those that cost and lose at least as much as another."""
        # A reduced cost also holds multiplier times cost; dominance is about the loss alone.
        loss = self.reduced - multiplier * self.cost
        # Of those that cost the same the best one first, so that it alone stays: rows that cost
        # the same can be exchanged, and come to each sum in very many ways.
        order = np.lexsort((loss, self.cost))
        loss = loss[order]
        # Of states by rising cost, one stays only if it loses less than all that are cheaper.
        least = np.minimum.accumulate(loss)
        return self.kept(order[np.r_[True, loss[1:] < least[:-1]]])


def closed(
    problem: Reduced, dual: Dual, within: Columns, max_states: int, gap: float = 0.0
) -> tuple[Columns, float]:
    r"""The best choice within one budget, and a bound that proves it.

    With :math:`\bar s` the reduced costs, a choice loses :math:`L(\mu) + \sum_g \bar s_{g z_g}` and
    :math:`\mu` times what it leaves of the budget: a sum of terms that are never negative. So a
    cell whose reduced cost is above the gap is in no better choice than the best one known, and
    rows with one cell left are closed. The others are taken up by rising reduced cost, as in
    Pisinger's core (1995, doi:10.1016/0377-2217(95)00015-I). After each row, states that cost and
    lose more than another are dropped (Nemhauser and Ullmann 1969, doi:10.1287/mnsc.15.9.494),
    and those that the relaxation of the remaining rows brings above the best choice. Every state,
    completed by the relaxation's cells, is a choice: so the gap falls, and open rows close.

    Args:
        problem: Rises and costs of a problem in which one budget can bind.
        dual: Its relaxation at the best multiplier.
        within: ``[G]`` a choice within the budget.
        max_states: Number of states after a row at which the search gives up closing the gap.
        gap: Distance from the bound, as a share of the choice's rise, within which the search ends
            after few states.

    Returns:
        The best choice found ``[G]``, and a lower bound of the rise.
    """
    # What only the last digits put beyond the limit stays: the caller checks what is found.
    multiplier, edge = float(dual.multipliers[0]), float(problem.edge[0])
    room = 1 - float(dual.used[0]) + edge
    cost = problem.excess[0] - problem.excess[0][np.arange(len(within)), dual.columns][:, None]
    best, least = within, problem.loss(within) - dual.bound  # above the relaxation's bound
    exact = SEARCHED_SUMS * (abs(dual.bound) + multiplier + least)
    # What a choice saves that is within the limit by its last digits.
    owed = dual.owed(problem)
    rows = _open_rows(dual, least + owed)
    rest = _Rest.of(cost[rows], dual.reduced_cost[rows], multiplier)
    trail, num_states = [_States.none_yet()], 0
    for position, row in enumerate(rows.tolist()):
        if _second(dual.reduced_cost[row]) >= least + owed - exact:
            break  # and so are all that follow: what was found is the best
        longer = trail[-1].extended(cost[row], dual.reduced_cost[row], least + owed - exact)
        longer = longer.undominated(multiplier)
        left = room - longer.cost
        # The loss above the bound is the reduced costs and the multiplier times what is left over.
        above = np.where(left >= 0, longer.reduced + multiplier * (left - edge), np.inf)
        if above.min() < least - exact:
            best = _traced([*trail, longer], rows, dual.columns, int(above.argmin()))
            # Summed anew, correctly rounded: a state carries the rounding of all rows before it.
            least = problem.loss(best) - dual.bound
        # The edge is room to fit in, and nothing that is left over to pay for.
        floor = longer.reduced + rest.after(position, left) - multiplier * edge
        trail.append(longer.kept(floor < least - exact))
        if not len(trail[-1].cost):
            break
        num_states += len(trail[-1].cost)
        is_enough = num_states > _FEW_STATES and least + owed <= gap * problem.loss(best)
        if is_enough or len(trail[-1].cost) > max_states:
            # Dropped states lead to nothing better than the best one, or than a state that stayed.
            return best, dual.bound + min(least, float(floor.min()))
    return best, dual.bound + least


def _second(reduced: Array) -> Array:
    """``[...]`` what rows ``[..., B]`` add at least unless they take the relaxation's cell."""
    return np.asarray(np.sort(reduced, axis=-1)[..., 1])


def _open_rows(dual: Dual, gap: float) -> npt.NDArray[np.intp]:
    """Rows with two cells within the gap, by the smaller of what the second one adds."""
    # A row of one column has no second cell.
    if dual.reduced_cost.shape[1] == 1:
        return np.zeros(0, dtype=np.intp)
    second = _second(dual.reduced_cost)
    order = np.argsort(second, kind="stable")
    return np.asarray(order[second[order] < gap])


def _traced(
    trail: list[_States], rows: npt.NDArray[np.intp], columns: Columns, state: int
) -> Columns:
    """The choice that a state of the last row stands for, completed by the relaxation's."""
    found = columns.copy()
    for depth in range(len(trail) - 1, 0, -1):
        found[rows[depth - 1]] = trail[depth].column[state]
        state = int(trail[depth].parent[state])
    return found


@final
@dataclass(frozen=True, eq=False)
class _Rest:
    """The relaxation of the open rows that are still to come.

    Args:
        hull: Convex hull of all open rows, costs relative to the relaxation's choice.
        cost: ``[N + 1]`` least cost of the rows from each one on.
        loss: ``[N + 1]`` what they lose there.
        multiplier: Lagrange multiplier of the budget: rise per unit of what is free.
    """

    hull: Hull
    cost: Array
    loss: Array
    multiplier: float

    @classmethod
    def of(cls, cost: Array, reduced: Array, multiplier: float) -> Self:
        """For open rows ``[N, B]``."""
        usable = np.isfinite(reduced)
        loss = np.where(usable, reduced, 0.0) - multiplier * cost
        hull = Hull.of(loss, cost, usable)
        at = np.arange(len(cost)), hull.start
        return cls(hull, _suffix_sums(cost[at]), _suffix_sums(loss[at]), multiplier)

    def after(self, position: int, room: Array) -> Array:
        """``[P]`` reduced costs that the rows after one add at least, and what stays unused."""
        # Steps fall in gain per cost, and so do those of any subset of rows: their running sums are
        # the hull of the subset, on which `interp` is the relaxation.
        steps = self.hull.row > position
        cost = self.cost[position + 1] + np.r_[0.0, np.cumsum(self.hull.cost[steps])]
        loss = self.loss[position + 1] - np.r_[0.0, np.cumsum(self.hull.gain[steps])]
        # Too little room has no completion. To the right, `interp` keeps the last value, as it
        # should: beyond the last step nothing is gained.
        found = np.interp(room, cost, loss, left=np.inf)
        return np.asarray(found + self.multiplier * room)


def _suffix_sums(values: Array) -> Array:
    """``[N + 1]`` sums from each position to the end."""
    return np.append(np.cumsum(values[::-1])[::-1], 0.0)
