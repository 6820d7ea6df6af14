"""The additive problem, solved as exactly as is reasonable: what other solvers begin with."""

from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.solvers._base import Solver
from mpq.solvers.additive.ilp import IntegerLinearProgram
from mpq.solvers.additive.lagrangian import Lagrangian

_EXACT_CELLS = 600
"""Groups of tied layers times precisions, up to which several budgets are solved to the proved
optimum."""
_GAP = 1e-4
"""Where to stop above that: with several budgets the gap of the bound itself can be of this size,
and closing it takes an integer program over all cells."""
_PROVED_GROUPS = 2000
"""Up to which one budget is solved to the optimum, whatever that takes: with more that cost the
same, as channels or experts do, it can take minutes and gigabytes."""
_MANY_GROUPS = 20_000
_MANY_GAP = 1e-5
"""Where to stop above 20,000 groups, where the gap of the bound is smaller."""
_TIME_LIMIT_S = 60.0


def additive_solver(problem: Problem, time_limit_s: float | None = None) -> Solver:
    """Exact with one budget; with several budgets and many layers, to a gap of 0.01 %.

    Thousands of groups are solved to 0.01 % with one budget as well, and more than 20,000, such as
    parts of layers, to 0.001 %.

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
    num_groups = len(problem.grouped.members)
    is_single = len(problem.constraints.tables) <= 1 and num_groups <= _PROVED_GROUPS
    if is_single or is_small:
        return Lagrangian(time_limit_s=None if time_limit_s is None else within_s)
    gap = _GAP if num_groups <= _MANY_GROUPS else _MANY_GAP
    return Lagrangian(gap=gap, time_limit_s=within_s)


def solve_additive(problem: Problem, time_limit_s: float | None = None) -> Solution:
    """The answer without interactions; an infeasible problem is recognised exactly."""
    additive = problem.additive()
    return additive_solver(additive, time_limit_s).solve(additive)
