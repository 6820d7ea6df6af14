"""Local search for losses with interactions: exchanges of one or two precisions at a time."""

import math
import time
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, final

import numpy as np

from mpq._support.arrays import Array, Columns
from mpq._support.progress import track
from mpq.errors import InputError
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.solvers._base import Solver
from mpq.solvers.additive.answers import check_effort
from mpq.solvers.quadratic.additive_start import from_additive
from mpq.solvers.quadratic.batches import batch
from mpq.solvers.quadratic.bound import lower_bound
from mpq.solvers.quadratic.convex_relaxation import Relaxed, relaxed
from mpq.solvers.quadratic.moves import Quadratic
from mpq.solvers.quadratic.relaxed_start import core, rounded

_MAX_PAIRED = 600
"""Moves (groups times precisions) among which all pairs are tried at once."""
_NUM_SHAKEN = (3, 13)
"""Random changes before each descent: at least, and fewer than."""
_ACCEPTED = 0.02
"""By how much a descent may at first end worse than the last, and still be resumed from."""
_WORK = 1.2e9
"""On the bound: iterations times the cubed number of moves, which takes about a second."""


@final
@dataclass(frozen=True)
class LocalSearch(Solver):
    r"""Improves the exact additive answer where errors of different layers add up or cancel.

    The loss is a convex quadratic of the one-hot choice ``x``,

    .. math:: D(x) = s^T x + \tfrac12 (1 - \lambda) \, (x^T G x - \mathrm{diag}(G)^T x),
        \quad G = R^T R / S

    so that with :math:`h = G x` the change of any single move, and of any pair of moves, is a few
    additions. The best move, or else the best pair, within the budgets is taken until none lowers
    the loss; then random layers are changed and the descent begins anew (iterated local search,
    Lourenco et al. 2003, doi:10.1007/0-306-48056-5_11), from the last answer unless that was worse
    by more than a share of the loss, which falls to 0. A loss without interactions is already
    solved.

    Of more than 600 moves, the search begins at the shares of the convex relaxation
    (``mpq.solvers.quadratic.convex_relaxation``) made whole, if that loses less than the additive
    answer; moves that the relaxation rules out are left aside; single moves are taken many at a
    time; and pairs are sought among those of random groups at a time. A search that was stopped by
    its time limit says so (``Status.TIME_LIMIT``), and may end elsewhere on another machine.

    The bound is the best of three relaxations: that of the additive problem, the convex one, and
    for up to some 300 moves about a second of the one that ``branch-and-bound`` solves to the end.

    Args:
        num_restarts: Descents after the first.
        seed: Seed of the random changes.
        time_limit_s: Wall time in seconds of the search, or ``None``.

    Raises:
        InputError: If an option makes no sense.
    """

    name: ClassVar[str] = "local-search"
    summary: ClassVar[str] = "exchanges from the additive optimum, for interactions; with a bound"

    num_restarts: int = 400
    seed: int = 0
    time_limit_s: float | None = 60.0

    def __post_init__(self) -> None:
        check_effort(self.name, 0.0, self.time_limit_s)
        if self.num_restarts < 0 or self.seed < 0:
            raise InputError(
                f"local-search needs num_restarts >= 0 and seed >= 0; got {self.num_restarts} and "
                f"{self.seed}"
            )

    def at_most_s(self, problem: Problem) -> float:
        """See ``Solver.at_most_s``."""
        del problem
        return math.inf if self.time_limit_s is None else self.time_limit_s

    def solve(self, problem: Problem) -> Solution:
        """See ``Solver.solve``; infeasible problems are recognised exactly."""
        return from_additive(problem, self.name, self._search)

    def _search(self, problem: Problem, exact: Solution) -> Solution:
        assert exact.columns is not None
        limit = math.inf if self.time_limit_s is None else self.time_limit_s
        deadline = time.perf_counter() + limit
        quadratic = Quadratic.of(problem)
        relaxation = relaxed(quadratic, deadline)
        layers = searched(
            problem, quadratic, relaxation, exact.columns, self.num_restarts, self.seed, deadline
        )
        is_out_of_time = time.perf_counter() > deadline
        loss = problem.loss_of(layers)
        bound = lower_bound(problem, quadratic, loss, exact.bound, _WORK)
        bound = max(bound, relaxation.bound)
        status = Status.TIME_LIMIT if is_out_of_time else Status.FEASIBLE
        status = Status.OPTIMAL if bound >= loss else status
        return Solution(status, layers, loss, bound, self.name, 0.0)


def searched(
    problem: Problem,
    quadratic: Quadratic,
    relaxation: Relaxed,
    layers: Columns,
    num_restarts: int,
    seed: int,
    deadline: float = math.inf,
) -> Columns:
    """As ``improved``, of many moves from where the relaxation is, and among those it leaves.

    Args:
        problem: As ``improved``.
        quadratic: As ``improved``.
        relaxation: Of the same moves.
        layers: As ``improved``.
        num_restarts: As ``improved``.
        seed: As ``improved``.
        deadline: As ``improved``.
    """
    if len(quadratic.group) <= _MAX_PAIRED:
        return improved(problem, quadratic, layers, num_restarts, seed, deadline)
    start = layers
    # What pairs of groups cost is not in the relaxation.
    columns = None if len(quadratic.pairwise) else rounded(quadratic, relaxation.share, deadline)
    if columns is not None:
        tried = (problem.grouped.expand(columns), layers)
        start = min(filter(problem.is_feasible, tried), key=problem.loss_of)
    first = start[[rows[0] for rows in problem.grouped.members]]
    left = quadratic.among(core(quadratic, relaxation, problem.loss_of(start), first))
    return improved(problem, left, start, num_restarts, seed, deadline)


