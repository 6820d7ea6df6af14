"""Exact solver for losses with interactions: branch and bound on a nearly tight relaxation."""

import heapq
import math
import time
from dataclasses import dataclass, replace
from itertools import count
from typing import ClassVar, final

import numpy as np

from mpq._support.arrays import Columns, Mask
from mpq.errors import InputError
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.solvers._base import Solver
from mpq.solvers.additive.answers import check_effort
from mpq.solvers.quadratic.additive_start import from_additive
from mpq.solvers.quadratic.bound import (
    MAX_ENUMERATED,
    MAX_MOVES,
    PATIENCE,
    WARM_PATIENCE,
    Scale,
    opened,
    pursued,
    simple_bound,
)
from mpq.solvers.quadratic.convex_relaxation import Relaxed, relaxed
from mpq.solvers.quadratic.doubly_nonnegative import Tightened
from mpq.solvers.quadratic.lifted_start import lowered
from mpq.solvers.quadratic.local_search import searched
from mpq.solvers.quadratic.moves import Quadratic
from mpq.solvers.quadratic.relaxed_start import core
from mpq.solvers.quadratic.subproblem import Subproblem

_COLD_MOVES = 300
"""Up to which the iteration begins at no multipliers: above, at those of the convex relaxation."""


@final
@dataclass(frozen=True)
class BranchAndBound(Solver):
    """Proves the best assignment where errors of different layers add up or cancel.

    The doubly nonnegative relaxation (``mpq.solvers.quadratic.doubly_nonnegative``) of the
    quadratic problem comes close to the optimum and rules out precisions with which nothing is
    better than the answer of the local search; what is left is relaxed again, tried in full where
    it is small, and else split by the precision of the group that is least decided, the most
    promising part first (branch and bound, Land and Doig 1960, doi:10.2307/1910129). With more than
    300 moves left at first, the shares of the relaxation are made whole after each round, and
    improved by exchanges among what is left: a better answer rules out more.

    The convex relaxation, at which ``outer-approximation`` begins, ignores both that products of
    choices are not negative and that a budget holds for each of them; with both, no integer
    program is needed.

    Args:
        gap: Where to stop: the distance from the bound, as a share of the loss. 0: at the proved
            optimum.
        time_limit_s: Wall time in seconds of the search, or ``None``.
        num_restarts: Restarts of the local search that finds the first assignment.
        seed: Seed of that local search.

    Raises:
        InputError: If an option makes no sense.
    """

    name: ClassVar[str] = "branch-and-bound"
    summary: ClassVar[str] = "exact with interactions, for tens of layers"

    gap: float = 0.0
    time_limit_s: float | None = 60.0
    num_restarts: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        check_effort(self.name, self.gap, self.time_limit_s)
        if self.num_restarts < 0 or self.seed < 0:
            raise InputError(
                f"{self.name} needs num_restarts >= 0 and seed >= 0; got {self.num_restarts} and "
                f"{self.seed}"
            )

    def at_most_s(self, problem: Problem) -> float:
        """See ``Solver.at_most_s``."""
        del problem
        return math.inf if self.time_limit_s is None else self.time_limit_s

    def solve(self, problem: Problem) -> Solution:
        """See ``Solver.solve``; infeasible problems are recognised exactly.

        With more than 1,500 moves (layers times precisions), nothing is proved beyond what follows
        from the additive problem.
        """
        return from_additive(problem, self.name, self._search)

    def _search(self, problem: Problem, exact: Solution) -> Solution:
        assert exact.columns is not None
        limit = math.inf if self.time_limit_s is None else self.time_limit_s
        deadline = time.perf_counter() + limit
        quadratic = Quadratic.of(problem)
        relaxation = relaxed(quadratic, deadline)
        first = searched(
            problem, quadratic, relaxation, exact.columns, self.num_restarts, self.seed, deadline
        )
        loss = problem.loss_of(first)
        simple = simple_bound(problem, quadratic, exact.bound)
        start = None
        # Few moves are proved in seconds from no start at all.
        if len(quadratic.group) > _COLD_MOVES:
            simple = max(simple, relaxation.bound)
            columns = first[[rows[0] for rows in problem.grouped.members]]
            keep = core(quadratic, relaxation, loss, columns)
            quadratic, start = quadratic.among(keep), relaxation.among(keep)
        scale = Scale.of(loss, simple, self.gap)
        found = _Found(first, loss, simple / scale.unit, is_finished=False)
        if len(quadratic.group) <= MAX_MOVES:
            found = _searched(problem, quadratic, scale, found, deadline, start, self.seed)
        # One above the loss is looked at in `from_additive`: rounding, or a contradiction.
        bound = max(simple, found.bound * scale.unit)
        status = Status.FEASIBLE
        if found.is_finished and self.gap == 0:
            bound, status = max(simple, found.loss), Status.OPTIMAL
        # Both are asked: with too many moves the search ends unfinished, and before its time.
        elif not found.is_finished and time.perf_counter() > deadline:
            status = Status.TIME_LIMIT
        return Solution(status, found.layers, found.loss, bound, self.name, 0.0)


