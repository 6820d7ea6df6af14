"""Local search for losses with interactions: exchanges of one or two precisions at a time."""

import time
from dataclasses import dataclass, replace
from typing import ClassVar, final

import numpy as np
import numpy.typing as npt

from mpq.budget import ROUNDING
from mpq.errors import InputError
from mpq.problem import Choice, Problem
from mpq.progress import track
from mpq.solution import Solution, Status
from mpq.solvers._base import Solver
from mpq.solvers.ilp import IntegerLinearProgram

Array = npt.NDArray[np.float64]

_MAX_PAIRED = 2000
"""Moves (layers times precisions) among which all pairs are tried; above, a random share is."""


@final
@dataclass(frozen=True)
class LocalSearch(Solver):
    r"""Improves the exact additive answer where errors of different layers add up or cancel.

    The loss is a convex quadratic of the one-hot choice ``x``,

    .. math:: D(x) = s^T x + \tfrac12 (1 - \lambda) \, (x^T G x - \mathrm{diag}(G)^T x),
        \quad G = R^T R / S

    so that with :math:`h = G x` the change of any single move, and of any pair of moves, is a few
    additions. The best move or pair within the budgets is taken until none lowers the loss; then
    random layers are changed and the descent begins anew (iterated local search, Lourenco et al.
    2003, doi:10.1007/0-306-48056-5_11), from the best answer so far. A loss without interactions is
    already solved by the ILP. The bound leaves out :math:`x^T G x`, which is at least 0: the share
    :math:`\lambda` of the ILP's bound, and what a table that is not the diagonal's adds at least.

    Args:
        num_restarts: Descents after the first.
        seed: Of the random changes.
    """

    name: ClassVar[str] = "local-search"
    summary: ClassVar[str] = "exchanges from the ILP's answer, for interactions; no proof"

    num_restarts: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_restarts < 0 or self.seed < 0:
            raise InputError(
                f"local-search needs num_restarts >= 0 and seed >= 0; got {self.num_restarts} and "
                f"{self.seed}"
            )

    def solve(self, problem: Problem) -> Solution:
        """See ``Solver.solve``; infeasible problems are recognised exactly, by the ILP."""
        start = time.perf_counter()
        exact = IntegerLinearProgram().solve(problem.additive())
        if exact.choice is None or problem.interactions is None:
            return replace(exact, solver=f"{self.name} ({exact.solver})")
        grouped = problem.grouped
        rng = np.random.default_rng(self.seed)
        quadratic = _Quadratic.of(problem, rng)
        choice = exact.choice[[rows[0] for rows in grouped.members]]
        best = quadratic.descend(choice)
        for _ in track(range(self.num_restarts), "local search"):
            found = quadratic.descend(quadratic.shaken(best))
            if quadratic.loss(found) < quadratic.loss(best):
                best = found
        # Sums in another order may break a limit by a hair: the problem's own arithmetic decides.
        tried = (grouped.expand(best), exact.choice)
        layers = min(filter(problem.is_feasible, tried), key=problem.loss_of)
        loss = problem.loss_of(layers)
        bound = None if exact.bound is None else min(loss, _bound(problem, exact.bound))
        status = Status.OPTIMAL if bound == loss else Status.FEASIBLE
        return Solution(status, layers, loss, bound, self.name, time.perf_counter() - start)


def _bound(problem: Problem, additive: float) -> float:
    """No assignment loses less, because the quadratic term is never below 0."""
    assert problem.interactions is not None
    share = problem.interactions.shrinkage
    beside = np.where(problem.allowed, problem.loss.values - problem.interactions.alone, np.inf)
    return float(share * additive + (1 - share) * beside.min(axis=1).sum())


