"""The Pareto frontier: least loss for every amount of one resource, other budgets held."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mpq._support.arrays import Columns
from mpq._support.bounds import check_whole
from mpq.errors import InfeasibleError, InputError, SolverError
from mpq.problem.budget import Budget
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.problem.tolerances import EQUAL_SUMS, is_within
from mpq.solvers import Solver
from mpq.solvers.additive.default import additive_solver
from mpq.solvers.additive.hull import Hull
from mpq.solvers.queries.ask import ask, believed


def pareto_front(costs: Sequence[float], losses: Sequence[float]) -> list[int]:
    """Indices of the points that no other point beats in both, by rising cost.

    >>> pareto_front([1.0, 2.0, 3.0, 2.5], [9.0, 5.0, 5.0, 4.0])
    [0, 1, 3]
    """
    # Of equal costs the smaller loss comes first: one pass with a strict comparison is enough.
    order = sorted(range(len(costs)), key=lambda i: (costs[i], losses[i]))
    front: list[int] = []
    for index in order:
        if not front or losses[index] < losses[front[-1]]:
            front.append(index)
    return front


def solve_frontier(
    problem: Problem, table: CostTable, solver: Solver, num_points: int
) -> tuple[list[Columns], list[Status]]:
    """Solves for limits that are evenly spaced from the least reachable cost to the most useful.

    Args:
        problem: Its other budgets are held; one on the same resource is replaced.
        table: ``[L, B]`` of the resource.
        solver: Solves the problem for every limit.
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
    check_whole("points", num_points)
    # The ends of the frontier do not depend on the limit that the user gave.
    free = problem.without(table.name)
    best = _found(ask(solver, free.available(table)))
    if problem.interactions is None:  # of all that lose as little, what costs least
        swapped = free.least(table, problem.loss_of(best[0]))
        best = _found(additive_solver(swapped).solve(swapped))
    cheapest = _found(ask(solver, free.cheapest(table)))
    limits = np.linspace(table.total(cheapest[0]), table.total(best[0]), num_points)
    solved = [cheapest, best]
    # The last limit is what the best uses, and the best its answer.
    swept = solver.frontier(free, table, limits[:-1].tolist())
    swept = _believed_sweep(free, table, limits[:-1].tolist(), swept)
    solved += [(each.columns, each.status) for each in swept if each.columns is not None]
    return _front(problem, table, solved)


def _believed_sweep(
    free: Problem, table: CostTable, limits: Sequence[float], swept: Sequence[Solution]
) -> list[Solution]:
    """Each solution, or another where one of the sweep contradicts it: for less, or for as much.

    Raises:
        SolverError: If no other way of solving is right either.
    """
    found = [each.columns for each in swept if each.columns is not None]
    by_loss = sorted(found, key=free.loss_of)
    right = []
    for limit, solution in zip(limits, swept, strict=True):
        affordable = (columns for columns in by_loss if is_within(table.total(columns), limit))
        known = next(affordable, None)
        limited = free.limited(table, limit)
        right.append(believed(limited, solution, *([] if known is None else [known])))
    # What was found instead may contradict others in turn; losses only fall, so that it ends.
    is_same = all(new is old for new, old in zip(right, swept, strict=True))
    return right if is_same else _believed_sweep(free, table, limits, right)


def _front(
    problem: Problem, table: CostTable, solved: list[tuple[Columns, Status]]
) -> tuple[list[Columns], list[Status]]:
    points = [_point(problem, table, columns) for columns, _ in solved]
    front = pareto_front([cost for cost, _ in points], [loss for _, loss in points])
    return [solved[i][0] for i in front], [solved[i][1] for i in front]


