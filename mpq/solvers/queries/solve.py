"""A problem, asked in the ways that users ask, without a network: no torch from here on."""

from collections.abc import Mapping
from dataclasses import replace

from mpq.errors import (
    InfeasibleError,
    InputError,
    SolverError,
    UnknownNameError,
)
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.solvers import Solver
from mpq.solvers.queries.alternatives import alternatives
from mpq.solvers.queries.ask import ask
from mpq.solvers.queries.least_cost import least_cost


def solve(solver: Solver, problem: Problem) -> Solution:
    """A solution that has an assignment.

    Raises:
        InfeasibleError: If there is none within the budgets: which one binds, and by how much.
        SolverError: If the solver found none.
    """
    solution = ask(solver, problem)
    if solution.status is Status.INFEASIBLE:
        raise InfeasibleError(f"{solution.status.value}. {solution.reasons}")
    if solution.columns is None:
        raise SolverError(solution.failure)
    return solution


def answers(
    problem: Problem,
    resources: Mapping[str, CostTable],
    solver: Solver,
    minimize: str | None,
    max_loss: float | None,
    count: int,
    min_differing_layers: int,
) -> list[tuple[Problem, Solution]]:
    """Least loss, or least cost, and the alternatives to it.

    Args:
        problem: The problem, with the budgets that every answer keeps.
        resources: Tables that may be minimised.
        solver: Finds the least loss within budgets.
        minimize: One of the resources, or ``None``: the loss.
        max_loss: What may then be lost.
        count: How many assignments to return at most, the best one included.
        min_differing_layers: In how many layers any two of them differ at least.

    Returns:
        Problems and their solutions; every solution has an assignment.

    Raises:
        InputError: If only one of ``minimize`` and ``max_loss`` is given, or a number is below 1.
        UnknownNameError: If there is no such resource.
        InfeasibleError: If there is no assignment.
        SolverError: If the solver found none.
    """
    if (minimize is None) != (max_loss is None):
        raise InputError("minimize and max_loss go together: what to make small, what may be lost")
    if minimize is None or max_loss is None:
        first = solve(solver, problem)
    elif minimize in resources:
        problem, first = cheapest(problem, resources[minimize], solver, max_loss)
    else:
        raise UnknownNameError("resource", minimize, resources)
    # Below 1 as well, which `alternatives` refuses.
    others = alternatives(problem, solver, count, min_differing_layers) if count != 1 else ()
    # The first alternative is the answer once more; `first` also says what a cost is proved to be.
    return [(problem, first), *((problem, solution) for solution in others[1:])]


def cheapest(
    problem: Problem, resource: CostTable, solver: Solver, max_loss: float
) -> tuple[Problem, Solution]:
    """Least cost in a resource while the predicted loss is within a limit.

    Returns:
        The problem with that cost as one more budget, and its solution.

    Raises:
        InfeasibleError: If no assignment within the budgets loses so little.
        SolverError: If the solver found none.
    """
    found = least_cost(problem, resource, solver, max_loss)
    if found.solution.columns is None:
        raise SolverError(found.solution.failure)
    proof = "nothing proved" if found.bound is None else f"proved at least {found.bound:.6g}"
    why = f"least {resource.name}: {found.cost:.6g} {resource.unit}, {proof}"
    return found.problem, replace(found.solution, why=why)
