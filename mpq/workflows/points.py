"""Assignments that a solver finds, as points of a frontier: predicted, nothing is measured here."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from mpq._support.arrays import Columns
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.quantization.precision import Precision
from mpq.report.frontier import FrontierPoint
from mpq.report.measurement import ComparisonRow
from mpq.solvers import Auto, Solver
from mpq.solvers.additive.default import additive_solver
from mpq.solvers.queries.alternatives import alternatives
from mpq.solvers.queries.frontier import pareto_front, solve_frontier, solve_hull
from mpq.workflows.uniform import compared

FRONTIER: Final = "frontier"
"""Label of the points that are on the frontier."""
POINT_LIMIT_S: Final = 2.0
"""Wall time in seconds of a proof that ``auto`` tries for one of many points."""


def repeatable(solver: Solver, seed: int) -> Solver:
    """A solver that can be asked many times, and without a network: a measured search cannot."""
    return hurried(solver if solver.is_repeatable else Auto(seed=seed))


def hurried(solver: Solver) -> Solver:
    """For one of many points: ``auto`` takes less time, where it was given no time of its own."""
    if isinstance(solver, Auto) and solver.time_limit_s == Auto.time_limit_s:
        return replace(solver, time_limit_s=POINT_LIMIT_S)
    return solver


def frontier_points(
    problem: Problem, table: CostTable, solver: Solver, num_points: int | None
) -> tuple[FrontierPoint, ...]:
    """The least loss at evenly spaced amounts of a resource, or the corners of the hull."""
    if num_points is None:
        found, statuses = _hull(problem, table)
    else:
        found, statuses = solve_frontier(problem, table, solver, num_points)
    return tuple(
        _point(FRONTIER, problem, table, columns, status)
        for columns, status in zip(found, statuses, strict=True)
    )


def _hull(problem: Problem, table: CostTable) -> tuple[list[Columns], list[Status]]:
    """The additive hull; of its corners those that pay with interactions too, if there are any."""
    # The hull is that of a sum; a corner of it need not pay once interactions count.
    additive = problem.additive()
    # Whatever solver the search took: every corner has to be proved.
    corners, statuses = solve_hull(additive, table, additive_solver(additive))
    if problem.interactions is None:
        return corners, statuses
    costs = [table.total(columns) for columns in corners]
    front = pareto_front(costs, [problem.loss_of(columns) for columns in corners])
    # Proved for the additive loss, which is not the one that is shown.
    return [corners[i] for i in front], [Status.FEASIBLE] * len(front)


def found_points(
    problem: Problem, table: CostTable, trials: Sequence[tuple[Columns, float]]
) -> tuple[FrontierPoint, ...]:
    """Of trials, columns ``[L]`` with their losses, those that no other one betters."""
    # No other trial betters them in loss and all costs together; over this one some may be beaten.
    costs = [table.total(columns) for columns, _ in trials]
    chosen = [trials[i] for i in pareto_front(costs, [loss for _, loss in trials])]
    return tuple(
        # The trial's own loss, which may be a measured one; the problem only predicts.
        replace(_point(FRONTIER, problem, table, columns, Status.FEASIBLE), loss=loss)
        for columns, loss in chosen
    )


def alternative_points(
    problem: Problem, table: CostTable, solver: Solver, count: int, min_differing_layers: int
) -> tuple[FrontierPoint, ...]:
    """The best assignments that differ from each other, by rank."""
    found = alternatives(problem, solver, count, min_differing_layers)
    return tuple(
        _point(f"alternative {rank}", problem, table, solution.columns, solution.status)
        for rank, solution in enumerate(found, start=1)
        if solution.columns is not None
    )


def row_point(
    problem: Problem,
    solution: Solution,
    table: CostTable,
    row: ComparisonRow,
    as_far_as_allowed: bool,
) -> FrontierPoint:
    """The result, or a uniform precision (``compared``), beside the frontier over a resource."""
    if row.label == "result":
        assert solution.columns is not None
        columns, status = solution.columns, solution.status
    else:
        columns = compared(problem, Precision.parse(row.label), as_far_as_allowed)
        status = None
    # The limit on this resource is what varies along the curve.
    others = problem.without(table.name).budgets
    return replace(
        _point(row.label, problem, table, columns, status),
        measured=row.measured,
        # What a layer may not take is no choice, whatever it costs.
        meets_others=problem.is_allowed(columns)
        and all(budget.is_met(columns) for budget in others),
    )


def _point(
    label: str, problem: Problem, table: CostTable, columns: Columns, status: Status | None
) -> FrontierPoint:
    cost, loss = table.total(columns), problem.loss_of(columns)
    return FrontierPoint(label, cost, loss, problem.precisions_of(columns), status)