@final
@dataclass(frozen=True, eq=False)
class _Quadratic:
    """The problem as matrices over ``M`` moves, a move being a group at a precision.

    Args:
        gram: ``[M, M]``, times the share of the interactions.
        linear: ``[M]`` additive loss, less what the quadratic form counts of single layers.
        costs: ``[R, M]``.
        limits: ``[R]``.
        group: ``[M]`` of each move.
        column: ``[M]`` of each move.
        index: ``[G, B]`` the move of each cell, -1 where it is not allowed.
        rng: Of random changes.
    """

    gram: Array
    linear: Array
    costs: Array
    limits: Array
    group: npt.NDArray[np.intp]
    column: npt.NDArray[np.intp]
    index: npt.NDArray[np.intp]
    rng: np.random.Generator

    @classmethod
    def of(cls, problem: Problem, rng: np.random.Generator) -> "_Quadratic":
        """From a problem with interactions."""
        grouped, found = problem.grouped, problem.interactions
        assert found is not None
        group, column = np.nonzero(grouped.allowed)
        by_group = [found.factor[:, list(rows)].sum(axis=1) for rows in grouped.members]
        factor = np.stack(by_group, axis=1).astype(np.float64)[:, group, column]  # [S, M]
        share = 1 - found.shrinkage
        alone = np.stack([found.alone[list(rows)].sum(axis=0) for rows in grouped.members])
        linear = grouped.loss[group, column] - share * alone[group, column]
        gram = share * (factor.T @ factor) / len(factor)
        slack = 1 + ROUNDING * np.sign(grouped.limits)
        index = np.full(grouped.allowed.shape, -1, dtype=np.intp)
        index[group, column] = np.arange(len(group))
        return cls(
            gram, linear, grouped.costs[:, group, column], grouped.limits * slack,
            group, column, index, rng,
        )  # fmt: skip

    def moves(self, choice: Choice) -> npt.NDArray[np.intp]:
        """``[G]`` moves that make up a choice."""
        return self.index[np.arange(len(choice)), choice]

    def loss(self, choice: Choice) -> float:
        """Up to a constant."""
        held = self.moves(choice)
        return float(0.5 * self.gram[np.ix_(held, held)].sum() + self.linear[held].sum())

    def descend(self, choice: Choice) -> Choice:
        """The best single move or pair of moves, again and again, until none helps."""
        choice = choice.copy()
        # Not that of the loss, which may be 0: rounding errors would go round in circles.
        scale = float(np.abs(self.gram).max() + np.abs(self.linear).max())
        while True:
            change, moves = self._best(choice)
            if change >= -1e-12 * scale:
                return choice
            choice[self.group[moves]] = self.column[moves]

    def shaken(self, choice: Choice) -> Choice:
        """The choice with a few groups changed at random, within the budgets."""
        choice = choice.copy()
        for _ in range(min(4, len(choice))):
            held = self.moves(choice)
            used = self.costs[:, held].sum(axis=1)
            extra = self.costs - self.costs[:, held[self.group]]  # [R, M]
            fits = np.flatnonzero((used[:, None] + extra <= self.limits[:, None]).all(axis=0))
            move = self.rng.choice(fits)
            choice[self.group[move]] = self.column[move]
        return choice

    def _best(self, choice: Choice) -> tuple[float, npt.NDArray[np.intp]]:
        """Least change of the loss by one move or two, and the moves."""
        held = self.moves(choice)
        old = held[self.group]  # [M] what each move replaces
        slope = self.gram[:, held].sum(axis=1)  # [M], h = G x
        own = np.diag(self.gram)
        single = slope - slope[old] + 0.5 * (own + own[old]) - self.gram[np.arange(len(old)), old]
        single += self.linear - self.linear[old]  # [M]
        extra = self.costs - self.costs[:, old]  # [R, M]
        room = self.limits - self.costs[:, held].sum(axis=1)  # [R]
        fits = (extra <= room[:, None]).all(axis=0)
        first = int(np.argmin(np.where(fits, single, np.inf)))
        alone = float(single[first]) if fits[first] else 0.0
        pair, moves = self._best_pair(single, extra, room, old)
        return (pair, moves) if pair < alone else (alone, np.array([first]))

    def _best_pair(
        self, single: Array, extra: Array, room: Array, old: npt.NDArray[np.intp]
    ) -> tuple[float, npt.NDArray[np.intp]]:
        """Two groups at once: what one gives the other may take."""
        some = np.arange(len(single))
        if len(some) > _MAX_PAIRED:
            some = np.sort(self.rng.choice(len(some), _MAX_PAIRED, replace=False))
        before = old[some]
        both = single[some, None] + single[None, some] + self.gram[np.ix_(some, some)]
        both -= self.gram[np.ix_(some, before)] + self.gram[np.ix_(before, some)]
        both += self.gram[np.ix_(before, before)]
        both[self.group[some][:, None] == self.group[some][None, :]] = np.inf
        for amounts, limit in zip(extra[:, some], room, strict=True):
            both[amounts[:, None] + amounts[None, :] > limit] = np.inf
        row, column = np.unravel_index(int(np.argmin(both)), both.shape)
        return float(both[row, column]), some[[row, column]]
