"""The solver that fits the problem."""

from dataclasses import dataclass
from typing import ClassVar, final

from mpq.problem import Problem
from mpq.solution import Solution
from mpq.solvers._base import Solver
from mpq.solvers.lagrangian import Lagrangian
from mpq.solvers.local_search import LocalSearch


@final
@dataclass(frozen=True)
class Auto(Solver):
    """Lagrangian relaxation, exact, where the loss is a sum over layers; else the local search.

    Args:
        seed: Of the local search.
    """

    name: ClassVar[str] = "auto"
    summary: ClassVar[str] = (
        "lagrangian where the loss is additive, local-search for interactions (default)"
    )

    seed: int = 0

    def solve(self, problem: Problem) -> Solution:
        """See ``Solver.solve``; the solution names the solver that was taken."""
        if problem.interactions is None:
            return Lagrangian().solve(problem)
        return LocalSearch(seed=self.seed).solve(problem)
