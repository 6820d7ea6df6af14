"""Why no assignment meets the budgets: what each would need, and which of them conflict."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from mpq.cost_table import CostTable
from mpq.problem import Problem
from mpq.solution import Shortfall, Solution, Status

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
    rows = []
    for budget, least in zip(problem.budgets, smallest.tolist(), strict=True):
        table = budget.table
        others = tuple(other for other in problem.budgets if other is not budget)
        choice = solve(replace(problem, budgets=others).cheapest(table)).choice
        within = None if choice is None else budget.used(choice)
        rows.append(Shortfall(table.name, table.unit, budget.limit, least, within))
    return tuple(rows)


def _conflict(problem: Problem, solve: Exact) -> tuple[str, ...]:
    """Budgets that cannot be met together, while they could without any one of them.

    The deletion filter (Chinneck and Dravnieks 1991, doi:10.1287/ijoc.3.2.157): what can be left
    out, is.
    """
    table = problem.loss
    nothing = CostTable(
        table.name, table.unit, table.layers, table.precisions, np.zeros(table.values.shape)
    )
    asked, kept = replace(problem, loss=nothing), problem.budgets
    for budget in problem.budgets:
        rest = tuple(other for other in kept if other is not budget)
        without = replace(asked, budgets=rest)
        for dropped in set(problem.budgets) - set(rest):  # their empty cells still count
            without = without.available(dropped.table)
        if solve(without).status is Status.INFEASIBLE:
            kept = rest
    return tuple(budget.table.name for budget in kept)
