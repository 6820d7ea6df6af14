"""Dynamic programming over what a budget has left: all amounts at once."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self, final

import numpy as np
import numpy.typing as npt

from mpq._support.arrays import Array, Columns
from mpq.errors import InputError
from mpq.problem.budget import Budget
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.problem.tolerances import LIMIT
from mpq.solvers._base import Solver
from mpq.solvers.additive.answers import (
    require_additive,
    require_no_pairs,
    require_one_budget,
    solution_of,
)
from mpq.solvers.additive.infeasibility import explained
from mpq.solvers.additive.lagrangian import Lagrangian
from mpq.solvers.additive.milp import Answer
from mpq.solvers.additive.presolve import Reduced

_WHOLE = 1e-9
"""How far from a whole number a cost may be, as a share of it: what rounding leaves."""
_MAX_BYTES = 400_000_000
"""Of the table that the choice is read back from."""


@final
@dataclass(frozen=True)
class DynamicProgramming(Solver):
    r"""Least loss for every whole amount of one budget.

    .. math:: V_g(w) = \min_b \bigl(s_{gb} + V_{g-1}(w - c_{gb})\bigr)

    over the rows, with costs in whole units (Dudzinski and Walukiewicz 1987,
    doi:10.1016/0377-2217(87)90165-2; ZeroQ's Pareto frontier, Cai et al. 2020,
    arXiv:2001.00281).
    Where the costs are whole multiples of a unit, of which the budget leaves at most ``grid``
    free, as with bytes of small networks, the answer is exact. Otherwise the unit is that share of
    what is free: costs are rounded up for the answer, so that the budget holds, and down for the
    bound, so that the answer is proved to within what one unit more for every layer could gain.

    Args:
        grid: Largest number of units; time and memory grow with it.

    Raises:
        InputError: If the grid has no unit.
    """

    name: ClassVar[str] = "dynamic-programming"
    takes_interactions: ClassVar[bool] = False
    takes_pairs: ClassVar[bool] = False
    summary: ClassVar[str] = "one budget: exact on whole costs, else with a bound (ZeroQ)"

    grid: int = 10_000

    def __post_init__(self) -> None:
        if self.grid < 1:
            raise InputError(f"dynamic-programming needs a grid of at least 1; got {self.grid}")

    def solve(self, problem: Problem) -> Solution:
        """See ``Solver.solve``.

        Raises:
            InputError: If the problem has interactions, costs of pairs of layers, more than one
                budget that can bind, or so many layers that the table would not fit into memory.
        """
        start = time.perf_counter()
        require_additive(problem, self.name)
        require_no_pairs(problem, self.name)
        reduced = Reduced.of(problem.grouped)
        if reduced.overrun:
            # Another solver explains: the questions that it asks may have several budgets.
            nothing = Solution(Status.INFEASIBLE, None, float("nan"), None, self.name, 0.0)
            return explained(problem, nothing, Lagrangian().solve)
        require_one_budget(reduced, self.name)
        answer = self._answer(reduced)
        if answer.columns is not None and not problem.is_feasible(
            problem.grouped.expand(answer.columns)
        ):  # rounding alone: one unit less is then within the budget
            answer = self._answer(reduced, retreat=1)
        return solution_of(problem, answer, self.name, time.perf_counter() - start)

    def frontier(
        self, problem: Problem, table: CostTable, limits: Sequence[float]
    ) -> list[Solution]:
        """See ``Solver.frontier``: all from one table, as ZeroQ's frontier; nothing is proved.

        Raises:
            InputError: As ``solve``.
        """
        start = time.perf_counter()
        # One table for the largest limit holds the answers for all smaller amounts.
        problem = problem.with_budgets(*problem.budgets, Budget.of(table, max(limits)))
        found = self._sweep(problem, limits)
        # One sweep answered all of them, so that each gets an equal share of its time.
        seconds = (time.perf_counter() - start) / len(limits)
        return [
            Solution(Status.FEASIBLE, each, problem.loss_of(each), None, self.name, seconds)
            for each in found
        ]

    def _sweep(self, problem: Problem, limits: Sequence[float]) -> list[Columns]:
        """``[L]`` for every limit on the problem's last budget, the one that can bind."""
        require_additive(problem, self.name)
        require_no_pairs(problem, self.name)
        reduced = Reduced.of(problem.grouped)
        require_one_budget(reduced, self.name)
        if not len(reduced.excess):
            return [problem.grouped.expand(reduced.unlimited)] * len(limits)
        grid = _Grid.of(reduced, self.grid)
        table = _Table.of(reduced, np.ceil(grid.units), grid.capacity, keeps_choices=True)
        # What is free was counted from the largest limit; a smaller one holds back the difference.
        kept_back = (problem.budgets[-1].limit - np.array(limits)) / reduced.free[0]
        left = np.floor(grid.room * (1 + LIMIT) - kept_back * grid.room)
        return [problem.grouped.expand(table.columns(max(int(w), 0))) for w in left.tolist()]

    def _answer(self, reduced: Reduced, retreat: int = 0) -> Answer:
        if not len(reduced.excess):
            columns = reduced.unlimited
            return Answer(Status.OPTIMAL, columns, reduced.offset + reduced.loss(columns))
        grid = _Grid.of(reduced, self.grid)
        above = _Table.of(reduced, np.ceil(grid.units), grid.capacity, keeps_choices=True)
        columns = above.columns(grid.capacity - retreat)
        if grid.is_exact and not retreat:
            return Answer(Status.OPTIMAL, columns, reduced.offset + reduced.loss(columns))
        # With costs rounded down no choice within the budget is left out: the least is a bound.
        below = _Table.of(reduced, np.floor(grid.units), grid.reach, keeps_choices=False)
        rise = min(float(below.least[grid.reach]), reduced.loss(columns))
        is_best = rise == reduced.loss(columns)
        return Answer(
            Status.OPTIMAL if is_best else Status.FEASIBLE, columns, reduced.offset + rise
        )


