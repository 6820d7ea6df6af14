"""Asking a solver, which may be another package's."""

from mpq.errors import SolverError
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.solvers import Solver


def ask(solver: Solver, problem: Problem) -> Solution:
    """What a solver answers.

    Raises:
        SolverError: If it is no ``Solution``: which solver, and whose.
    """
    # mypy holds our own solvers to it; another package need not be checked by anything.
    found: object = solver.solve(problem)
    if not isinstance(found, Solution):
        package = type(solver).__module__.partition(".")[0]
        raise SolverError(
            f"the solver {solver.name!r} of the package {package} returned a "
            f"{type(found).__name__}; `solve` returns a mpq.Solution: mend that package, or use "
            "another solver"
        )
    return found
