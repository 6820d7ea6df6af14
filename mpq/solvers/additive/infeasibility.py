"""Why no assignment meets the budgets: what each would need, and which of them conflict."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from mpq.problem.budget import Budget
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.problem.solution import Shortfall, Solution, Status

Exact = Callable[[Problem], Solution]
"""An exact solver of additive problems, which may leave out why one is infeasible."""


def explained(problem: Problem, solution: Solution, solve: Exact) -> Solution:
    """An infeasible solution with the shortfall of every budget, and the budgets that conflict.

    Args:
        problem: The problem whose budgets cannot be met.
        solution: Says that it is infeasible.
        solve: Takes no interactions, and does not call this.
    """
    additive = problem.additive()
    found = _shortfalls(additive, solve)
    return replace(solution, shortfalls=found, conflict=_conflict(additive, solve))


def _shortfalls(problem: Problem, solve: Exact) -> tuple[Shortfall, ...]:
    grouped = problem.grouped
    smallest = np.where(grouped.allowed, grouped.costs, np.inf).min(axis=2).sum(axis=1)  # [R]
    floors = iter(smallest.tolist())  # a row for every table of every budget, then for cuts
    return tuple(
        # Of a maximum over steps, the step that reaches least far down.
        max(
            (_shortfall(problem, budget, step, next(floors), solve) for step in budget.tables),
            key=_reach,
        )
        for budget in problem.budgets
    )


def _shortfall(
    problem: Problem, budget: Budget, table: CostTable, floor: float, solve: Exact
) -> Shortfall:
    """Of one step of a budget; of the only one where the resource is a sum.

    Args:
        problem: The problem whose budgets cannot be met, without interactions.
        budget: One of its budgets.
        table: ``[L, B]``, one of the budget's.
        floor: Sum of the least that every group uses of it alone.
        solve: Exact solver that may leave out why a problem is infeasible.
    """
    # Without pairs every group can take its least whatever the others do: the sum is reached.
    least = _least(problem, table, floor, solve) if table.pairs else floor
    others = (b for b in problem.budgets if b is not budget)
    columns = solve(problem.with_budgets(*others).cheapest(table)).columns
    within = None if columns is None else table.total(columns)
    is_sum = table is budget.sum_table
    step, constant = ("", table.constant) if is_sum else (table.name, 0.0)
    return Shortfall(budget.resource, budget.unit, budget.limit, least, within, step, constant)


def _reach(row: Shortfall) -> float:
    held = row.smallest_within_others
    return row.smallest if held is None else max(row.smallest, held)


def _least(problem: Problem, table: CostTable, floor: float, solve: Exact) -> float:
    """The least that any assignment uses of one table; a bound of it where a solver is stopped.

    Args:
        problem: The problem, of which only the empty cells of other budgets count.
        table: ``[L, B]`` with costs of pairs.
        floor: Sum of the least that every group uses alone.
        solve: Exact solver that may leave out why a problem is infeasible.
    """
    # Cuts go as well: what a budget needs is told of it alone.
    found = solve(replace(problem, cuts=()).with_budgets().cheapest(table))
    if found.columns is not None and found.status is Status.OPTIMAL:
        return table.total(found.columns)
    return max(floor, floor if found.bound is None else found.bound)


def _conflict(problem: Problem, solve: Exact) -> tuple[str, ...]:
    """Budgets that cannot be met together, while they could without any one of them.

    The deletion filter (Chinneck and Dravnieks 1991, doi:10.1287/ijoc.3.2.157): what can be left
    out, is.
    """
    # Whether there is an answer does not depend on the loss, and with none any answer is optimal.
    values = np.zeros_like(problem.loss.values)
    nothing = replace(problem.loss, values=values, constant=0.0, pairs=())
    asked, kept = replace(problem, loss=nothing), problem.budgets
    for budget in problem.budgets:
        rest = tuple(other for other in kept if other is not budget)
        if solve(asked.with_budgets(*rest)).status is Status.INFEASIBLE:
            kept = rest
    return tuple(budget.resource for budget in kept)
