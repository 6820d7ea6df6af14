"""What the solvers of interactions share: the additive answer, from which each of them begins."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from threadpoolctl import ThreadpoolController

from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.solvers.additive.default import solve_additive
from mpq.solvers.proofs import best_known, checked, contradiction


def from_additive(
    problem: Problem, name: str, search: Callable[[Problem, Solution], Solution]
) -> Solution:
    """The additive answer where there is no more to say, else what a search makes of it.

    Linear algebra runs on one thread: with a few hundred rows, threads only wait for each other.

    Args:
        problem: With interactions, or without.
        name: Name of the solver, for messages.
        search: Takes the problem, with interactions that are not shrunk away, and the additive
            solution, which has an assignment.

    Raises:
        SolverError: If what the search proves contradicts an assignment that is known.
    """
    start = time.perf_counter()
    with _libraries().limit(limits=1, user_api="blas"):
        exact, interactions = solve_additive(problem), problem.interactions
        # At a shrinkage of 1 the interactions have no weight, and the sum over layers is solved.
        if exact.columns is None or interactions is None or interactions.shrinkage == 1:
            return replace(exact, solver=f"{name} ({exact.solver})")
        # A uniform precision may cancel errors that the additive answer adds up.
        known = best_known(problem, exact.columns)
        assert known is not None
        exact = replace(exact, columns=known)
        found = search(problem, exact)
        assert found.columns is not None
        best = best_known(problem, found.columns, known)
        if contradiction(problem, found.status, found.columns, found.bound, best):
            # The search builds on what was proved of the sum over layers: now it has to do without.
            found = search(problem, replace(exact, bound=None))
    assert found.columns is not None
    checked(problem, found, found.columns, known)
    # Above the loss, but not a contradiction: rounding.
    bound = None if found.bound is None else min(found.bound, found.loss)
    return replace(found, bound=bound, seconds=time.perf_counter() - start)


@cache
def _libraries() -> ThreadpoolController:
    """Those of linear algebra, all loaded by the imports of the solvers.

    Looked for once: a process with many libraries takes longer to list them than a small problem
    takes to be solved.
    """
    return ThreadpoolController()