@final
@dataclass(frozen=True, eq=False)
class _Found:
    """Where the search stands.

    Args:
        layers: ``[L]`` the best assignment.
        loss: Its loss, in the loss table's unit.
        bound: No assignment loses less, in the scale's unit.
        is_finished: Whether nothing below the cutoff is left.
    """

    layers: Columns
    loss: float
    bound: float
    is_finished: bool


@final
@dataclass(frozen=True, eq=False)
class _Branch:
    """A part of the problem, made when its turn comes.

    Args:
        bound: No assignment in it loses less.
        problem: That it is a part of.
        without: ``[M]`` cells of the problem that it does not have.
    """

    bound: float
    problem: Subproblem
    without: Mask

    def opened(self) -> Tightened:
        """Not yet tightened."""
        # Only here are matrices made: branches that wait share those of what they are a part of.
        none = np.zeros_like(self.problem.forbidden)
        problem = self.problem.ruled_out(self.without, none)
        return Tightened(problem, self.bound, np.empty(0))


def _searched(
    problem: Problem,
    quadratic: Quadratic,
    scale: Scale,
    found: _Found,
    deadline: float,
    start: Relaxed | None = None,
    seed: int = 0,
) -> _Found:
    """Branches, the one with the lowest bound first; the whole may begin at a relaxation."""
    cutoff = scale.cutoff(found.loss)
    if found.bound >= cutoff:
        return replace(found, is_finished=True)
    node = opened(quadratic, scale, cutoff, start)
    node = replace(node, bound=max(node.bound, found.bound))
    patience = PATIENCE if start is None else WARM_PATIENCE
    queue: list[tuple[float, int, _Branch]] = []
    # Of equal bounds the older branch comes first; branches themselves cannot be compared.
    order = count()

    def lower(part: Subproblem) -> float:
        nonlocal found
        layers = lowered(problem, quadratic, part, found.layers, seed + next(order), deadline)
        found = replace(found, layers=layers, loss=problem.loss_of(layers))
        return scale.cutoff(found.loss)

    while True:
        node = pursued(
            node, cutoff, deadline=deadline, patience=patience,
            # Few moves were searched well before: the first assignment mostly is the best.
            lower=None if start is None else lower,
        )  # fmt: skip
        cutoff = scale.cutoff(found.loss)
        patience = PATIENCE  # of parts, which begin where the whole has stopped
        if node.problem is not None and node.problem.num_assignments <= MAX_ENUMERATED:
            found = _tried(problem, quadratic, node.problem, found)
            cutoff = scale.cutoff(found.loss)
        elif node.problem is not None and time.perf_counter() > deadline:
            # What was ruled out is not below the cutoff, and is bounded by it.
            lowest = min([node.bound, cutoff, *(bound for bound, *_ in queue)])
            return replace(found, bound=lowest)
        elif node.problem is not None:
            for branch in _branches(node.problem, node):
                heapq.heappush(queue, (branch.bound, next(order), branch))
        # The first of the heap has the lowest bound: if it is no better, nothing that waits is.
        if not queue or queue[0][0] >= cutoff:
            return replace(found, bound=cutoff, is_finished=True)
        node = heapq.heappop(queue)[2].opened()


def _branches(problem: Subproblem, node: Tightened) -> list[_Branch]:
    """One for each cell of the group that the relaxation leaves most open."""
    # Only a deadline keeps `pursued` from iterating, and then nothing is branched on.
    assert problem.start is not None
    # The diagonal of the lifted matrix is the relaxation's choice, between 0 and 1.
    share = np.diag(problem.start.lifted)[1 : 1 + len(problem.group)]
    group = int(np.argmin(np.maximum.reduceat(share, problem.starts)))
    cells = np.flatnonzero(problem.group == group)
    return [
        _Branch(
            # A part has no better assignment than the whole.
            max(node.bound, float(node.cells[cell])),
            problem,
            (problem.group == group) & (np.arange(len(problem.group)) != cell),
        )
        for cell in cells.tolist()
    ]


def _tried(problem: Problem, quadratic: Quadratic, part: Subproblem, found: _Found) -> _Found:
    """The best of all assignments of a part, if it is better than what is known."""
    losses, moves = part.enumerated()
    # By rising loss: the first that holds is the best, and the first that is no better ends it.
    for row in np.argsort(losses, kind="stable"):
        columns = np.empty(len(quadratic.index), dtype=np.intp)
        columns[quadratic.group[moves[row]]] = quadratic.column[moves[row]]
        layers = problem.grouped.expand(columns)
        loss = problem.loss_of(layers)
        if not np.isfinite(losses[row]) or loss >= found.loss:
            return found
        # A part may hold what breaks a budget by a hair.
        if problem.is_feasible(layers):
            return replace(found, layers=layers, loss=loss)
    return found
