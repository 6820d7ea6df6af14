"""The interface of every solver."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import ClassVar, Self, final

from mpq._support.arrays import Array, Columns
from mpq._support.bounds import Bounded
from mpq._support.progress import track
from mpq.errors import InputError
from mpq.problem.budget import Budget
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution

Losses = Callable[[Columns], Array]
"""Losses ``[P]`` of ``P`` assignments at once, ``[P, L]`` columns per layer."""


@final
@dataclass(frozen=True, eq=False)
class MeasuredLosses:
    """Losses that say what they depend on: kept ones go on with the same ones alone.

    Args:
        losses: Of a batch.
        told: What they depend on, by name; asked where losses are kept.
        on_share: The same on a share of the examples (0 to 1), which a seed draws; ``None``: they
            are of all examples alone. A user's own score is of whole networks: there it is the
            metric, which says what is worth a call.
    """

    losses: Losses
    told: Callable[[], Mapping[str, str]]
    on_share: Callable[[float, int], Losses] | None = None

    def __call__(self, assignments: Columns) -> Array:
        """Losses ``[P]`` of assignments ``[P, L]``."""
        return self.losses(assignments)


class Solver(Bounded, ABC):
    """Finds the assignment of least loss within the budgets of a ``Problem``.

    A solver sees numbers only: no model, no file, no torch. Its answer is checked with the
    problem's own arithmetic, so that a ``Solution`` never breaks a budget. One that takes no
    interactions is given the additive problem; one that takes no costs of pairs of layers refuses
    them, and names those that do. What else solvers differ in is asked here, not by their type.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    takes_interactions: ClassVar[bool] = True
    takes_pairs: ClassVar[bool] = True
    is_repeatable: ClassVar[bool] = True
    """Whether one problem after the other may be asked; a search by many trials takes too long."""

    @abstractmethod
    def solve(self, problem: Problem) -> Solution:
        """The best assignment that this solver finds.

        Raises:
            SolverError: If the solver itself fails; an infeasible problem is a ``Solution`` with
                ``Status.INFEASIBLE`` and the budgets' shortfalls.
        """

    @property
    def is_measuring(self) -> bool:
        """Whether the loss is to be measured; ``mpq.search`` then calls ``bind``."""
        return False

    def measuring_s(self, each_s: float) -> float:
        """Seconds that its measurements take at most, each of them so many; ``inf``: not known."""
        # Another package's solver that measures need not know.
        del each_s
        return inf

    def screening_s(self, each_s: float) -> float:
        """Seconds that it measures on shares of the examples at most, besides; all take so many."""
        del each_s
        return 0.0

    def at_most_s(self, problem: Problem) -> float:
        """Wall time in seconds after which it has an answer; ``inf``: it sets itself no limit."""
        del problem
        return inf

    def bind(self, losses: Losses) -> Self:
        """The same solver with the loss that it minimises, where it does measure.

        Args:
            losses: ``[P]`` of a batch of assignments ``[P, L]``; never more at once than the
                solver's ``batch_size``; some may break a budget, on the way to an answer.

        Raises:
            InputError: If this solver knows predicted losses only.
        """
        raise InputError(
            f"{self.name} minimises a predicted loss and measures none ({losses!r}): use the "
            "solver 'evolutionary', 'bayesian' or 'surrogate'"
        )

    def check(self) -> None:
        """Refuses options that a whole search cannot go with, before anything is estimated.

        Raises:
            InputError: If there are such.
        """
        return

    def frontier(
        self, problem: Problem, table: CostTable, limits: Sequence[float]
    ) -> list[Solution]:
        """The answers for several limits on one resource: one problem after the other.

        Args:
            problem: With its other budgets, and none on the resource.
            table: ``[L, B]`` of the resource.
            limits: In the table's unit, rising; each can be met.

        Returns:
            In the limits' order; one without an assignment where nothing was found.
        """
        # A generator, so that the bar moves as limits are solved, not as problems are built.
        asked = (
            problem.with_budgets(*problem.budgets, Budget.of(table, limit))
            for limit in track(limits, f"frontier over {table.name}")
        )
        return [self.solve(each) for each in asked]

    def found_frontier(self, problem: Problem) -> tuple[Solution, ...] | None:
        """What one run found for all amounts of what budgets count; ``None``: not looked for."""
        # Read only by solvers whose single run covers all limits.
        del problem
        return None

    def path(self, problem: Problem) -> tuple[Columns, ...] | None:
        """Steps ``[L]`` of the only way that it goes, from the most precise one on.

        Where there is such a way, a measured criterion is bisected over its steps within the
        budgets, and not over a frontier; ``None``: it looks at all assignments.
        """
        # Read only by solvers that go by a fixed order.
        del problem
        return None
