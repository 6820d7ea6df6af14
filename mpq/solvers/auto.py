"""The solver that fits the problem."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

from mpq.errors import InputError
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.solvers._base import Solver
from mpq.solvers.additive.default import additive_solver
from mpq.solvers.quadratic.branch_and_bound import BranchAndBound
from mpq.solvers.quadratic.local_search import LocalSearch
from mpq.solvers.quadratic.outer_approximation import OuterApproximation

_PROVED_MOVES = 160
"""Precisions of all layers, up to which real networks' interactions are proved in seconds."""
_THOROUGH_MOVES = 300
"""Up to which the local search descends 400 times within seconds."""
_LINKED_MOVES = 600
"""Up to which the relaxation of the outer approximation is solved in seconds."""
_FEW_RESTARTS = 20
"""Of the local search on more moves than that, where each restart has more exchanges to look at."""
_TIME_LIMIT_S = 20.0
"""Of a proof: a frontier has many."""


@final
@dataclass(frozen=True)
class Auto(Solver):
    """Takes the solver that proves most within seconds, and says why (``Solution.why``).

    A sum over layers goes to ``lagrangian``, or to ``ilp`` where pairs of layers have costs of
    their own, as conversions between their formats have; losses with interactions to
    ``branch-and-bound`` where all layers together have up to 160 precisions, else to
    ``local-search``; with costs of pairs to ``outer-approximation`` between 160 and 600 precisions,
    because the exchanges of a local search rarely move a whole block of layers to another format.

    Args:
        seed: Seed of the local search.

    Raises:
        InputError: If the seed is negative.
    """

    name: ClassVar[str] = "auto"
    summary: ClassVar[str] = "picks the solver that proves most within seconds (default)"

    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InputError(f"auto needs seed >= 0; got {self.seed}")

    def solve(self, problem: Problem) -> Solution:
        """See ``Solver.solve``; the solution names the solver that was taken, and why."""
        solver, why = self._picked(problem)
        return replace(solver.solve(problem), why=f"auto took {solver.name}: {why}")

    def _picked(self, problem: Problem) -> tuple[Solver, str]:
        if problem.interactions is None:
            pairs = ", with costs of pairs of layers" if len(problem.grouped.pairwise) else ""
            return additive_solver(problem), f"the loss is a sum over layers{pairs}"
        # Their weight is 0 then: the sum over layers is solved, and proved, before any branching.
        if problem.interactions.shrinkage == 1:
            return BranchAndBound(seed=self.seed), "the interactions are shrunk away"
        # Tied layers count once and forbidden cells not at all: this is the size of the relaxation.
        num_moves = int(problem.grouped.allowed.sum())
        pairs = ", with costs of pairs of layers" if len(problem.grouped.pairwise) else ""
        # Asked first, pairs or not: of the two exact solvers this one has the tighter relaxation.
        if num_moves <= _PROVED_MOVES:
            solver = BranchAndBound(time_limit_s=_TIME_LIMIT_S, seed=self.seed)
            return solver, f"interactions of {num_moves} choices{pairs}"
        if pairs and num_moves <= _LINKED_MOVES:
            why = f"interactions of {num_moves} choices{pairs}"
            return OuterApproximation(time_limit_s=_TIME_LIMIT_S), why
        why = f"interactions of {num_moves} choices, too many to prove"
        if num_moves <= _THOROUGH_MOVES:
            return LocalSearch(seed=self.seed), why
        return LocalSearch(_FEW_RESTARTS, self.seed), why
