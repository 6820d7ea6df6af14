"""Asking a solver, which may be another package's."""

from collections.abc import Iterator
from dataclasses import replace

from mpq._support.arrays import Columns
from mpq.errors import SolverError
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.solvers import Solver
from mpq.solvers.additive.default import additive_solver
from mpq.solvers.additive.ilp import IntegerLinearProgram
from mpq.solvers.additive.pulp_backend import available_backends
from mpq.solvers.proofs import best_known, checked, contradiction
from mpq.solvers.quadratic.branch_and_bound import BranchAndBound
from mpq.solvers.quadratic.outer_approximation import OuterApproximation


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


def believed(problem: Problem, solution: Solution, *known: Columns) -> Solution:
    """The solution, or that of another way of solving where an assignment contradicts it.

    What one question of several has found is an assignment that the solver did not know when it
    answered the other one.

    Args:
        problem: What was solved.
        solution: What is claimed of it.
        known: ``[L]`` assignments that were found; those that break a budget do not count.

    Raises:
        SolverError: If every other way is contradicted too, or there is none.
    """
    best = best_known(problem, *known)
    wrong = contradiction(problem, solution.status, solution.columns, solution.bound, best)
    if not wrong:
        return solution
    for other in _others(problem):
        try:
            found = ask(other, problem, *known)
        except SolverError:
            continue
        return replace(found, why=f"{found.solver} solved it again: {solution.solver}, {wrong}")
    return checked(problem, solution, *known)  # which says what is wrong


def _others(problem: Problem) -> Iterator[Solver]:
    """Exact solvers of ours, each another way; with interactions each stops after a minute."""
    if problem.interactions is not None:
        # They share no bound with each other.
        yield BranchAndBound()
        for backend in available_backends():
            yield OuterApproximation(backend=backend)
        return
    yield additive_solver(problem)
    for backend in available_backends():
        yield IntegerLinearProgram(backend)
