"""A solver of another package: somebody else's answer, under its own name."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.solvers import SOLVERS, Solver


@final
@dataclass(frozen=True)
class ToySolver(Solver):
    """Asks another solver.

    Args:
        other: Which one.
    """

    name: ClassVar[str] = "toy-solver"
    summary: ClassVar[str] = "asks another solver"

    other: str = "lagrangian"

    def solve(self, problem: Problem) -> Solution:
        """See ``Solver.solve``."""
        return replace(SOLVERS.build(self.other).solve(problem), solver=self.name)
