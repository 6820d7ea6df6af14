"""The solver that fits the problem."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

from mpq.errors import InputError
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.solvers._base import Solver
from mpq.solvers.additive.answers import check_effort
from mpq.solvers.additive.default import additive_solver
from mpq.solvers.quadratic.branch_and_bound import BranchAndBound
from mpq.solvers.quadratic.local_search import LocalSearch
from mpq.solvers.quadratic.outer_approximation import OuterApproximation

_PROVED_MOVES = 160
"""Precisions of all layers, up to which real networks' interactions are proved in seconds."""
_THOROUGH_MOVES = 300
"""Up to which the local search descends 400 times within seconds."""
_THOROUGH_RESTARTS = 400
_FEW_RESTARTS = 20
"""Of the local search on more moves than that, where each restart has more exchanges to look at."""
_LIFTED_MOVES = 1500
"""Up to which an iteration on products of all pairs of moves takes less than seconds."""
_LINEAR_MOVES = 3100
"""Up to which linear and integer programs close what the convex relaxation leaves open."""
_GAP = 1e-3
"""Of the loss: what is left open where a proof of hundreds of layers would take its time for it."""
_SEARCH_LIMITS = 3.0
"""Of a local search, in those of a proof."""


@final
@dataclass(frozen=True)
class Auto(Solver):
    """Takes the solver that proves most within seconds, and says why (``Solution.why``).

    A sum over layers goes to ``lagrangian``, or to ``ilp`` where pairs of layers have costs of
    their own, as conversions between their formats have. Losses with interactions go to
    ``branch-and-bound`` where all layers together have up to 160 precisions. Above, the rows of the
    factor decide, which are examples: fewer than layers leave only so many layers undecided in the
    convex relaxation, and ``outer-approximation`` closes the rest, up to 3,100 precisions; with
    more rows that relaxation is loose, and ``branch-and-bound`` has a tighter one, up to 1,500.
    Beyond, ``local-search`` has the bound of the convex relaxation, which is the closer the more
    layers there are. Costs of pairs go to ``outer-approximation``, because the exchanges of a local
    search rarely move a whole block of layers to another format. A proof stops after 20 s, a local
    search after a minute, and says so (``benchmarks/solvers_at_scale.json``).

    Args:
        seed: Seed of the local search.
        time_limit_s: Wall time in seconds of a proof; a local search takes up to three times as
            much.

    Raises:
        InputError: If the seed is negative, or the time limit is no time.
    """

    name: ClassVar[str] = "auto"
    summary: ClassVar[str] = "picks the solver that proves most within seconds (default)"

    seed: int = 0
    time_limit_s: float = 20.0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InputError(f"auto needs seed >= 0; got {self.seed}")
        check_effort(self.name, 0.0, self.time_limit_s)

    def solve(self, problem: Problem) -> Solution:
        """See ``Solver.solve``; the solution names the solver that was taken, and why."""
        solver, why = self._picked(problem)
        return replace(solver.solve(problem), why=f"auto took {solver.name}: {why}")

    def at_most_s(self, problem: Problem) -> float:
        """See ``Solver.at_most_s``: of the solver that it takes."""
        return self._picked(problem)[0].at_most_s(problem)

    def _picked(self, problem: Problem) -> tuple[Solver, str]:
        if problem.interactions is None:
            pairs = ", with costs of pairs of layers" if len(problem.grouped.pairwise) else ""
            return additive_solver(problem), f"the loss is a sum over layers{pairs}"
        # Their weight is 0 then: the sum over layers is solved, and proved, before any branching.
        if problem.interactions.shrinkage == 1:
            return BranchAndBound(seed=self.seed), "the interactions are shrunk away"
        # Tied layers count once and forbidden cells not at all: this is the size of the relaxation.
        num_moves = int(problem.grouped.allowed.sum())
        has_pairs = len(problem.grouped.pairwise) > 0
        why = f"interactions of {num_moves} choices"
        why += ", with costs of pairs of layers" if has_pairs else ""
        # Asked first, pairs or not: of the two exact solvers this one has the tighter relaxation.
        if num_moves <= _PROVED_MOVES:
            return BranchAndBound(time_limit_s=self.time_limit_s, seed=self.seed), why
        restarts = _THOROUGH_RESTARTS if num_moves <= _THOROUGH_MOVES else _FEW_RESTARTS
        num_rows, num_groups = len(problem.interactions.factor), len(problem.grouped.members)
        if not has_pairs:
            why += f" and {num_rows} rows"
        if num_moves <= _LINEAR_MOVES and (has_pairs or num_rows < num_groups):
            linear = OuterApproximation(_GAP, self.time_limit_s, "auto", restarts, self.seed)
            return linear, why
        if num_moves <= _LIFTED_MOVES:
            return BranchAndBound(_GAP, self.time_limit_s, restarts, self.seed), why
        search = LocalSearch(restarts, self.seed, _SEARCH_LIMITS * self.time_limit_s)
        return search, f"{why}, too many to prove"
