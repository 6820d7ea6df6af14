"""The Pareto frontier: least loss for every amount of one resource, other budgets held."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from mpq.budget import Budget, total
from mpq.cost_table import CostTable
from mpq.errors import InfeasibleError, InputError, SolverError
from mpq.evaluation import Measurement
from mpq.precision import Precision
from mpq.problem import Choice, Problem
from mpq.progress import track
from mpq.solution import Solution, Status
from mpq.solvers import Solver


@final
@dataclass(frozen=True)
class FrontierPoint:
    """One assignment on the frontier, or beside it for comparison.

    Args:
        label: ``frontier``, ``result``, or a uniform precision.
        cost: What it uses of the frontier's resource; ``nan`` where the device cannot run it.
        loss: Predicted, in the loss table's unit.
        precisions: Layer name to precision.
        status: How the solver ended; ``None`` for points that nobody solved for.
        measured: On held-out examples, where asked.
        meets_others: Whether it stays within the other budgets; every frontier point does.
    """

    label: str
    cost: float
    loss: float
    precisions: dict[str, Precision]
    status: Status | None = None
    measured: Measurement | None = None
    meets_others: bool = True


@final
@dataclass(frozen=True)
class Frontier:
    """Least loss for every amount of a resource.

    Args:
        resource: Name of the resource.
        unit: Unit of ``cost``.
        loss_unit: Unit of ``loss``.
        points: Sorted by cost; each loses strictly less than the one before it.
        others: The chosen assignment and the uniform precisions.
    """

    resource: str
    unit: str
    loss_unit: str
    points: tuple[FrontierPoint, ...]
    others: tuple[FrontierPoint, ...] = ()

    def all_points(self) -> tuple[FrontierPoint, ...]:
        """The frontier, then the others."""
        return self.points + self.others


def pareto_front(costs: Sequence[float], losses: Sequence[float]) -> list[int]:
    """Indices of the points that no other point beats in both, by rising cost.

    >>> pareto_front([1.0, 2.0, 3.0, 2.5], [9.0, 5.0, 5.0, 4.0])
    [0, 1, 3]
    """
    order = sorted(range(len(costs)), key=lambda i: (costs[i], losses[i]))
    front: list[int] = []
    for index in order:
        if not front or losses[index] < losses[front[-1]]:
            front.append(index)
    return front


def solve_frontier(
    problem: Problem, table: CostTable, solver: Solver, num_points: int
) -> tuple[list[Choice], list[Status]]:
    """Solves for limits that are evenly spaced from the least reachable cost to the most useful.

    Args:
        problem: Its other budgets are held; one on the same resource is replaced.
        table: ``[L, B]`` of the resource.
        solver: Solves every point.
        num_points: Limits to solve for; equal answers are dropped.

    Returns:
        The choices on the front by rising cost, and how the solver ended for each.

    Raises:
        InputError: If fewer than two points are asked for.
        InfeasibleError: If the other budgets cannot be met.
        SolverError: If the solver finds nothing.
    """
    if num_points < 2:
        raise InputError(f"a frontier has at least 2 points; got {num_points}")
    held = tuple(b for b in problem.budgets if b.table.name != table.name)
    free = replace(problem, budgets=held)
    best = _found(solver.solve(free.available(table)))
    cheapest = _found(solver.solve(free.cheapest(table)))
    limits = np.linspace(total(table, cheapest[0]), total(table, best[0]), num_points)
    solved = [cheapest, best]
    for limit in track(limits.tolist(), f"frontier over {table.name}"):
        solution = solver.solve(replace(free, budgets=(*held, Budget(table, limit))))
        if solution.choice is not None:
            solved.append((solution.choice, solution.status))
    costs = [total(table, choice) for choice, _ in solved]
    losses = [problem.loss_of(choice) for choice, _ in solved]
    front = pareto_front(costs, losses)
    return [solved[i][0] for i in front], [solved[i][1] for i in front]


def _found(solution: Solution) -> tuple[Choice, Status]:
    if solution.status is Status.INFEASIBLE:
        shortfalls = "; ".join(map(str, solution.shortfalls)) or solution.status.value
        raise InfeasibleError(f"no assignment meets the other budgets: {shortfalls}")
    if solution.choice is None:
        raise SolverError(f"{solution.solver}: {solution.status.value}")
    return solution.choice, solution.status
