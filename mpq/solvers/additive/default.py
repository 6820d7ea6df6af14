"""The additive problem, solved as exactly as is reasonable: what other solvers begin with."""

from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.solvers._base import Solver
from mpq.solvers.additive.ilp import IntegerLinearProgram
from mpq.solvers.additive.lagrangian import MANY_ROWS, Lagrangian

_EXACT_CELLS = 600
"""Groups of tied layers times precisions, up to which several budgets are solved to the proved
optimum."""
_GAP = 1e-4
"""Where to stop above that: with several budgets the gap of the bound itself can be of this size,
and closing it takes an integer program over all cells."""
_MANY_GAP = 1e-5
"""The same above 20,000 groups, where the gap of the bound is smaller: with one budget as well, as
proving the optimum can take minutes where many of them cost the same."""
_TIME_LIMIT_S = 60.0


def additive_solver(problem: Problem, time_limit_s: float | None = None) -> Solver:
    """Exact with one budget; with several budgets and many layers, to a gap of 0.01 %.

    Parts of layers, of which there are more than 20,000, are solved to 0.001 %.

    Distances from other assignments (``Problem.cuts``) are no such budgets, every step of a
    maximum over steps is one. Costs of pairs take an integer program, which is stopped after
    a minute.

    Args:
        problem: Whose size decides.
        time_limit_s: Wall time in seconds, where that is less than a minute.
    """
    # Groups, not layers: ties shrink the program that has to be solved.
    is_small = problem.grouped.allowed.size <= _EXACT_CELLS
    within_s = _TIME_LIMIT_S if time_limit_s is None else min(_TIME_LIMIT_S, time_limit_s)
    if len(problem.grouped.pairwise):
        return IntegerLinearProgram(time_limit_s=within_s, gap=0.0 if is_small else _GAP)
    if len(problem.grouped.members) > MANY_ROWS:
        return Lagrangian(gap=_MANY_GAP, time_limit_s=within_s)
    if len(problem.constraints.tables) <= 1 or is_small:
        return Lagrangian(time_limit_s=None if time_limit_s is None else within_s)
    return Lagrangian(gap=_GAP, time_limit_s=within_s)


def solve_additive(problem: Problem, time_limit_s: float | None = None) -> Solution:
    """The answer without interactions; an infeasible problem is recognised exactly."""
    additive = problem.additive()
    return additive_solver(additive, time_limit_s).solve(additive)
