"""A lower bound that is nearly reached: the doubly nonnegative relaxation."""

import math
import time
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from mpq._support.arrays import Array
from mpq.solvers.quadratic.subproblem import Iterate, Subproblem

_STEP = 1.6
"""Of the multipliers; the method converges below 1.618."""
_FIRST_PENALTY = 0.1  # only a start: it is adapted as the two residuals are found to differ
_CHECK = 25
"""Iterations between two bounds."""


@final
@dataclass(frozen=True, eq=False)
class Bounds:
    """What one matrix of multipliers proves of a ``Subproblem``, in its unit.

    Args:
        whole: No assignment loses less.
        cells: ``[M]`` no assignment with this cell loses less.
        pairs: ``[M, M]`` no assignment with both cells loses less; ``inf`` where forbidden.
    """

    whole: float
    cells: Array
    pairs: Array


@final
@dataclass(frozen=True, eq=False)
class Lifting:
    r"""Products of all pairs of entries of ``y = (1, x, slack)``, with ``slack = r - A x``.

    Every assignment is a point ``y y'``: positive semidefinite, nonnegative, 0 where a pair is
    forbidden, with diagonal ``x``, and of the form ``V W V'`` with ``V`` a basis of the vectors
    whose groups sum to the first entry. The relaxation asks for just that,

    .. math:: \min_{Y, W}\; \langle L, Y \rangle \quad\text{s.t.}\quad Y = V W V^T,\; W \succeq 0,
        \; Y \ge 0,\; Y_{ij} = 0 \text{ where forbidden},\; Y_{00} = 1,\; Y_{0i} = Y_{ii}

    (Burer 2010, doi:10.1007/s12532-010-0010-8). Both conditions are needed: without the signs, or
    without the slacks' rows (budgets times cells), the bound is worth little here.

    It is solved by alternating directions on the reduced matrix ``W`` (Oliveira, Wolkowicz and Xu
    2018, arXiv:1512.05448). We depart from them in the bound. For any symmetric ``Z``, with
    :math:`P` the positive part of ``V' Z V`` and :math:`K = L + Z - V P V^T`,

    .. math:: \langle L, y y^T \rangle = \langle K, y y^T \rangle
        + y^T V (P - V^T Z V) V^T y \ge \langle K, y y^T \rangle

    for every assignment, whether the iteration has converged or not; and as exactly one cell of
    each group is taken, the least of ``K`` over single cells and pairs of cells bounds the right
    side. So does it with one or two cells given, which rules most of them out.

    Args:
        problem: The subproblem whose assignments are lifted to matrices.
        objective: ``L [n, n]``, ``n = 1 + M + R``.
        basis: ``V [n, 1 + M - G]`` with orthonormal columns.
        cap: ``[n, n]`` the largest value of each entry.
    """

    problem: Subproblem
    objective: Array
    basis: Array
    cap: Array

    @classmethod
    def of(cls, problem: Subproblem) -> "Lifting":
        """Of a subproblem with at least one open group."""
        size, slacks = len(problem.linear), len(problem.room)
        cells = slice(1, 1 + size)
        objective = np.zeros((1 + size + slacks,) * 2)
        objective[0, 0] = problem.constant
        objective[0, cells] = objective[cells, 0] = problem.linear / 2
        objective[cells, cells] = problem.gram / 2
        largest = np.concatenate([np.ones(1 + size), np.maximum(problem.room, 0.0)])
        cap = np.outer(largest, largest)
        cap[cells, cells][problem.forbidden] = 0.0
        return cls(problem, objective, _basis(problem), cap)

    def first(self) -> Iterate:
        """From the mean of all assignments, each group alone, and no multipliers."""
        problem = self.problem
        share = 1 / np.bincount(problem.group)[problem.group]
        point = np.concatenate([[1.0], share, problem.room - problem.costs @ share])
        lifted = self._projected(np.outer(point, point))
        return Iterate(lifted, np.zeros_like(lifted), _FIRST_PENALTY)

    def iterated(self, start: Iterate, count: int, deadline: float) -> tuple[Iterate, float, float]:
        """Some rounds of alternating directions.

        Returns:
            Where it stopped, and how far the two conditions and the last two rounds are apart.
        """
        lifted, multiplier, penalty = start.lifted, start.multiplier, start.penalty
        before = reduced = lifted
        for _ in range(count):
            before = lifted
            reduced = self._semidefinite(lifted + multiplier / penalty)
            lifted = self._projected(reduced - (self.objective + multiplier) / penalty)
            multiplier = multiplier + _STEP * penalty * (lifted - reduced)
            if time.perf_counter() > deadline:
                break
        apart = np.linalg.norm(lifted - reduced) / np.linalg.norm(lifted)
        # An objective may be 0, and must not be divided by.
        scale = max(float(np.linalg.norm(self.objective)), 1e-9)
        moved = penalty * np.linalg.norm(lifted - before) / scale
        return Iterate(lifted, multiplier, penalty), float(apart), float(moved)

    def _semidefinite(self, matrix: Array) -> Array:
        """The nearest ``V W V'`` with a positive semidefinite ``W``."""
        inner = _symmetric(self.basis.T @ matrix @ self.basis)
        values, vectors = np.linalg.eigh(inner)
        is_positive = values > 0
        # The side with fewer eigenvalues is cheaper.
        side = is_positive if 2 * is_positive.sum() <= len(values) else ~is_positive
        outer = self.basis @ vectors[:, side]
        part: Array = (outer * values[side]) @ outer.T
        return part if side is is_positive else self.basis @ inner @ self.basis.T - part

    def _projected(self, matrix: Array) -> Array:
        """The nearest matrix with the right signs, zeros, corner and diagonal."""
        cells = np.arange(1, 1 + len(self.problem.linear))
        near = np.clip(matrix, 0.0, self.cap)
        # The three are one number in every assignment; the nearest such point has their mean.
        mean = (matrix[0, cells] + matrix[cells, 0] + matrix[cells, cells]) / 3
        near[0, cells] = near[cells, 0] = near[cells, cells] = np.clip(mean, 0.0, 1.0)
        near[0, 0] = 1.0
        return near

    def bounds(self, multiplier: Array) -> Bounds:
        """What a symmetric matrix of multipliers ``Z [n, n]`` proves."""
        inner = _symmetric(self.basis.T @ multiplier @ self.basis)
        values, vectors = np.linalg.eigh(inner)
        outer = self.basis @ vectors[:, values > 0]
        left = self.objective + multiplier - (outer * values[values > 0]) @ outer.T  # K
        # Rounding errors of the decomposition, times the largest possible |y|^2.
        largest = 1 + len(self.problem.starts) + float(np.square(self.problem.room).sum())
        scale = float(np.linalg.norm(multiplier) + np.linalg.norm(self.objective))
        margin = len(left) * np.finfo(np.float64).eps * scale * largest
        return self._least(left, margin)

    def _least(self, left: Array, margin: float) -> Bounds:
        """The least of ``K`` over all assignments, with one cell or two given."""
        problem, starts, size = self.problem, self.problem.starts, len(self.problem.linear)
        cells = slice(1, 1 + size)
        single = 2 * left[0, cells] + np.diag(left)[cells]  # [M]
        pair = np.where(problem.forbidden, np.inf, 2 * left[cells, cells])
        least = np.minimum.reduceat(np.minimum.reduceat(pair, starts, axis=1), starts, axis=0)
        # A group's own products are in `single` already.
        np.fill_diagonal(least, 0.0)  # [G, G]
        pair = pair - least[np.ix_(problem.group, problem.group)]  # at least 0
        constant = left[0, 0] + least.sum() / 2 + self._least_of_slacks(left) - margin
        joint = single[None, :] + pair  # [M, M] what the second costs beside the first
        best = np.minimum.reduceat(joint, starts, axis=1)  # [M, G]
        # The group of the given cell has no choice left.
        best[np.arange(size), problem.group] = single
        given = constant + best.sum(axis=1)  # [M]
        pairs = given[:, None] - best[:, problem.group] + joint
        whole = constant + np.minimum.reduceat(single, starts).sum()
        return Bounds(float(whole), given, np.maximum(pairs, pairs.T))

    def _least_of_slacks(self, left: Array) -> float:
        """Of the slacks' rows: each is from 0 to its room."""
        size, room = len(self.problem.linear), np.maximum(self.problem.room, 0.0)
        # A slack may be 0: only what is negative can lower the least. Of two slacks the matrix has
        # both products, hence the half below.
        rows = np.minimum(2 * left[1 + size :], 0.0)  # [R, n]
        alone = rows[:, 0] * room
        if not len(room):
            return 0.0
        with_cells = np.minimum.reduceat(rows[:, 1 : 1 + size], self.problem.starts, axis=1)
        with_slacks = rows[:, 1 + size :] * np.outer(room, room) / 2
        return float(alone.sum() + (with_cells.sum(axis=1) * room).sum() + with_slacks.sum())


