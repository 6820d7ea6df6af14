"""What a solver that measures takes at most, of a problem that may have few assignments."""

from math import isfinite, prod
from typing import Final

from mpq.problem.problem import Problem
from mpq.solvers import Solver

_MANY: Final = 10**9
"""Assignments that no solver tries; a product over hundreds of layers would be no float."""


def measuring_s(solver: Solver, each_s: float, problem: Problem) -> float:
    """Seconds that all its measurements take at most, also those on few examples; see ``trials_s``.

    Args:
        solver: That measures.
        each_s: Of one measurement on all examples.
        problem: That it is asked; its losses do not count.
    """
    return trials_s(solver, each_s, problem) + solver.screening_s(each_s)


def trials_s(solver: Solver, each_s: float, problem: Problem) -> float:
    """Seconds that its measurements on all examples take at most; ``inf``: not known.

    Not longer than all assignments of the problem, within its limits or not, take: what was
    measured once is known.

    Args:
        solver: That measures.
        each_s: Of one measurement.
        problem: That it is asked; its losses do not count.
    """
    seconds = solver.measuring_s(each_s)
    if not isfinite(seconds):
        return seconds
    count: int = prod(problem.grouped.allowed.sum(axis=1).tolist())
    return min(seconds, min(count, _MANY) * each_s)
