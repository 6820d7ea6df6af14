"""The least amount of a resource at which the loss is still acceptable."""

from collections.abc import Callable
from dataclasses import replace
from math import ceil, inf, log2
from typing import Final

from mpq._support.arrays import Columns
from mpq.errors import InfeasibleError, InputError
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.problem.tolerances import is_within
from mpq.quantization.precision import ORIGINAL
from mpq.report.measurement import Measurement
from mpq.solvers import Solver
from mpq.solvers.queries.least_cost import least_cost_measured
from mpq.solvers.queries.solve import cheapest
from mpq.workflows.evaluator import Evaluator
from mpq.workflows.objective import Objective
from mpq.workflows.score import Judge
from mpq.workflows.uniform import uniform_within

FRONTIER_POINTS: Final = 64
BISECTED: Final = 1 + ceil(log2(FRONTIER_POINTS))
"""Points of a frontier of so many that are measured at most: the last one, and bisection."""

Accepts = Callable[[Columns], bool]


def minimize(
    objective: Objective,
    problem: Problem,
    table: CostTable,
    solver: Solver,
    evaluator: Evaluator,
    safeguard: bool = True,
) -> tuple[Problem, Solution]:
    """The problem with the least cost as one more budget, and its solution.

    Args:
        objective: What is minimised, and what may be lost.
        problem: With its loss, and the budgets that hold besides.
        table: ``[L, B]`` of the objective's resource.
        solver: Finds the least loss at a cost, and the points of the frontier.
        evaluator: Measures assignments on the held-out examples.
        safeguard: Whether a uniform precision that costs less and is acceptable takes the place.

    Raises:
        InputError: If accuracy cannot be measured.
        InfeasibleError: If no assignment within the budgets is good enough.
        SolverError: If the solver finds nothing.
    """
    # A predicted sum can change places with the cost, exactly; a measured loss has to be tried.
    if objective.max_loss is not None:
        return cheapest(problem, table, solver, objective.max_loss)
    accepts = criterion(objective, problem, evaluator)
    try:
        found = least_cost_measured(problem, table, solver, accepts, FRONTIER_POINTS)
    except InfeasibleError as error:
        # The frontier is only predicted to lose least: what one takes without it may do.
        uniform = _least_uniform(problem, table, solver, accepts) if safeguard else None
        if uniform is None:
            tried = ", ".join(map(str, uniform_within(problem))) if safeguard else ""
            also = f"; nor, as measured, is any uniform precision: {tried}" if tried else ""
            raise InfeasibleError(f"{error}{also}") from error
        return uniform
    uniform = _least_uniform(problem, table, solver, accepts, found.cost) if safeguard else None
    why = f"least {table.name}: {found.num_tried} points of the frontier were measured"
    return uniform or (found.problem, replace(found.solution, why=why))


def _least_uniform(
    problem: Problem, table: CostTable, solver: Solver, accepts: Accepts, below: float = inf
) -> tuple[Problem, Solution] | None:
    """The uniform precision of least cost that is acceptable, if any costs less than ``below``."""
    costs = {p: (table.total(columns), columns) for p, columns in uniform_within(problem).items()}
    for precision, (cost, columns) in sorted(costs.items(), key=lambda item: item[1][0]):
        # Equal costs are none of the objective's: `never_worse` compares losses there.
        if is_within(below, cost):
            break
        if accepts(columns):
            name = f"{solver.name}, replaced by uniform {precision}"
            found = Solution(Status.FEASIBLE, columns, problem.loss_of(columns), None, name, 0.0)
            why = (
                f"least {table.name}: uniform {precision} was measured to be acceptable, where no "
                f"{'point' if below == inf else 'cheaper point'} of the frontier that was tried is"
            )
            return problem.limited(table, cost), replace(found, why=why)
    return None


def criterion(objective: Objective, problem: Problem, evaluator: Evaluator) -> Accepts:
    """Whether a choice ``[L]`` loses no more than the objective allows, measured where it says so.

    Args:
        objective: What may be lost.
        problem: With its loss.
        evaluator: Measures assignments on the held-out examples.

    Raises:
        InputError: If accuracy cannot be measured, or there is no score.
    """
    if objective.max_loss is not None:
        most = objective.max_loss
        return lambda columns: is_within(problem.loss_of(columns), most)
    precisions, names = problem.loss.precisions, problem.loss.layers
    # Measured on the same examples: a drop from a published accuracy would compare two data sets.
    original = evaluator.measure(evaluator.uniform(ORIGINAL))
    if objective.max_accuracy_drop is not None and original.accuracy is None:
        raise InputError("max_accuracy_drop needs held-out examples with targets")
    if objective.max_score_drop is not None and evaluator.judge is None:
        raise InputError("max_score_drop needs a score of your own (score, --score)")

    def accepts(columns: Columns) -> bool:
        chosen = {n: precisions[column] for n, column in zip(names, columns.tolist(), strict=True)}
        return keeps(objective, evaluator.measure(chosen), original, evaluator.judge)

    return accepts


def keeps(
    objective: Objective,
    measured: Measurement,
    original: Measurement,
    judge: Judge | None = None,
) -> bool:
    """Whether what is measured loses no more than the objective allows, if it speaks of that.

    Args:
        objective: What may be lost.
        measured: Of an assignment.
        original: Of the original on the same examples.
        judge: The user's own score, where the objective speaks of it.
    """
    if objective.max_score_drop is not None:
        assert judge is not None
        assert measured.score is not None
        return is_within(judge.drop(measured.score), objective.max_score_drop)
    if objective.max_measured_loss is not None:
        return is_within(measured.divergence, objective.max_measured_loss)
    if objective.max_accuracy_drop is None:
        return True
    # As of the original, by ``criterion``.
    assert measured.accuracy is not None
    assert original.accuracy is not None
    # The difference is rounded: an accuracy that dropped by just so much must not be refused.
    return is_within(original.accuracy - objective.max_accuracy_drop, measured.accuracy)
