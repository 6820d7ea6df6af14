"""A problem with interactions as matrices over moves."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import numpy as np

from mpq._support.arrays import Array, Columns, Mask
from mpq.problem.pairwise_costs import PairwiseCosts
from mpq.problem.problem import Problem
from mpq.problem.tolerances import LAST_DIGITS, LIMIT


@final
@dataclass(frozen=True, eq=False)
class Quadratic:
    r"""The loss and the budgets over ``M`` moves, a move being a group at an allowed precision.

    .. math:: D(x) = c^T x + \tfrac12 \lVert F^T x \rVert^2

    with one move of every group in ``x``: equal to the problem's loss up to rounding.

    Args:
        rows: ``F [M, S]``, so that ``F F'`` is the Gram matrix times the share of the interactions.
        linear: ``c [M]`` additive loss, less what the quadratic form counts of single groups.
        costs: ``[R, M]`` cost of each move in every budget, in the budget's unit.
        limits: ``[R]``, with the slack that ``Budget.is_met`` gives.
        edge: ``[R]`` what a sum of costs here may differ by from that of ``Budget.is_met``.
        group: ``[M]`` of each move, ascending.
        column: ``[M]`` of each move.
        index: ``[G, B]`` the move of each cell, -1 where it is not allowed.
        pairwise: What pairs of groups cost besides ``costs``; nothing in the loss.
    """

    rows: Array
    linear: Array
    costs: Array
    limits: Array
    edge: Array
    group: Columns
    column: Columns
    index: Columns
    pairwise: PairwiseCosts

    @classmethod
    def of(cls, problem: Problem) -> "Quadratic":
        """From a problem with interactions."""
        grouped, found = problem.grouped, problem.interactions
        assert found is not None
        group, column = np.nonzero(grouped.allowed)
        share = 1 - found.shrinkage
        order = np.concatenate([np.array(members) for members in grouped.members])
        starts = np.cumsum([0, *map(len, grouped.members[:-1])])
        # The factor is kept as float32; what tied layers do together is added up in float64.
        moves = found.factor.transpose(1, 2, 0)[order]  # [L, B, S]
        rows = np.add.reduceat(moves, starts, axis=0, dtype=np.float64)[group, column]  # [M, S]
        alone = np.add.reduceat(found.alone[order], starts, axis=0)[group, column]
        rows *= np.sqrt(share / len(found.factor))
        linear = grouped.loss[group, column] - share * alone
        # Outwards whatever the sign, as in `Budget.is_met`.
        limits = grouped.limits * (1 + LIMIT * np.sign(grouped.limits))
        index = np.full(grouped.allowed.shape, -1, dtype=np.intp)
        index[group, column] = np.arange(len(group))
        costs = grouped.costs[:, group, column]
        sizes = np.abs(limits) + np.abs(grouped.costs).max(axis=2).sum(axis=1)
        edge = LAST_DIGITS * sizes + grouped.rounding
        return cls(rows, linear, costs, limits, edge, group, column, index, grouped.pairwise)

    def among(self, keep: Mask) -> "Quadratic":
        """The same with some of the moves ``[M]``, of every group at least one."""
        group, column = self.group[keep], self.column[keep]
        index = np.full(self.index.shape, -1, dtype=np.intp)
        index[group, column] = np.arange(len(group))
        return replace(
            self, rows=self.rows[keep], linear=self.linear[keep], costs=self.costs[:, keep],
            group=group, column=column, index=index,
        )  # fmt: skip

    @cached_property
    def joint(self) -> Array:
        """``[R, M, M]`` what pairs of moves cost beside the two alone."""
        # Large, and asked for only where there are pairwise.
        every = self.pairwise.dense(len(self.index))[1:]  # [R, G, B, G, B]
        moves = every[:, self.group, self.column]  # [R, M, G, B]
        return np.asarray(moves[:, :, self.group, self.column])

    def beside(self, first: Columns, second: Columns, old: Columns) -> Array:
        """``[R, P]`` what changing to two moves at once costs beside the changes to each.

        Args:
            first: ``[P]`` one move of each pair.
            second: ``[P]`` the other move of each pair, of another group.
            old: ``[M]`` the move that each replaces.
        """
        if not len(self.pairwise):
            # One column for all pairs, by broadcasting.
            return np.zeros((len(self.costs), 1))
        joint, before, other = self.joint, old[first], old[second]
        change = joint[:, first, second] - joint[:, before, second]
        return np.asarray(change - joint[:, first, other] + joint[:, before, other])

    @cached_property
    def starts(self) -> Columns:
        """``[G]`` first move of each group, for ``reduceat``."""
        return first_of_each(self.group)

    @cached_property
    def gram(self) -> Array:
        """``[M, M]``."""
        return np.asarray(self.rows @ self.rows.T)

    @cached_property
    def own(self) -> Array:
        """``[M]`` the diagonal of ``gram``."""
        return np.asarray(np.einsum("ms,ms->m", self.rows, self.rows))

    @cached_property
    def within(self) -> Array:
        """``[M, B]`` entries of ``gram`` with the moves of the same group."""
        products = np.zeros((len(self.group), self.index.shape[1]))
        for column in range(self.index.shape[1]):
            # Where a cell is not allowed, -1 is the last move: a wrong product that nobody reads.
            other = self.index[self.group, column]
            products[:, column] = np.einsum("ms,ms->m", self.rows, self.rows[other])
        return products

    def moves(self, columns: Columns) -> Columns:
        """``[G]`` moves that make up a choice ``[G]``."""
        return self.index[np.arange(len(columns)), columns]

    def changes(self, held: Columns) -> Array:
        """``[M]`` of the loss by each move alone, in place of the one of its group in ``[G]``."""
        old = held[self.group]  # [M] what each move replaces
        slope = self.rows @ self.rows[held].sum(axis=0) + self.linear
        # With d = e_new - e_old, the change is d' (G x + c) + d' G d / 2.
        exchanged = self.within[np.arange(len(old)), self.column[old]]
        own = 0.5 * self.own
        return np.asarray(slope - slope[old] + own + own[old] - exchanged)

    def loss(self, columns: Columns) -> float:
        """Of a choice ``[G]``, in the loss table's unit."""
        held = self.moves(columns)
        # Through the factor: of all moves only those that are held are touched.
        together = self.rows[held].sum(axis=0)
        return float(0.5 * (together @ together) + self.linear[held].sum())


def first_of_each(group: Columns) -> Columns:
    """``[G]`` positions at which an ascending ``group [M]``, from 0, begins anew."""
    return np.flatnonzero(np.diff(group, prepend=-1))
