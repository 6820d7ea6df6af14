"""Exact solver: Lagrangian relaxation, then a search among the few cells that it leaves open."""

import time
from dataclasses import dataclass, replace
from typing import ClassVar, final

import numpy as np

from mpq._support.arrays import Columns
from mpq.errors import InputError
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.problem.tolerances import EQUAL_SUMS
from mpq.solvers._base import Solver
from mpq.solvers.additive.answers import (
    check_effort,
    require_additive,
    require_no_pairs,
    solution_of,
)
from mpq.solvers.additive.core_search import closed
from mpq.solvers.additive.infeasibility import explained
from mpq.solvers.additive.many_rows import Allocation, allocated
from mpq.solvers.additive.milp import Answer, Effort, solve_cells
from mpq.solvers.additive.multipliers import Dual, maximised
from mpq.solvers.additive.presolve import Reduced
from mpq.solvers.additive.pulp_backend import Way, check_backend, chosen_backend
from mpq.solvers.additive.rows import Rows

_MAX_STATES = 1_000_000
"""Partial assignments that the search of the core keeps; past them it stops and tells the gap."""
_CORE_CELLS = 100
"""Cells, beside one for each group, of the program that looks for a first good choice."""
_CORE_GAP = 0.01
"""Of that first choice: it only has to rule cells out, the whole program improves on it."""
MANY_ROWS = 2000
"""Groups above which a gap is met without looking at all of them in every step."""
_EXPLAINED_EXACTLY = 2000
"""Cells up to which every number about an infeasible problem is exact."""
_EXPLAINED_WITHIN_S = 3.0
"""For each number above that: an explanation must not take longer than the solution would have."""


