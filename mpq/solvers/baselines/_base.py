"""What the baselines share: a choice by a rule, checked, with the bound of the relaxation."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from mpq._support.arrays import Columns
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.problem.tolerances import EQUAL_SUMS
from mpq.solvers.additive.answers import require_additive, require_no_pairs, solution_of
from mpq.solvers.additive.default import solve_additive
from mpq.solvers.additive.milp import Answer
from mpq.solvers.additive.multipliers import maximised
from mpq.solvers.additive.presolve import Reduced

Rule = Callable[[Reduced], Columns | None]
"""``[G]`` of a reduced problem in which every row has a usable cell; ``None``: nothing keeps it."""

BEYOND: Final = "its rule leads beyond a budget that another assignment meets: take another solver"
"""Why there is no answer, as most rules have it."""


def solved_by(rule: Rule, problem: Problem, name: str, why: str = BEYOND) -> Solution:
    """What a rule chooses; where it breaks a budget, whether there is nothing to be found.

    Args:
        rule: Chooses a column for every group, once the problem is reduced.
        problem: Without interactions and costs of pairs of layers.
        name: Name of the solver, for the solution.
        why: The rule's choice breaks a budget that another assignment meets, and what helps.

    Raises:
        InputError: If the problem has interactions or costs of pairs of layers.
    """
    start = time.perf_counter()
    require_additive(problem, name)
    require_no_pairs(problem, name)
    reduced = Reduced.of(problem.grouped)
    columns = None if reduced.overrun else rule(reduced)
    if columns is None or not problem.is_feasible(problem.grouped.expand(columns)):
        # A rule that fails proves nothing: whether there is an answer, an exact solver tells.
        exact = solve_additive(problem)
        if exact.status is Status.INFEASIBLE:
            return replace(exact, solver=name)
        seconds = time.perf_counter() - start
        return Solution(Status.UNKNOWN, None, float("nan"), exact.bound, name, seconds, why=why)
    dual, _ = maximised(reduced)
    # Relative to the worst sum: the least loss itself may be 0, with no digits to compare in.
    is_best = reduced.loss(columns) <= dual.bound + EQUAL_SUMS * reduced.worst
    status = Status.OPTIMAL if is_best else Status.FEASIBLE
    answer = Answer(status, columns, reduced.offset + dual.bound)
    return solution_of(problem, answer, name, time.perf_counter() - start)
