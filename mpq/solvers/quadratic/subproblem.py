"""What is left of a quadratic problem once some precisions are ruled out or decided."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise, product
from typing import final

import numpy as np

from mpq._support.arrays import Array, Columns, Mask
from mpq.solvers.quadratic.moves import Quadratic, first_of_each

_SLACK = 1e-9
"""Room beside every limit, in units of what it leaves free: a subproblem may keep what breaks a
budget by a hair, but must not lose what meets it. Answers are checked by the problem itself."""


@final
@dataclass(frozen=True, eq=False)
class Iterate:
    """Where an iteration on the lifted matrix stopped, for one that begins there.

    Args:
        lifted: ``[n, n]`` estimate of the products of all pairs of entries of ``(1, x, slack)``.
        multiplier: ``[n, n]``; any symmetric matrix proves some bound.
        penalty: Weight of the squared constraint in the augmented Lagrangian.
    """

    lifted: Array
    multiplier: Array
    penalty: float


@final
@dataclass(frozen=True, eq=False)
class Subproblem:
    r"""Choose one of the ``M`` open cells for each of ``G`` open groups.

    .. math:: \min\; d + c^T x + \tfrac12 x^T Q x \quad\text{s.t.}\quad A x \le r,
        \; x_i x_j = 0 \text{ where } (i, j) \text{ is forbidden}

    Args:
        constant: ``d``, of the groups that are decided.
        linear: ``c [M]`` what a cell loses alone, beside the groups that are decided.
        gram: ``Q [M, M]`` positive semidefinite: what cells lose together.
        costs: ``A [R, M]``, from 0 and in units of what the limit left free at first.
        room: ``r [R]`` what the decided groups leave of every budget, in the same units.
        group: ``[M]`` of each cell, ascending from 0.
        move: ``[M]`` of each cell, as ``Quadratic`` counts them.
        decided: Moves of the groups that are decided.
        forbidden: ``[M, M]`` pairs of cells not to be taken together, with those of one group.
        start: Where the iteration begins; ``None``: at zero.
    """

    constant: float
    linear: Array
    gram: Array
    costs: Array
    room: Array
    group: Columns
    move: Columns
    decided: tuple[int, ...]
    forbidden: Mask
    start: Iterate | None = None

    @classmethod
    def of(cls, quadratic: Quadratic, unit: float) -> "Subproblem":
        """The whole problem, its loss in the given unit."""
        group = quadratic.group
        floors = np.minimum.reduceat(quadratic.costs, quadratic.starts, axis=1)  # [R, G]
        free = quadratic.limits - floors.sum(axis=1)
        extra = quadratic.costs - floors[:, group]
        unit_of = np.where(free > 0, free, 1.0)
        room = (np.maximum(free, 0.0) + quadratic.edge) / unit_of
        # A cell beyond the limit is ruled out at once and need not be as large as it is.
        amounts = extra / unit_of[:, None]
        costs = np.where(amounts > room[:, None], 2 * room[:, None] + 1, amounts)
        return cls(
            0.0, quadratic.linear / unit, quadratic.gram / unit, costs,
            # A budget that leaves nothing free has no unit: it has no room, and only floors fit.
            room, group, np.arange(len(group)), (), _same(group),
        )  # fmt: skip

    @cached_property
    def starts(self) -> Columns:
        """``[G]`` first cell of each group, for ``reduceat``."""
        return first_of_each(self.group)

    @property
    def num_assignments(self) -> int:
        """Budgets aside."""
        # In Python's integers: the product of tens of groups is beyond int64.
        return math.prod(np.bincount(self.group).tolist())

    def kept(self, keep: Mask) -> "Subproblem":
        """The same with some of the cells ``[M]``; groups with a single one are decided."""
        cells = np.flatnonzero(keep)
        is_single = np.bincount(self.group[cells])[self.group[cells]] == 1
        decided, left = cells[is_single], cells[~is_single]
        quadratic = 0.5 * self.gram[np.ix_(decided, decided)].sum()
        return Subproblem(
            float(self.constant + self.linear[decided].sum() + quadratic),
            self.linear[left] + self.gram[np.ix_(left, decided)].sum(axis=1),
            self.gram[np.ix_(left, left)],
            self.costs[:, left],
            self.room - self.costs[:, decided].sum(axis=1),
            # Groups from 0 without gaps again: `reduceat` and `bincount` count on it.
            np.unique(self.group[left], return_inverse=True)[1],
            self.move[left],
            (*self.decided, *self.move[decided].tolist()),
            self.forbidden[np.ix_(left, left)],
            None if self.start is None else self._contracted(self.start, decided, left),
        )

    def _contracted(self, start: Iterate, decided: Columns, left: Columns) -> Iterate:
        """A decided cell is 1: its row joins that of the constant, and proves what it proved."""
        size, slacks = len(self.linear), np.arange(len(self.room))
        kept = np.concatenate([[0], 1 + left, 1 + size + slacks])
        fold = np.zeros((len(start.lifted), len(kept)))
        fold[kept, np.arange(len(kept))] = 1
        fold[1 + decided, 0] = 1
        multiplier = fold.T @ start.multiplier @ fold
        return replace(start, lifted=start.lifted[np.ix_(kept, kept)], multiplier=multiplier)

    def ruled_out(self, cells: Mask, pairs: Mask) -> "Subproblem | None":
        """Without some cells ``[M]`` and pairs of two ``[M, M]``, and what follows from it.

        Returns:
            ``None`` if nothing is left that meets the budgets.
        """
        forbidden = self.forbidden | pairs | pairs.T
        # A cell beside itself is no pair: `cells` alone rules cells out.
        np.fill_diagonal(forbidden, False)
        problem, keep = replace(self, forbidden=forbidden), ~cells
        while len(problem.group):
            fits, clash = problem._affordable()
            problem = replace(problem, forbidden=problem.forbidden | clash)
            # A cell beside which a group has nothing to take is in no assignment. In its own group
            # the cell itself counts.
            partners = np.logical_or.reduceat(
                keep & ~problem.forbidden, problem.starts, axis=1
            )  # [M, G]
            left = keep & fits & partners.all(axis=1)
            if not np.logical_or.reduceat(left, problem.starts).all():
                return None
            # Cells that go may have been the last partners of others.
            if (left != keep).any():
                keep = left
                continue
            if keep.all() and (np.bincount(problem.group) > 1).all():
                return problem
            problem = problem.kept(keep)
            keep = np.ones(len(problem.group), dtype=np.bool_)
        return problem if (problem.room >= -_SLACK).all() else None

    def _affordable(self) -> tuple[Mask, Mask]:
        """Cells ``[M]`` within every budget if all others are cheapest; pairs ``[M, M]`` beyond."""
        least = np.minimum.reduceat(self.costs, self.starts, axis=1)  # [R, G]
        free = self.room - least.sum(axis=1) + _SLACK
        extra = self.costs - least[:, self.group]
        fits = (extra <= free[:, None]).all(axis=0)
        clash = self.forbidden
        for amounts, limit in zip(extra, free, strict=True):
            clash = clash | (amounts[:, None] + amounts[None, :] > limit)
        # On the diagonal a cell was counted twice.
        np.fill_diagonal(clash, False)
        return fits, clash

    def enumerated(self) -> tuple[Array, Columns]:
        """Every assignment: losses ``[A]``, ``inf`` beyond a budget, and moves ``[A, groups]``."""
        ends = np.append(self.starts, len(self.group))
        ranges = [range(first, end) for first, end in pairwise(ends.tolist())]
        cells = np.array(list(product(*ranges)), dtype=np.intp)  # [A, G]
        one_hot = np.zeros((len(cells), len(self.group)))
        np.put_along_axis(one_hot, cells, 1.0, axis=1)
        losses = self.constant + one_hot @ self.linear
        losses += 0.5 * ((one_hot @ self.gram) * one_hot).sum(axis=1)
        fits = (one_hot @ self.costs.T <= self.room + _SLACK).all(axis=1)
        decided = np.tile(np.array(self.decided, dtype=np.intp), (len(cells), 1))
        return np.where(fits, losses, np.inf), np.hstack([decided, self.move[cells]])


def _same(group: Columns) -> Mask:
    same = group[:, None] == group[None, :]
    np.fill_diagonal(same, False)
    return np.asarray(same)
