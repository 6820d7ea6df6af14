"""The least amount of a resource at which the loss is still acceptable."""

from collections.abc import Callable
from dataclasses import replace

from mpq._support.arrays import Columns
from mpq.errors import InputError
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.problem.tolerances import is_within
from mpq.quantization.precision import ORIGINAL
from mpq.solvers import Solver
from mpq.solvers.queries.least_cost import least_cost_measured
from mpq.solvers.queries.solve import cheapest
from mpq.workflows.evaluator import Evaluator
from mpq.workflows.objective import Objective

# bisection over them takes six or seven measurements of the network
FRONTIER_POINTS = 64


def minimize(
    objective: Objective, problem: Problem, table: CostTable, solver: Solver, evaluator: Evaluator
) -> tuple[Problem, Solution]:
    """The problem with the least cost as one more budget, and its solution.

    Args:
        objective: What is minimised, and what may be lost.
        problem: With its loss, and the budgets that hold besides.
        table: ``[L, B]`` of the objective's resource.
        solver: Finds the least loss at a cost, and the points of the frontier.
        evaluator: Measures assignments on the held-out examples.

    Raises:
        InputError: If accuracy cannot be measured.
        InfeasibleError: If no assignment within the budgets is good enough.
        SolverError: If the solver finds nothing.
    """
    # A predicted sum can change places with the cost, exactly; a measured loss has to be tried.
    if objective.max_loss is not None:
        return cheapest(problem, table, solver, objective.max_loss)
    is_acceptable = _criterion(objective, problem, evaluator)
    found = least_cost_measured(problem, table, solver, is_acceptable, FRONTIER_POINTS)
    why = f"least {table.name}: {found.num_tried} points of the frontier were measured"
    return found.problem, replace(found.solution, why=why)


def _criterion(
    objective: Objective, problem: Problem, evaluator: Evaluator
) -> Callable[[Columns], bool]:
    precisions, names = problem.loss.precisions, problem.loss.layers

    def measured(columns: Columns) -> tuple[float, float | None]:
        found = evaluator.measure(
            {n: precisions[column] for n, column in zip(names, columns.tolist(), strict=True)}
        )
        return found.divergence, found.accuracy

    if objective.max_measured_loss is not None:
        limit = objective.max_measured_loss
        return lambda columns: is_within(measured(columns)[0], limit)
    # Measured on the same examples: a drop from a published accuracy would compare two data sets.
    original = evaluator.measure(evaluator.uniform(ORIGINAL)).accuracy
    if original is None or objective.max_accuracy_drop is None:
        raise InputError("max_accuracy_drop needs held-out examples with targets")
    # every assignment has the original's targets, so that an accuracy is there for all or for none
    least = original - objective.max_accuracy_drop
    # The difference is rounded: an accuracy that dropped by just so much must not be refused.
    return lambda columns: is_within(least, measured(columns)[1] or 0.0)
