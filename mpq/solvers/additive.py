"""The additive problem, solved as exactly as is reasonable: what other solvers begin with."""

from mpq.problem import Problem
from mpq.solution import Solution
from mpq.solvers.lagrangian import Lagrangian

_EXACT_CELLS = 600
"""Layers times precisions up to which several budgets are solved to the proved optimum."""
_GAP = 1e-4
_TIME_LIMIT_S = 60.0


def additive_solver(problem: Problem) -> Lagrangian:
    """Exact with one budget; with several budgets and many layers, to a gap of 0.01 %.

    Distances from other assignments (``Problem.differing``) are no such budgets.
    """
    is_small = problem.grouped.allowed.size <= _EXACT_CELLS
    if sum(budget.table.unit != "layers" for budget in problem.budgets) <= 1 or is_small:
        return Lagrangian()
    return Lagrangian(gap=_GAP, time_limit_s=_TIME_LIMIT_S)


def solve_additive(problem: Problem) -> Solution:
    """The answer without interactions; an infeasible problem is recognised exactly."""
    additive = problem.additive()
    return additive_solver(additive).solve(additive)
