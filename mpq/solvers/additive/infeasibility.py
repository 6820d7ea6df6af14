"""Why no assignment meets the budgets: what each would need, and which of them conflict."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from mpq.problem.budget import Budget
from mpq.problem.problem import Problem
from mpq.problem.solution import Shortfall, Solution, Status

Exact = Callable[[Problem], Solution]
"""An exact solver of additive problems, which may leave out why one is infeasible."""


def explained(problem: Problem, solution: Solution, solve: Exact) -> Solution:
    """An infeasible solution with the shortfall of every budget, and the budgets that conflict.

    Args:
        problem: What cannot be met.
        solution: Says that it is infeasible.
        solve: Takes no interactions, and does not call this.
    """
    additive = problem.additive()
    found = _shortfalls(additive, solve)
    return replace(solution, shortfalls=found, conflict=_conflict(additive, solve))


def _shortfalls(problem: Problem, solve: Exact) -> tuple[Shortfall, ...]:
    grouped = problem.grouped
    smallest = np.where(grouped.allowed, grouped.costs, np.inf).min(axis=2).sum(axis=1)  # [R]
    rows: dict[str, Shortfall] = {}
    for budget, least in zip(problem.budgets, smallest.tolist(), strict=True):
        table = budget.table
        if table.pairs:
            least = _least(problem, budget, least, solve)
        others = tuple(b for b in problem.budgets if b.resource != budget.resource)
        columns = solve(replace(problem, budgets=others).cheapest(table)).columns
        within = None if columns is None else budget.used(columns)
        row = Shortfall(table.name, table.unit, budget.limit, least, within)
        # Of a maximum over several tables, the one that reaches least far down.
        rows[budget.resource] = max(rows.get(budget.resource, row), row, key=_reach)
    return tuple(rows.values())


def _reach(row: Shortfall) -> float:
    return max(row.smallest, row.smallest_within_others or row.smallest)


def _least(problem: Problem, budget: Budget, floor: float, solve: Exact) -> float:
    """The least that any assignment uses of one budget; a bound of it where a solver is stopped.

    Args:
        problem: Of which only the empty cells of other budgets count.
        budget: Whose table has costs of pairs.
        floor: Sum of the least that every group uses alone.
        solve: Solves.
    """
    free = replace(problem, budgets=()).cheapest(budget.table)
    for other in problem.budgets:
        free = free.available(other.table)
    found = solve(free)
    if found.columns is not None and found.status is Status.OPTIMAL:
        return budget.used(found.columns)
    return max(floor, floor if found.bound is None else found.bound)


def _conflict(problem: Problem, solve: Exact) -> tuple[str, ...]:
    """Budgets that cannot be met together, while they could without any one of them.

    The deletion filter (Chinneck and Dravnieks 1991, doi:10.1287/ijoc.3.2.157): what can be left
    out, is.
    """
    values = np.zeros_like(problem.loss.values)
    nothing = replace(problem.loss, values=values, constant=0.0, pairs=())
    asked, kept = replace(problem, loss=nothing), problem.budgets
    for resource in dict.fromkeys(budget.resource for budget in problem.budgets):
        rest = tuple(budget for budget in kept if budget.resource != resource)
        without = replace(asked, budgets=rest)
        for dropped in set(problem.budgets) - set(rest):  # their empty cells still count
            without = without.available(dropped.table)
        if solve(without).status is Status.INFEASIBLE:
            kept = rest
    return tuple(dict.fromkeys(budget.resource for budget in kept))