@final
@dataclass(frozen=True, eq=False)
class _Grid:
    """Costs in units.

    Args:
        units: ``[G, B]`` cost of every cell above the least of its row.
        room: Units that the budget leaves free.
        edge: Units that a sum here may differ by from ``Budget.is_met``'s.
        is_exact: Whether all costs are whole.
    """

    units: Array
    room: float
    edge: float
    is_exact: bool

    @property
    def capacity(self) -> int:
        """Whole units that are free."""
        return int(self.room * (1 + LIMIT))

    @property
    def reach(self) -> int:
        """Whole units that an assignment within the budget may use, by sums that are rounded."""
        return int(self.room * (1 + LIMIT) + self.edge)

    @classmethod
    def of(cls, reduced: Reduced, most: int) -> Self:
        """The largest unit of which all costs are whole multiples, or a share of what is free."""
        # Back in the user's unit, in which bytes and operations are whole numbers.
        cost = np.where(reduced.usable, reduced.excess[0] * reduced.free[0], 0.0)
        # Where nothing but rounding is free, that is 0 in the user's unit: no whole number of it.
        some = cost[cost > 0]
        for unit in (1.0, float(some.min())) if some.size else ():
            if cost.max() > 2.0**53 * unit:  # beyond whole numbers of float64, if not beyond it
                continue
            amounts = cost / unit
            whole = np.rint(amounts)
            apart = np.abs(amounts - whole)
            if (apart > _WHOLE * amounts).any():
                continue
            # In units of the common divisor there are fewer amounts, and the answer is the same.
            divisor = int(np.gcd.reduce(whole[reduced.usable].astype(np.int64)))
            room = reduced.free[0] / unit / divisor
            # What rounding the costs of all rows may do must not decide what fits.
            edge = float(reduced.edge[0]) * room
            slack = float(apart.max(axis=1).sum()) / divisor + edge
            near = {int(room * (1 + LIMIT) + change) for change in (-slack, slack)}
            if room < most + 1 and len(near) == 1:
                return cls(whole / divisor, room, edge, is_exact=True)
        # An excess is a share of what is free, so that ``most`` units make up the whole.
        edge = float(reduced.edge[0]) * most
        return cls(reduced.excess[0] * most, float(most), edge, is_exact=False)


@final
@dataclass(frozen=True, eq=False)
class _Table:
    """Least rise for every amount.

    Args:
        units: ``[G, B]`` whole costs.
        least: ``[W + 1]`` by what may be used at most.
        column: ``[G, W + 1]`` what the row takes then; empty where it is not kept.
    """

    units: Columns
    least: Array
    column: npt.NDArray[np.unsignedinteger]

    @classmethod
    def of(cls, reduced: Reduced, units: Array, capacity: int, keeps_choices: bool) -> Self:
        """Row after row, each precision a shift of what the rows before reached."""
        whole = units.astype(np.intp)
        num_rows, width = len(whole), capacity + 1
        # Mostly one byte a cell: this table is nearly all of the memory.
        kind = np.min_scalar_type(whole.shape[1] - 1)
        most = _MAX_BYTES // kind.itemsize
        if num_rows * width > most:
            raise InputError(
                f"dynamic-programming: {num_rows} layers times {width} amounts are more than "
                f"{most}; take a smaller grid, or the solver 'lagrangian'"
            )
        column = np.zeros((num_rows if keeps_choices else 0, width), dtype=kind)
        # All zeros, not only the first: an amount is what may be used at most, not what is used.
        least = np.zeros(width)
        for row in range(num_rows):
            reached, taken = np.full(width, np.inf), np.zeros(width, dtype=kind)
            for cell in np.flatnonzero(reduced.usable[row] & (whole[row] < width)).tolist():
                shift = int(whole[row, cell])
                better = least[: width - shift] + reduced.rise[row, cell]
                # Strictly: of equal ones the first column stays, the same for every amount.
                wins = better < reached[shift:]
                reached[shift:][wins] = better[wins]
                taken[shift:][wins] = cell
            least = reached
            if keeps_choices:
                column[row] = taken
        return cls(whole, least, column)

    def columns(self, amount: int) -> Columns:
        """``[G]`` of what uses at most that amount."""
        found = np.empty(len(self.units), dtype=np.intp)
        for row in range(len(found) - 1, -1, -1):
            found[row] = self.column[row, amount]
            amount -= int(self.units[row, found[row]])
        return found
