"""What groups of tied layers cost two by two: the part of a problem that is no sum over groups."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self, final

import numpy as np
import numpy.typing as npt

from mpq._support.arrays import Array, Columns
from mpq.problem.cost_table import CostTable
from mpq.problem.tolerances import DIFFERENCE


@final
@dataclass(frozen=True, eq=False)
class PairwiseCosts:
    """Costs of pairs of groups, in the loss and in every budget at once.

    Two groups are in at most one pair. What depends on one of them alone is not in it, so that
    values are at least 0, and 0 somewhere in every row and column that is allowed.

    Args:
        first: ``[K]`` index of a group, as in ``Grouped``.
        second: ``[K]`` index of a later group than ``first``.
        values: ``[K, 1 + R, B, B]`` of the loss, then of every budget, by the columns of both; 0
            where one is not allowed.
    """

    first: Columns
    second: Columns
    values: Array

    def __len__(self) -> int:
        return len(self.first)

    @classmethod
    def of(cls, tables: Iterable[CostTable], group_of: Mapping[str, int]) -> tuple[Array, Self]:
        """Constants, and pairs of layers as pairs of groups.

        Args:
            tables: ``T`` tables of the same layers and precisions.
            group_of: Layer name to the index of its group; every layer is in one.

        Returns:
            ``[T, G, B]`` what belongs to one group: pairs of tied layers, and the constant, which
            is given to the first group as every choice has one cell of it; and the pairwise
            costs, not yet ``separated``.
        """
        tables = tuple(tables)
        size = len(tables[0].precisions)
        alone = np.zeros((len(tables), max(group_of.values()) + 1, size))
        joint: dict[tuple[int, int], Array] = {}
        for row, table in enumerate(tables):
            alone[row, 0] += table.constant
            for pair in table.pairs:
                one, other = group_of[pair.first], group_of[pair.second]
                if one == other:
                    # Tied layers share their column, so only the diagonal can ever be paid.
                    alone[row, one] += np.diagonal(pair.values)
                    continue
                # Pairs of layers may name two groups in either order; one matrix takes all.
                key = min(one, other), max(one, other)
                # One array for all tables: a table without such a pair leaves its slice at 0.
                both = joint.setdefault(key, np.zeros((len(tables), size, size)))
                both[row] += pair.values if one < other else pair.values.T
        # Without any pair both arrays would come out with a single axis.
        ends = np.array(sorted(joint), dtype=np.intp).reshape(-1, 2)
        values = np.array([joint[key] for key in sorted(joint)])
        return alone, cls(ends[:, 0], ends[:, 1], values.reshape(-1, len(tables), size, size))

    def separated(self, allowed: npt.NDArray[np.bool_]) -> tuple[Array, Self]:
        """What depends on one group alone, and pairwise costs without that.

        The least of every row, then of every column. A group with a single column leaves nothing.

        Args:
            allowed: ``[G, B]``.

        Returns:
            ``[1 + R, G, B]`` to be added to the groups' own costs, and what is left.
        """
        num_tables = self.values.shape[1]
        alone = np.zeros((num_tables, *allowed.shape))
        values = np.zeros_like(self.values)
        for k, (one, other) in enumerate(self.ends):
            # Minima over allowed cells only: a cheaper one that nobody can take would keep what is
            # left above 0, where every row and column of ``values`` promises a 0.
            cells = np.ix_(np.arange(num_tables), *map(np.flatnonzero, allowed[[one, other]]))
            block = self.values[k][cells]
            # Pairs may save something, while presolve takes for granted that they cost at least 0.
            rows = block.min(axis=2, keepdims=True)
            columns = (block - rows).min(axis=1, keepdims=True)
            left = block - rows - columns
            # A cell that should be 0 but is not would couple groups that do not interact.
            noise = DIFFERENCE * np.abs(block).max(axis=(1, 2), keepdims=True)
            values[k][cells] = np.where(left > noise, left, 0.0)
            alone[:, one, allowed[one]] += rows[:, :, 0]
            alone[:, other, allowed[other]] += columns[:, 0]
        # Groups whose cells are all 0 do not interact: fewer pairs make smaller models in solvers.
        kept = values.any(axis=(1, 2, 3))
        return alone, type(self)(self.first[kept], self.second[kept], values[kept])

    @property
    def ends(self) -> list[tuple[int, int]]:
        """``[K]`` both groups of every pair."""
        return list(zip(self.first.tolist(), self.second.tolist(), strict=True))

    def cost(self, assignments: Columns) -> Array:
        """``[P, 1 + R]`` what assignments ``[P, G]`` cost in the loss and in every budget."""
        columns = assignments[:, self.first], assignments[:, self.second]  # [P, K]
        # Index arrays on both sides of a slice put their axes [P, K] first: the sum is over K.
        return np.asarray(self.values[np.arange(len(self)), :, *columns].sum(axis=1))

    def dense(self, num_groups: int) -> Array:
        """``[1 + R, G, B, G, B]``, both ways; 0 where two groups are no pair."""
        num_tables, size = self.values.shape[1:3]
        found = np.zeros((num_tables, num_groups, size, num_groups, size))
        for k, (one, other) in enumerate(self.ends):
            found[:, one, :, other] = self.values[k]
            found[:, other, :, one] = self.values[k].swapaxes(1, 2)
        return found
