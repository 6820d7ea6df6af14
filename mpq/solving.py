"""A problem, asked in the ways that users ask, without a network: no torch from here on."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpq.alternatives import alternatives
from mpq.budget import binding
from mpq.cost_table import CostTable
from mpq.errors import (
    FileFormatError,
    InfeasibleError,
    InputError,
    SolverError,
    UnknownNameError,
)
from mpq.least_cost import least_cost
from mpq.long_table import LongTable
from mpq.problem import Problem
from mpq.solution import Solution, Status
from mpq.solvers import Solver


def load_problem(path: Path, limits: Sequence[str] = ()) -> tuple[Problem, dict[str, CostTable]]:
    """Reads ``problem.json`` of a search, or a CSV of ``Problem.from_csv``.

    Args:
        path: Ends in ``.json`` or ``.csv``.
        limits: In place of the file's; a CSV has none of its own.

    Returns:
        The problem, and the tables of all resources that the file knows.

    Raises:
        FileFormatError: If the file cannot be read or is neither.
        LimitError: If a limit is misspelled or has the wrong unit.
        UnknownNameError: If a limit is on a resource that the file does not have.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"cannot read {path}: {error}") from error
    if path.suffix == ".csv":
        table = LongTable.from_csv(text)
        return Problem.from_table(table, limits), table.resources
    if path.suffix == ".json":
        found = Problem.from_json(text).within(limits)
        sums = (b.table for b in found.budgets if b.resource == b.table.name)
        return found, {table.name: table for table in sums}
    raise FileFormatError(f"{path} is neither .json (a problem) nor .csv (a table of layers)")


def solve(solver: Solver, problem: Problem) -> Solution:
    """A solution that has an assignment.

    Raises:
        InfeasibleError: If there is none within the budgets: which one binds, and by how much.
        SolverError: If the solver found none.
    """
    solution = solver.solve(problem)
    if solution.status is Status.INFEASIBLE:
        raise InfeasibleError(f"{solution.status.value}. {solution.reasons}")
    if solution.choice is None:
        raise SolverError(f"{solution.solver}: {solution.status.value}")
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
        problem: With its budgets.
        resources: Tables that may be minimised.
        solver: Solves.
        minimize: One of the resources, or ``None``: the loss.
        max_loss: What may then be lost.
        count: How many assignments.
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
    others = alternatives(problem, solver, count, min_differing_layers) if count != 1 else ()
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
    if found.solution.choice is None:
        raise SolverError(f"{found.solution.solver}: {found.solution.status.value}")
    proof = "nothing proved" if found.bound is None else f"proved at least {found.bound:.6g}"
    why = f"least {resource.name}: {found.cost:.6g} {resource.unit}, {proof}"
    return found.problem, replace(found.solution, why=why)


def record(problem: Problem, solution: Solution) -> dict[str, Any]:
    """JSON-ready: the assignment with its loss, bound, budgets, and how it was found."""
    assert solution.choice is not None
    return {
        "status": solution.status.name.lower(),
        "solver": solution.solver,
        "why": solution.why,
        f"predicted_loss_{problem.loss.unit}": solution.loss,
        f"bound_{problem.loss.unit}": solution.bound,
        "gap": solution.gap,
        "seconds": solution.seconds,
        "budgets": [
            {
                "resource": budget.resource,
                "unit": budget.table.unit,
                "limit": budget.limit,
                "used": budget.used(solution.choice),
            }
            for budget in binding(problem.budgets, solution.choice)
        ],
        "precisions": {n: str(p) for n, p in solution.precisions(problem).items()},
    }