@final
@dataclass(frozen=True)
class Lagrangian(Solver):
    r"""Proves the best assignment with a multiplier for every budget.

    One multiplier for every budget turns the problem into a choice for each layer alone; the best
    multipliers prove a bound that is nearly reached (Everett 1963, doi:10.1287/opre.11.3.399;
    Shoham and Gersho 1988, doi:10.1109/29.90373, for bit allocation).
    Layers whose other precisions would lift the bound above the best assignment known are then
    decided, and the rest, a handful also where there are thousands, is searched exactly:
    with one budget by dynamic programming (``mpq.solvers.additive.core_search``), with several by
    branch and bound (HiGHS). Departs from the papers in that it does not stop at the bound.

    Args:
        gap: Where to stop: the distance from the bound, as a share of what an assignment loses
            above the least that every layer can lose. 0: at the proved optimum. With one budget
            and up to 2,000 groups of layers, the search goes on to the optimum where that is quick.
        time_limit_s: Wall time in seconds of each of two branch and bounds, or ``None``.
        backend: MILP solver of the branch and bound; as for ``ilp``.

    Raises:
        InputError: If the gap or the time limit makes no sense.
    """

    name: ClassVar[str] = "lagrangian"
    takes_interactions: ClassVar[bool] = False
    takes_pairs: ClassVar[bool] = False
    summary: ClassVar[str] = "exact, any number of budgets, thousands of layers in milliseconds"

    gap: float = 0.0
    time_limit_s: float | None = None
    backend: str = "auto"

    def __post_init__(self) -> None:
        check_effort(self.name, self.gap, self.time_limit_s)
        # The name only: where no program has to be solved, no backend has to be installed.
        check_backend(self.backend)

    def solve(self, problem: Problem) -> Solution:
        """See ``Solver.solve``.

        Raises:
            InputError: If the problem has interactions (``problem.additive()`` has none), or costs
                of pairs of layers.
            MissingDependencyError: If there are several budgets and the backend is not installed.
            SolverError: If the backend fails.
        """
        require_additive(problem, self.name)
        require_no_pairs(problem, self.name)
        solution = self._solve(problem)
        if solution.status is Status.INFEASIBLE:
            # Not `solve`, which would explain the explanation's infeasible questions, and so on.
            return explained(problem, solution, self._explaining(problem)._solve)
        return solution

    def allocate(self, rows: Rows) -> Allocation:
        """The choice for very many rows, given as arrays instead of a ``Problem``.

        Args:
            rows: Losses, costs and limits; tables without a name for every row.

        Raises:
            InputError: If the solver is asked for a gap of 0, to which so many are not solved.
            MissingDependencyError: If there are several budgets and the backend is not installed.
            SolverError: If the backend fails.
        """
        if not self.gap:
            raise InputError(
                f"{self.name}: rows as arrays are solved to a gap above 0, such as gap=1e-5; got 0"
            )

        def search(problem: Problem, gap: float) -> Answer:
            return replace(self, gap=gap)._searched(problem)

        return allocated(rows, self.gap, search)

    def _explaining(self, problem: Problem) -> "Lagrangian":
        """For why a problem is infeasible: with many layers to 0.01 %, and in seconds."""
        if problem.grouped.allowed.size <= _EXPLAINED_EXACTLY:
            return self
        seconds = _EXPLAINED_WITHIN_S
        if self.time_limit_s is not None:
            seconds = min(self.time_limit_s, seconds)
        return replace(self, gap=max(self.gap, 1e-4), time_limit_s=seconds)

    def _solve(self, problem: Problem) -> Solution:
        start = time.perf_counter()
        answer = self._answer(problem)
        return solution_of(problem, answer, self.name, time.perf_counter() - start)

    def _answer(self, problem: Problem) -> Answer:
        if self.gap and len(problem.grouped.members) > MANY_ROWS:
            # Where it does not come as near as is asked, or says that nothing is, all is looked at.
            answer = self._allocated(problem)
            if answer is not None:
                return answer
        return self._searched(problem)

    def _searched(self, problem: Problem) -> Answer:
        reduced = Reduced.of(problem.grouped)
        if reduced.overrun:
            return Answer(Status.INFEASIBLE, None, None)
        dual, within = maximised(reduced)
        if dual.proves_infeasible(reduced):
            return Answer(Status.INFEASIBLE, None, None)
        bound = reduced.offset + dual.bound
        # No budget binds at the least loss of every row, which is then the answer.
        if within is dual.columns and not dual.multipliers.any():
            found, is_exact, is_close = within, True, True
        elif len(dual.multipliers) == 1 and within is not None:
            found, rise = closed(reduced, dual, within, _MAX_STATES, self.gap)
            bound, is_exact = reduced.offset + rise, rise >= reduced.loss(found)
            is_close = reduced.loss(found) - rise <= self.gap * reduced.loss(found)
        else:
            return self._branch(problem, reduced, dual, within)
        if not (is_exact or is_close) or not self._fits(problem, found):
            # Too many states, or a limit that is met but for the last digit.
            return self._branch(problem, reduced, dual, found)
        return Answer(Status.OPTIMAL if is_exact else Status.FEASIBLE, found, bound)

    def _allocated(self, problem: Problem) -> Answer | None:
        """The answer for very many rows, if it is within the budgets and the gap."""
        grouped = problem.grouped
        rows = Rows(grouped.loss, grouped.costs, grouped.limits, grouped.allowed)
        found = self.allocate(rows)
        if found.columns is None or found.bound is None:
            return None
        columns = found.columns.astype(np.intp)
        least = rows.totals(np.arange(len(rows))).least
        is_close = found.loss - found.bound <= self.gap * (found.loss - least)
        fits = is_close and self._fits(problem, columns)
        return Answer(found.status, columns, found.bound) if fits else None

    def _branch(
        self, problem: Problem, reduced: Reduced, dual: Dual, within: Columns | None
    ) -> Answer:
        """Branch and bound: first among few cells, then among all that may be better."""
        effort = Effort(Way(chosen_backend(self.backend)), self.time_limit_s)
        few = dual.cells_within(_CORE_CELLS)
        first = solve_cells(problem, few, replace(effort, relative_gap=_CORE_GAP))
        # `within` was counted in rounded shares; only the problem can say that it fits.
        known = [c for c in (first.columns, within) if c is not None and self._fits(problem, c)]
        proved = dual.bound - dual.owed(reduced)
        bound = reduced.offset + proved
        if not known:
            # Without a known loss there is no gap, and so no cell that can be ruled out.
            return solve_cells(problem, problem.grouped.allowed, effort)
        best = min(known, key=reduced.loss)
        least = reduced.loss(best) - proved
        # A reduced loss is already above the least of every layer, as the gap is defined.
        allowed = self.gap * reduced.loss(best)
        if least <= allowed:
            return Answer(Status.FEASIBLE if self.gap else Status.OPTIMAL, best, bound)
        # A cell that would close the gap exactly must not be ruled out by rounding.
        open_cells = dual.reduced_cost <= least * (1 + EQUAL_SUMS)
        open_cells[np.arange(len(best)), best] = True
        last = solve_cells(problem, open_cells, replace(effort, absolute_gap=allowed), best)
        if last.columns is None:  # stopped before it had read the first choice
            return Answer(Status.TIME_LIMIT, best, bound)
        # No choice outside of the open cells is better than the best one known.
        highest = bound if last.bound is None else max(bound, last.bound)
        return Answer(last.status, last.columns, highest)

    @staticmethod
    def _fits(problem: Problem, columns: Columns) -> bool:
        return problem.is_feasible(problem.grouped.expand(columns))
