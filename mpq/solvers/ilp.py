"""Exact solver: integer linear programming through PuLP."""

import time
from dataclasses import dataclass, replace
from typing import ClassVar, final

import numpy as np

from mpq.errors import InputError, SolverError
from mpq.problem import Choice, Problem
from mpq.solution import Shortfall, Solution, Status
from mpq.solvers._base import Solver
from mpq.solvers.backend import chosen_backend
from mpq.solvers.milp import Answer, Program, solve_program

_MAX_CUTS = 20
_MARGIN = 1e-7
"""Retreat from every limit, in units of its free range, once cutting off single answers that break
a budget by a hair does not end: a hundred times the tolerance that HiGHS is asked to keep."""
_ROUNDING = 1e-9
"""Relative error that a proved bound may have from the solver's own arithmetic."""


@final
@dataclass(frozen=True)
class IntegerLinearProgram(Solver):
    r"""Proves the best assignment: a multiple-choice knapsack with several budgets.

    .. math:: \min \sum_{\ell b} s_{\ell b} x_{\ell b} \quad\text{s.t.}\quad
        \sum_b x_{\ell b} = 1, \; \sum_{\ell b} c^r_{\ell b} x_{\ell b} \le C^r, \; x \in \{0, 1\}

    as in HAWQ-V3 (Yao et al. 2021, arXiv:2011.10680), with any number of budgets, ties and fixed
    layers. Departs from it by scaling objective and rows before the solver sees them, and by
    checking the answer with the problem's own arithmetic: an answer that breaks a budget by less
    than the solver's tolerance is cut off, and the program solved again.

    Args:
        backend: ``HiGHS``, ``CBC``, or ``auto``: HiGHS where it is installed, else CBC.
        time_limit_s: Wall time in seconds for each program, or ``None``.
    """

    name: ClassVar[str] = "ilp"
    takes_interactions: ClassVar[bool] = False
    summary: ClassVar[str] = "exact, any number of budgets (PuLP with HiGHS, else CBC)"

    backend: str = "auto"
    time_limit_s: float | None = None

    def solve(self, problem: Problem) -> Solution:
        """See ``Solver.solve``.

        Raises:
            InputError: If the problem has interactions; ``problem.additive()`` has none.
            MissingDependencyError: If the backend is not installed.
            SolverError: If the backend fails.
        """
        if problem.interactions is not None:
            raise InputError(
                "ilp minimises a sum over layers; this problem has interactions: use the solver "
                "'local-search', or the additive loss (problem.additive())"
            )
        start = time.perf_counter()
        backend = chosen_backend(self.backend)
        answer, status = self._search(problem, backend)
        solution = _solution(problem, answer, status, f"ilp ({backend})")
        if status is Status.INFEASIBLE:
            solution = replace(solution, shortfalls=self._shortfalls(problem, backend))
        return replace(solution, seconds=time.perf_counter() - start)

    def _search(self, problem: Problem, backend: str) -> tuple[Answer, Status]:
        """Solves, and cuts off answers that break a budget by less than the tolerance."""
        grouped = problem.grouped
        program = Program(grouped.loss, grouped.costs, grouped.limits, grouped.allowed)
        excluded: list[Choice] = []
        answer = first = solve_program(program, backend, self.time_limit_s, excluded)
        while answer.choice is not None:
            if problem.is_feasible(problem.grouped.expand(answer.choice)):
                # Cut-off answers are infeasible: what was proved without them holds.
                return answer, Status.OPTIMAL if answer.is_optimal else Status.TIME_LIMIT
            if len(excluded) == _MAX_CUTS:
                break
            excluded.append(answer.choice)
            answer = solve_program(program, backend, self.time_limit_s, excluded)
        if answer.is_infeasible:
            return answer, Status.INFEASIBLE
        if answer.choice is None:
            return answer, Status.UNKNOWN
        inside = solve_program(program, backend, self.time_limit_s, [], margin=_MARGIN)
        found = inside.choice is not None
        if found and problem.is_feasible(problem.grouped.expand(_known(inside.choice))):
            return replace(inside, bound=first.bound), Status.FEASIBLE
        return replace(inside, choice=None, bound=first.bound), Status.UNKNOWN

    def _shortfalls(self, problem: Problem, backend: str) -> tuple[Shortfall, ...]:
        grouped = problem.grouped
        smallest = np.where(grouped.allowed, grouped.costs, np.inf).min(axis=2).sum(axis=1)  # [R]
        rows = []
        for budget, least in zip(problem.budgets, smallest.tolist(), strict=True):
            others = tuple(other for other in problem.budgets if other is not budget)
            held = replace(problem, budgets=others, interactions=None)
            answer, _ = self._search(held.cheapest(budget.table), backend)
            choice = None if answer.choice is None else grouped.expand(answer.choice)
            within = None if choice is None else budget.used(choice)
            rows.append(
                Shortfall(budget.table.name, budget.table.unit, budget.limit, least, within)
            )
        return tuple(rows)


def _known(choice: Choice | None) -> Choice:
    assert choice is not None
    return choice


def _solution(problem: Problem, answer: Answer, status: Status, solver: str) -> Solution:
    if answer.choice is None:
        return Solution(status, None, float("nan"), answer.bound, solver, 0.0)
    choice = problem.grouped.expand(answer.choice)
    loss = problem.loss_of(choice)
    bound = answer.bound
    if bound is not None and bound > loss:
        # Proved in scaled floating point, where its last digits are not ours.
        scale = np.abs(problem.loss.values).sum()
        if bound > loss + _ROUNDING * scale:
            raise SolverError(f"{solver} proved {bound}, above the loss {loss} that it found")
        bound = loss
    return Solution(status, choice, loss, bound, solver, 0.0)
