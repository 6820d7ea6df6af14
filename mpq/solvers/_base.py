"""The interface of every solver."""

from abc import ABC, abstractmethod
from typing import ClassVar

from mpq.problem.problem import Problem
from mpq.problem.solution import Solution


class Solver(ABC):
    """Finds the assignment of least loss within the budgets of a ``Problem``.

    A solver sees numbers only: no model, no file, no torch. Its answer is checked with the
    problem's own arithmetic, so that a ``Solution`` never breaks a budget. One that takes no
    interactions is given the additive problem; one that takes no costs of pairs of layers refuses
    them, and names those that do.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    takes_interactions: ClassVar[bool] = True
    takes_pairs: ClassVar[bool] = True

    @abstractmethod
    def solve(self, problem: Problem) -> Solution:
        """The best assignment that this solver finds.

        Raises:
            SolverError: If the solver itself fails; an infeasible problem is a ``Solution`` with
                ``Status.INFEASIBLE`` and the budgets' shortfalls.
        """