@final
@dataclass(frozen=True, eq=False)
class Tightened:
    """A subproblem after some rounds.

    Args:
        problem: What is left below the cutoff, with where to resume; ``None`` if nothing is.
        bound: No assignment that was left at first, and is below the cutoff, loses less.
        cells: ``[M]`` the same with each cell that is left, once there was an iteration.
    """

    problem: Subproblem | None
    bound: float
    cells: Array


def tightened(
    problem: Subproblem, cutoff: float, iterations: int, deadline: float = math.inf
) -> Tightened:
    """Iterates, and rules out cells and pairs with which no assignment is below the cutoff."""
    lifting = Lifting.of(problem)
    iterate = problem.start or lifting.first()
    best, proof = None, iterate.multiplier
    for done in range(0, iterations, _CHECK):
        count = min(_CHECK, iterations - done)
        iterate, apart, moved = lifting.iterated(iterate, count, deadline)
        found = lifting.bounds(iterate.multiplier)
        if best is None or found.whole > best.whole:
            best, proof = found, iterate.multiplier
        if best.whole >= cutoff or time.perf_counter() > deadline:
            break
        iterate = replace(iterate, penalty=iterate.penalty * _correction(apart, moved))
    assert best is not None
    # The next rounds begin with the multipliers that proved most.
    return reduced(problem, replace(iterate, multiplier=proof), best, cutoff)