def improved(
    problem: Problem,
    quadratic: Quadratic,
    layers: Columns,
    num_restarts: int,
    seed: int,
    deadline: float = math.inf,
) -> Columns:
    """An assignment ``[L]`` within the budgets that loses no more than the given one.

    Args:
        problem: The problem, with interactions; its arithmetic decides what is within.
        quadratic: The problem's loss as a quadratic form over moves.
        layers: ``[L]`` within the budgets.
        num_restarts: Descents after the first.
        seed: Seed of the random changes.
        deadline: Time of ``time.perf_counter`` in seconds, after which no descent begins; with
            many moves, one that has begun stops.
    """
    grouped, search = problem.grouped, _Search(quadratic, np.random.default_rng(seed), deadline)
    # Tied layers are the same: the first of each group stands for it.
    best = current = search.settled(layers[[rows[0] for rows in grouped.members]])
    least = now = quadratic.loss(best)
    for done in track(range(num_restarts), "local search"):
        if time.perf_counter() > deadline:
            break
        found = search.restarted(current)
        loss = quadratic.loss(found)
        if loss < now + _ACCEPTED * (1 - (done + 1) / num_restarts) * abs(least):
            current, now = found, loss
        if loss < least:
            best, least = found, loss
    # Sums in another order may break a limit by a hair: the problem's own arithmetic decides.
    tried = (grouped.expand(best), layers)
    return min(filter(problem.is_feasible, tried), key=problem.loss_of)


@final
@dataclass(frozen=True, eq=False)
class _Pairs:
    """What pairs of moves of some groups change beside the two alone.

    Args:
        quadratic: Loss and budgets over the moves of the problem.
        some: ``[K]`` all moves of the groups among which pairs are sought, ascending.
        gram: ``[K, K]`` products of these moves: what two of them lose together.
        same: ``[K, K]`` ``inf`` for two moves of one group, else 0.
        joint: ``[K, K]`` the change; written over.
        old: ``[K]`` moves replaced for which ``joint`` holds; written over.
    """

    quadratic: Quadratic
    some: Columns
    gram: Array
    same: Array
    joint: Array
    old: Columns

    @classmethod
    def of(cls, quadratic: Quadratic, groups: Columns) -> "_Pairs":
        """Of all moves of some groups."""
        some = np.flatnonzero(np.isin(quadratic.group, groups))
        is_all = len(some) == len(quadratic.group)
        # With many moves [M, M] would be large: only the block of these groups is made.
        gram = quadratic.gram if is_all else quadratic.rows[some] @ quadratic.rows[some].T
        group = quadratic.group[some]
        is_same = np.equal(group[:, None], group[None, :])
        same = np.where(is_same, np.inf, 0.0)
        # No move is -1: the first update fills all of it.
        joint, none = np.empty_like(gram), np.full(len(some), -1)
        return cls(quadratic, some, gram, same, joint, none)

    def best(self, single: Array, extra: Array, room: Array, old: Columns, least: float) -> Columns:
        """Two groups at once, within the budgets: what one gives the other may take.

        Args:
            single: ``[M]`` changes of the loss.
            extra: ``[R, M]`` changes of the costs.
            room: ``[R]`` what is free.
            old: ``[M]`` the move that each replaces.
            least: A change above is none.
        """
        some = self.some
        self._update(old[some])
        both = self.joint + single[some]
        # In place: one more [K, K] array at every call would be for nothing.
        both += single[some, None]
        # Only what lowers the loss has to fit: costs of all [K, K] pairs are never added up.
        first, second = np.divmod(np.flatnonzero(both < least), len(some))
        amounts = extra[:, some]
        amounts = amounts[:, first] + amounts[:, second]
        amounts += self.quadratic.beside(some[first], some[second], old)
        fits = np.all(amounts <= room[:, None], axis=0)
        first, second = first[fits], second[fits]
        if not len(first):
            return first
        best = int(np.argmin(both[first, second]))
        return some[[first[best], second[best]]]

    def _update(self, old: Columns) -> None:
        """Only pairs with a group whose move has changed."""
        changed = np.flatnonzero(old != self.old)
        if not len(changed):
            return
        self.old[:] = old
        before = np.searchsorted(self.some, old)
        # The product of two exchanges: (e_i - e_old(i))' G (e_j - e_old(j)).
        rows = self.gram[changed] - self.gram[before[changed]]
        rows = rows - rows[:, before] + self.same[changed]
        self.joint[changed] = rows
        self.joint[:, changed] = rows.T


