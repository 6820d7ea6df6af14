"""Asking a solver, which may be another package's."""

from mpq._support.arrays import Columns
from mpq.errors import SolverError
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.solvers import Solver
from mpq.solvers.proofs import checked


def ask(solver: Solver, problem: Problem, *known: Columns) -> Solution:
    """What a solver answers, if it contradicts nothing that is known.

    Args:
        solver: Ours or another package's.
        problem: What it is asked.
        known: ``[L]`` assignments that were found before; those that break a budget do not count.

    Raises:
        SolverError: If it is no ``Solution``: which solver, and whose; if its assignment breaks a
            budget, or what it claims is wrong.
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
    if found.columns is not None and not problem.is_feasible(found.columns):
        raise SolverError(
            f"the solver {solver.name!r} answered with an assignment that breaks a budget or rule: "
            "use another solver"
        )
    return checked(problem, found, *known)