def reduced(problem: Subproblem, start: Iterate | None, bounds: Bounds, cutoff: float) -> Tightened:
    """Without the cells and pairs that the bounds rule out."""
    if bounds.whole >= cutoff:
        return Tightened(None, bounds.whole, bounds.cells[:0])
    going_on = replace(problem, start=start)
    left = going_on.ruled_out(bounds.cells >= cutoff, bounds.pairs >= cutoff)
    if left is None:
        return Tightened(None, cutoff, bounds.cells[:0])
    # Moves ascend in both, so that a sorted search finds each.
    cells = bounds.cells[np.searchsorted(problem.move, left.move)]
    return Tightened(left, bounds.whole, cells)


def without_iteration(problem: Subproblem, cutoff: float) -> Tightened:
    """What follows from the quadratic form's being at least 0: it may be ruled out for free."""
    single = problem.linear
    least = np.minimum.reduceat(single, problem.starts)
    whole = problem.constant + least.sum()
    cells = whole + single - least[problem.group]
    pairs = cells[:, None] + cells[None, :] - whole
    return reduced(problem, problem.start, Bounds(float(whole), cells, pairs), cutoff)


def _correction(apart: float, moved: float) -> float:
    """Of the penalty, so that both residuals fall alike."""
    if apart > 5 * moved:
        return 1.5
    return 1 / 1.5 if moved > 5 * apart else 1.0


def _basis(problem: Subproblem) -> Array:
    """``V``, orthonormal: the constant's direction and the exchanges within a group."""
    size, slacks = len(problem.linear), len(problem.room)
    others = np.delete(np.arange(size), problem.starts)  # all cells but the first of each group
    vectors = np.zeros((1 + size + slacks, 1 + len(others)))
    share = 1 / np.bincount(problem.group)[problem.group]
    vectors[0, 0] = 1.0
    vectors[1 : 1 + size, 0] = share
    columns = 1 + np.arange(len(others))
    vectors[1 + others, columns] = 1.0
    vectors[1 + problem.starts[problem.group[others]], columns] = -1.0
    vectors[1 + size :] = -problem.costs @ vectors[1 : 1 + size]
    vectors[1 + size :, 0] += problem.room
    return np.linalg.qr(vectors)[0]


def _symmetric(matrix: Array) -> Array:
    return (matrix + matrix.T) / 2