@final
@dataclass(frozen=True, eq=False)
class _Search:
    """Descents over the moves of a problem.

    Args:
        quadratic: Loss and budgets over the moves of the problem.
        rng: Generator of the random changes.
        deadline: Time of ``time.perf_counter`` in seconds, at which a descent among many moves
            stops; what it has then is within the budgets as well.
    """

    quadratic: Quadratic
    rng: np.random.Generator
    deadline: float = math.inf

    def settled(self, columns: Columns) -> Columns:
        """Descends until no pair helps; with many moves, until no pair within a random share."""
        while True:
            before = columns
            shares = self._shares(np.array([], dtype=np.intp))
            for groups in shares:
                if not self._is_late:
                    columns = self._descended(columns, self._pairs(groups))
            # With all groups in one share, the descent itself has tried every pair.
            if len(shares) == 1 or (columns == before).all() or self._is_late:
                return columns

    def restarted(self, columns: Columns) -> Columns:
        """A descent from a few random changes."""
        shaken = self._shaken(columns)
        # The changed groups are in the share: its pairs are what can repair them.
        groups = self._shares(np.flatnonzero(shaken != columns))[0]
        return self._descended(shaken, self._pairs(groups))

    @property
    def _is_large(self) -> bool:
        return len(self.quadratic.group) > _MAX_PAIRED

    @property
    def _is_late(self) -> bool:
        # Few moves take no time, and do not look at the clock.
        return self._is_large and time.perf_counter() > self.deadline

    @cached_property
    def _choosable(self) -> Columns:
        """``[C]`` groups of more than one move: the others have nothing to exchange."""
        return np.flatnonzero(np.bincount(self.quadratic.group) > 1)

    @cached_property
    def _every(self) -> _Pairs:
        return _Pairs.of(self.quadratic, self._choosable)

    def _pairs(self, groups: Columns) -> _Pairs:
        is_all = len(groups) == len(self._choosable)
        return self._every if is_all else _Pairs.of(self.quadratic, groups)

    def _shares(self, first: Columns) -> list[Columns]:
        """All groups, in random shares of few enough moves; some groups are in the first."""
        choosable = self._choosable
        num_moves = int(np.isin(self.quadratic.group, choosable).sum())
        # A pair takes two groups.
        size = max(2, int(_MAX_PAIRED * len(choosable) / max(num_moves, 1)))
        if size >= len(choosable):
            return [choosable]
        # Permuted last: `setdiff1d` sorts.
        rest = self.rng.permutation(np.setdiff1d(choosable, first))
        order = np.concatenate([first, rest])
        return np.array_split(order, -(-len(order) // size))

    def _shaken(self, columns: Columns) -> Columns:
        """The choice with a few groups changed at random, within the budgets."""
        quadratic, columns = self.quadratic, columns.copy()
        for _ in range(min(int(self.rng.integers(*_NUM_SHAKEN)), len(columns))):
            extra, room = self._extra(quadratic.moves(columns))
            # Never empty: the moves that are held cost nothing more.
            moves = np.flatnonzero((extra <= room[:, None]).all(axis=0))
            move = moves[self.rng.integers(len(moves))]  # what `choice` draws, without its checks
            columns[quadratic.group[move]] = quadratic.column[move]
        return columns

    def _descended(self, columns: Columns, pairs: _Pairs) -> Columns:
        """The best single move, or else the best pair, again and again, until none helps."""
        quadratic, columns = self.quadratic, columns.copy()
        # Not that of the loss, which may be 0: rounding errors would go round in circles.
        least = -1e-12 * float(quadratic.own.max() + np.abs(quadratic.linear).max())
        while not self._is_late:
            held = quadratic.moves(columns)
            single, (extra, room) = self.quadratic.changes(held), self._extra(held)
            moves = _best_single(single, extra, room, least)
            if len(moves) and self._is_large and not len(quadratic.pairwise):
                moves = batch(quadratic, held, single, extra, room)
            if not len(moves):
                moves = pairs.best(single, extra, room, held[quadratic.group], least)
            if not len(moves):
                return columns
            columns[quadratic.group[moves]] = quadratic.column[moves]
        return columns

    def _extra(self, held: Columns) -> tuple[Array, Array]:
        """What each move costs beside the one it replaces ``[R, M]``, and what is free ``[R]``."""
        costs, old = self.quadratic.costs, held[self.quadratic.group]
        used = costs[:, held].sum(axis=1)
        if len(self.quadratic.pairwise):
            near = self.quadratic.joint[:, :, held].sum(axis=2)  # [R, M]
            # Both ends of a coupling count it, hence the half.
            used = used + 0.5 * near[:, held].sum(axis=1)
            costs = costs + near
        # What is held is within the budgets, though a sum in this order may be a hair beyond.
        return costs - costs[:, old], np.maximum(self.quadratic.limits - used, 0.0)


def _best_single(single: Array, extra: Array, room: Array, least: float) -> Columns:
    """The move within the budgets that lowers the loss most, if one does."""
    better = np.flatnonzero(single < least)
    better = better[np.all(extra[:, better] <= room[:, None], axis=0)]
    return better[np.argsort(single[better], kind="stable")[:1]]
