"""The Lagrangian relaxation of very many rows at given prices, in one pass over them."""

from dataclasses import dataclass
from typing import Self, final

import numpy as np
import numpy.typing as npt

from mpq._support.arrays import Array, Columns
from mpq.problem.tolerances import LAST_DIGITS
from mpq.solvers.additive.rows import Choice, Rows
from mpq.solvers.additive.sifting import priced, told_apart


@final
@dataclass(frozen=True, eq=False)
class Relaxed:
    """The relaxation of all rows at given prices.

    Args:
        prices: ``[R]``.
        columns: ``[G]`` of least loss with costs at these prices.
        second: ``[G]`` what the next column of the row adds at least.
        bound: No choice within the limits loses less.
        used: ``[R]`` sums of the costs of the columns.
    """

    prices: Array
    columns: Choice
    second: npt.NDArray[np.float32]
    bound: float
    used: Array

    @classmethod
    def at(cls, rows: Rows, prices: Array) -> Self:
        """In one pass over the rows."""
        columns = np.empty(len(rows), dtype=np.min_scalar_type(rows.loss.shape[1] - 1))
        second = np.empty(len(rows), dtype=np.float32)
        used, least, size = np.zeros(len(prices)), 0.0, 0.0
        for part in rows.parts(np.arange(len(rows))):
            losses, costs = rows.losses(part), rows.expenses(part)
            lowest = priced(losses, costs, prices).min(axis=1)
            least, size = least + float(lowest.sum()), size + float(np.abs(lowest).sum())
            split = priced(told_apart(losses, part), costs, prices)
            at = np.arange(len(part)), split.argmin(axis=1)
            columns[part], lowest = at[1], split[at]
            split[at] = np.inf
            second[part] = split.min(axis=1) - lowest
            used += costs[:, *at].sum(axis=1)
        worth = float(prices @ rows.allowance)
        # What adding up may have changed must not lift a bound.
        rounding = LAST_DIGITS * (size + float(prices @ np.abs(rows.allowance)))
        return cls(prices, columns, second, least - worth - rounding, used)

    def held(self, costs: Array, taken: Columns) -> Array:
        """``[R]`` what all rows use but ``N``, of which costs and columns are given."""
        return np.asarray(self.used - costs[:, np.arange(len(taken)), taken].sum(axis=1))

    def with_core(self, core: Columns, taken: Columns) -> Choice:
        """The columns with other ones for the core."""
        columns = self.columns.copy()
        columns[core] = taken
        return columns

    def beside(self, rows: Rows, core: Columns) -> float:
        """No choice loses less in which a row beside the core has another column than here.

        Infinite where all rows are in the core.
        """
        rise, others = np.inf, np.delete(np.arange(len(rows)), core)
        for part in rows.parts(others):
            # Of the losses as they are, by which rows may have another column.
            found = priced(rows.losses(part), rows.expenses(part), self.prices)
            least = found.min(axis=1)
            found[np.arange(len(part)), self.columns[part]] = np.inf
            rise = min(rise, float((found.min(axis=1) - least).min()))
        return self.bound + rise

    def core(self, most: int) -> Columns:
        """The rows that are nearest to another column, at most so many."""
        if len(self.second) <= most:
            return np.arange(len(self.second))
        highest = np.partition(self.second, most - 1)[most - 1]
        below = np.flatnonzero(self.second < highest)
        equal = np.flatnonzero(self.second == highest)[: most - len(below)]
        return np.sort(np.concatenate([below, equal]))