def solve_hull(
    problem: Problem, table: CostTable, solver: Solver
) -> tuple[list[Columns], list[Status]]:
    """All corners of the frontier's lower convex hull, other budgets held.

    Without other budgets every corner is the one before with one layer changed: the layer of the
    largest gain per cost (Everett 1963, doi:10.1287/opre.11.3.399), so that all of them take one
    sort. With other budgets, assignments to differ from, or pairs of layers that lose something
    together, each corner is a problem of its own, ``loss + multiplier * cost``:
    between two corners, the one farthest below their line (Aneja and Nair 1979,
    doi:10.1287/mnsc.25.1.73).

    Args:
        problem: Without interactions; a budget on the same resource is left out.
        table: ``[L, B]`` of the resource.
        solver: Exact; solves where one sort is not enough.

    Returns:
        The choices by rising cost, and how the solver ended for each.

    Raises:
        InputError: If there are interactions, or the resource has costs of pairs of layers: their
            frontier has no such hull.
        InfeasibleError: If the other budgets cannot be met.
        SolverError: If the solver finds nothing.
    """
    if problem.interactions is not None:
        raise InputError("the convex hull is that of an additive loss: use problem.additive()")
    if table.pairs:
        raise InputError(
            f"the convex hull is that of what single layers cost, and {table.name} has costs of "
            "pairs of layers: ask for points at evenly spaced limits instead"
        )
    others = problem.without(table.name)
    free = others.available(table)
    # One sort serves where groups are independent: a cut or a pair couples them as a budget does.
    if others.budgets or others.cuts or len(others.grouped.pairwise):
        return _between(free, table, solver)
    grouped = free.with_budgets(Budget.of(table, 0.0)).grouped  # for its costs; no limit is read
    hull = Hull.of(grouped.loss, grouped.costs[0], grouped.allowed)
    columns, corners = hull.start, [grouped.expand(hull.start)]
    rates = hull.gain / hull.cost
    for step, (row, column) in enumerate(zip(hull.row.tolist(), hull.column.tolist(), strict=True)):
        # `expand` indexes, so that corners are copies; this copy keeps the hull as it is.
        columns = columns.copy()
        columns[row] = column
        # Between steps of equal gain per cost lies a point of the edge and no corner.
        if step + 1 == len(rates) or rates[step + 1] < rates[step] * (1 - EQUAL_SUMS):
            corners.append(grouped.expand(columns))
    return corners, [Status.OPTIMAL] * len(corners)


def _between(
    problem: Problem, table: CostTable, solver: Solver
) -> tuple[list[Columns], list[Status]]:
    cheapest, last = _found(ask(solver, problem.cheapest(table))), _found(ask(solver, problem))
    # Of all that cost as little, what has the least loss.
    first = _found(ask(solver, problem.limited(table, table.total(cheapest[0])), cheapest[0]))
    # By their points: where both ends are equal one is left, and no pair to look between.
    corners = {_point(problem, table, end[0]): end for end in (first, last)}
    pairs = [tuple(sorted(corners))]
    while pairs:
        pair = pairs.pop()
        if len(pair) < 2 or pair[0][0] == pair[1][0]:
            continue
        (left_cost, left_loss), (right_cost, right_loss) = pair
        multiplier = (left_loss - right_loss) / (right_cost - left_cost)
        if not multiplier > 0:
            continue
        ends = corners[pair[0]][0], corners[pair[1]][0]
        found = _found(ask(solver, _weighted(problem, table, multiplier), *ends))
        point = _point(problem, table, found[0])
        line = left_loss + multiplier * left_cost
        if point[1] + multiplier * point[0] < line - EQUAL_SUMS * abs(line):
            corners[point] = found
            pairs += [(pair[0], point), (point, pair[1])]
    return _front(problem, table, [corners[point] for point in sorted(corners)])


def _point(problem: Problem, table: CostTable, columns: Columns) -> tuple[float, float]:
    return table.total(columns), problem.loss_of(columns)


def _weighted(problem: Problem, table: CostTable, multiplier: float) -> Problem:
    # What a table cannot run is masked by `available`; its nan would spoil the sum nevertheless.
    values = problem.loss.values + multiplier * np.nan_to_num(table.values)
    return replace(problem, loss=replace(problem.loss, values=values))


def _found(solution: Solution) -> tuple[Columns, Status]:
    if solution.status is Status.INFEASIBLE:
        raise InfeasibleError(f"no assignment meets the other budgets: {solution.reasons}")
    if solution.columns is None:
        raise SolverError(solution.failure)
    return solution.columns, solution.status
