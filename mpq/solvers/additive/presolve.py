"""A multiple-choice knapsack without what does not matter: floors, units, cells that cannot be."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self, final

import numpy as np

from mpq._support.arrays import Array, Columns, Mask
from mpq.problem.grouped import Grouped
from mpq.problem.pairwise_costs import PairwiseCosts
from mpq.problem.tolerances import LAST_DIGITS, LIMIT

_BEYOND = 2.0
"""Units of a budget: more than there are."""


@final
@dataclass(frozen=True, eq=False)
class Reduced:
    r"""Choose one column per row: least rise, while no budget takes more than 1.

    Every row takes exactly one column, so that its smallest loss and its smallest costs can be
    taken off both sides; what a limit leaves free is the unit of its budget. Nothing here depends
    on the units that the user chose, and a budget is met as ``Budget.is_met`` says. Budgets that
    every choice meets are left out, so that ``R`` may be smaller than the problem's.

    Args:
        rise: ``[G, B]`` loss above the row's smallest, at least 0; 0 where not usable.
        excess: ``[R, G, B]`` cost above the row's smallest, in units of what is free; 0 where not
            usable.
        usable: ``[G, B]`` False where a cell is not allowed, alone overruns a budget, or costs and
            loses at least as much as another of its row.
        free: ``[R]`` the unit of each budget, in the user's.
        edge: ``[R]`` units that a sum here may differ by from ``Budget.is_met``'s, which decides.
        offset: Sum of the rows' smallest losses.
        overrun: Whether the smallest costs of all rows together already break a budget.
        pairwise: What pairs of rows rise and cost besides, in the same units; at least 0, and
            more than 1 where the two alone overrun a budget.
    """

    rise: Array
    excess: Array
    usable: Mask
    free: Array
    edge: Array
    offset: float
    overrun: bool
    pairwise: PairwiseCosts

    @classmethod
    def of(cls, grouped: Grouped, allowed: Mask | None = None) -> Self:
        """From a problem with ties added up.

        Args:
            grouped: Losses, costs and limits of the groups, in the user's units.
            allowed: ``[G, B]`` cells to choose among; default: all that are allowed.
        """
        usable = (grouped.allowed if allowed is None else allowed).copy()
        while True:
            floors = np.where(usable, grouped.costs, np.inf).min(axis=2)  # [R, G]
            excess = np.where(usable, grouped.costs - floors[:, :, None], 0.0)
            # In the order of `Budget.is_met`.
            allowance = grouped.limits + LIMIT * np.abs(grouped.limits)
            free = allowance - [math.fsum(row) for row in floors.tolist()]
            # What overruns by no more than the last digits stays: the answer is checked exactly.
            sizes = np.abs(grouped.limits) + np.abs(floors).sum(axis=1)
            edge = LAST_DIGITS * (sizes + usable.shape[0] * np.abs(free)) + grouped.rounding
            # Where ties, pairs or a constant were added up, even the sum of the floors is rounded.
            is_overrun = bool((free < np.where(grouped.rounding > 0, -edge, 0.0)).any())
            free = np.maximum(free, 0.0)
            beyond = (free + edge)[:, None, None]
            overruns = usable & (excess > beyond).any(axis=0)
            is_overrun |= bool((usable == overruns).all(axis=1).any())
            if is_overrun or not overruns.any():
                break
            usable &= ~overruns  # which may lift the floors
        usable &= ~_dominated(grouped, excess, usable)
        if len(grouped.pairwise) and not is_overrun and (usable != grouped.allowed).any():
            # Where a row has fewer cells, more of a pair's cost depends on the other row alone.
            return cls.of(grouped.among(usable))
        floor = np.where(usable, grouped.loss, np.inf).min(axis=1)
        rise = np.where(usable, grouped.loss - floor[:, None], 0.0)
        unit = np.where(free > 0, free, 1.0)[:, None, None]
        joint = grouped.pairwise.values[:, 1:]  # [K, R, B, B]
        most = np.where(usable, excess, 0.0).max(axis=2).sum(axis=1)
        most += joint.max(axis=(2, 3), initial=0.0).sum(axis=0)
        # In doubt it stays: a row too many costs time, one too few breaks a budget.
        binds = most > free * (1 - LIMIT)
        offset = math.fsum(floor.tolist())
        # A pair beyond the limit is ruled out and need not be as large as it is.
        joint = np.where(joint > beyond, _BEYOND, np.minimum(joint / unit, 1.0))[:, binds]
        values = np.concatenate([grouped.pairwise.values[:, :1], joint], axis=1)
        pairwise = replace(grouped.pairwise, values=values)
        # A cell beyond the limit is ruled out; in units of a denormal limit it would overflow.
        excess = np.minimum(np.where(usable, excess, 0.0) / unit, 1.0)[binds]
        edge = (edge / unit[:, 0, 0])[binds]
        return cls(rise, excess, usable, free[binds], edge, offset, is_overrun, pairwise)

    def loss(self, columns: Columns) -> float:
        """Sum of rises of ``columns [G]``."""
        rises = self.rise[np.arange(len(columns)), columns].tolist()
        return math.fsum([*rises, float(self.pairwise.cost(columns[None])[0, 0])])

    def used(self, columns: Columns) -> Array:
        """``[R]`` shares of the budgets that ``columns [G]`` uses."""
        alone = self.excess[:, np.arange(len(columns)), columns].sum(axis=1)
        return np.asarray(alone + self.pairwise.cost(columns[None])[0, 1:])

    @property
    def at_worst(self) -> Self:
        """Without pairwise costs: each costs its first row what it costs there at most."""
        rise, excess = self.rise.copy(), self.excess.copy()
        for row, values in zip(self.pairwise.first.tolist(), self.pairwise.values, strict=True):
            rise[row] += values[0].max(axis=1)
            excess[:, row] += values[1:].max(axis=2)
        none = replace(
            self.pairwise,
            first=self.pairwise.first[:0],
            second=self.pairwise.second[:0],
            values=self.pairwise.values[:0],
        )
        return replace(self, rise=rise, excess=excess, pairwise=none)

    @cached_property
    def worst(self) -> float:
        """The largest sum of rises that any choice has."""
        return float(self.rise.max(axis=1).sum())

    @cached_property
    def highest(self) -> float:
        """The largest rise of a cell, or of a pair."""
        # A row without a choice has no rise: nothing that all choices have sets this scale.
        alone = float(self.rise.max(initial=0.0))
        return max(alone, float(self.pairwise.values[:, 0].max(initial=0.0)))

    @cached_property
    def unlimited(self) -> Columns:
        """``[G]`` the cells that have the least loss, whatever they cost."""
        return np.asarray(np.where(self.usable, self.rise, np.inf).argmin(axis=1))


def _dominated(grouped: Grouped, excess: Array, usable: Mask) -> Mask:
    """``[G, B]`` cells that another of the row betters in everything; of equal ones all but one.

    Beside a pairwise cost, whatever the other row takes (dead-end elimination, Desmet et al. 1992,
    doi:10.1038/356539a0).
    """
    values = np.concatenate([grouped.loss[None], excess])  # [1 + R, G, B]
    rises = values[..., :, None] - values[..., None, :]  # [1 + R, G, B, B] of the first
    pairwise = grouped.pairwise
    for (first, second), joint in zip(pairwise.ends, pairwise.values, strict=True):
        for row, other, costs in ((first, second, joint), (second, first, joint.swapaxes(1, 2))):
            seen = costs[:, :, usable[other]]  # [1 + R, B, C]
            rises[:, row] += (seen[:, :, None] - seen[:, None]).max(axis=3, initial=-np.inf)
    at_most = (rises <= 0).all(axis=0)  # [G, B, B]
    columns = np.arange(usable.shape[1])
    # Equal cells better each other; of them the first stays.
    is_first = columns[:, None] < columns
    betters = usable[:, :, None] & at_most & (~at_most.swapaxes(1, 2) | is_first)
    found = betters.any(axis=1) & usable
    # Rounding must not let three cells better each other in a circle.
    return np.asarray(found & (usable & ~found).any(axis=1, keepdims=True))
