"""A problem as rows over groups of tied layers."""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import final

import numpy as np

from mpq._support.arrays import Array, Columns, Mask
from mpq.problem.pairwise_costs import PairwiseCosts


@final
@dataclass(frozen=True, eq=False)
class Grouped:
    """A problem with tied layers added up: what a solver works on.

    Every choice costs the sum of its cells and of its pairwise costs: what a table counts besides
    layers is in the cells of the first group.

    Args:
        loss: ``[G, B]`` in the loss table's unit.
        costs: ``[R, G, B]`` of ``R`` rows, 0 where a precision is not allowed: one for every table
            of every budget, then one for every cut.
        limits: ``[R]`` the largest sum of each row of ``costs``, in that row's unit.
        allowed: ``[G, B]`` whether a group may take a precision.
        members: For each group, the rows of its layers.
        pairwise: What pairs of groups cost besides.
        rounding: ``[R]`` what adding up tied layers, pairs and the constant may have changed in
            each row's sums; 0 where nothing was added up.
    """

    loss: Array
    costs: Array
    limits: Array
    allowed: Mask
    members: tuple[tuple[int, ...], ...]
    pairwise: PairwiseCosts
    rounding: Array

    def among(self, allowed: Mask) -> "Grouped":
        """The same with fewer cells ``[G, B]``, each of them allowed here."""
        # Which part depends on one group alone changes with the cells that are left.
        alone, pairwise = self.pairwise.separated(allowed)
        # A cell that cannot run is nan; as 0 it leaves minima, sums and solvers' matrices finite.
        loss, costs = self.loss + alone[0], np.where(allowed, self.costs + alone[1:], 0.0)
        return replace(self, loss=loss, costs=costs, allowed=allowed, pairwise=pairwise)

    def expand(self, columns: Columns) -> Columns:
        """A choice per layer ``[L]`` from one per group ``[G]``."""
        return np.asarray(columns[self.group_of])

    @cached_property
    def first(self) -> Columns:
        """``[G]`` the first layer of every group."""
        return np.array([rows[0] for rows in self.members], dtype=np.intp)

    @cached_property
    def group_of(self) -> Columns:
        """``[L]`` the group of every layer."""
        # Tied layers need not be neighbours, so the numbers are scattered to the members' rows.
        # Every layer is in exactly one group: no element stays unset.
        groups = np.empty(sum(map(len, self.members)), dtype=np.intp)
        sizes = [len(rows) for rows in self.members]
        rows = np.fromiter(chain.from_iterable(self.members), dtype=np.intp, count=len(groups))
        groups[rows] = np.repeat(np.arange(len(sizes)), sizes)
        return groups
