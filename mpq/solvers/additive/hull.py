"""Lower convex hulls: what a row loses for what it costs, without the cells that never pay."""

from dataclasses import dataclass
from typing import Self, final

import numpy as np
import numpy.typing as npt

from mpq._support.arrays import Array
from mpq.solvers.additive.cheapest import cheapest


@final
@dataclass(frozen=True, eq=False)
class Hull:
    """The lower convex hulls of many rows, as steps from the cheapest cell of each on.

    Args:
        start: ``[G]`` column of the cheapest cell; of several, the one that has the least loss.
        row: ``[T]`` of every step, steps by falling gain per cost.
        column: ``[T]`` where the step leads.
        cost: ``[T]`` what it costs more, above 0.
        gain: ``[T]`` what it loses less, above 0.
    """

    start: npt.NDArray[np.intp]
    row: npt.NDArray[np.intp]
    column: npt.NDArray[np.intp]
    cost: Array
    gain: Array

    @classmethod
    def of(cls, loss: Array, cost: Array, usable: npt.NDArray[np.bool_]) -> Self:
        """The hulls of ``loss [G, B]`` over ``cost [G, B]``; every row has a usable cell.

        From each vertex the next one is the cell of the largest gain per cost (Sinha and Zoltners
        1979, doi:10.1287/opre.27.3.503), for all rows at once.
        """
        rows = np.arange(len(loss))
        start = cheapest(loss, cost, usable)
        nothing = np.zeros(0, dtype=np.intp)
        at, found = start, [(nothing, nothing, np.zeros(0), np.zeros(0))]
        # `at` goes along with `rows`, which shrinks as rows arrive at their last vertex.
        while len(rows):
            more = cost[rows] - cost[rows, at][:, None]
            less = loss[rows, at][:, None] - loss[rows]
            pays = usable[rows] & (more > 0) & (less > 0)
            # The inner `where` is for cells that do not count: without it numpy would divide by 0.
            rate = np.where(pays, less / np.where(pays, more, 1.0), -np.inf)
            # Of cells on one line the farthest: the steps between would have the same rate.
            is_best = rate == rate.max(axis=1, keepdims=True)
            column = np.where(is_best & pays, more, -np.inf).argmax(axis=1)
            moves = pays.any(axis=1)
            rows, column = rows[moves], column[moves]
            picked = np.flatnonzero(moves), column
            found.append((rows, column, more[picked], less[picked]))
            at = column
        row, column, more, less = (np.concatenate(part) for part in zip(*found, strict=True))
        # Stable, so that steps of one row stay in their order where rounding makes rates equal.
        order = np.argsort(-less / more, kind="stable")
        return cls(start, row[order], column[order], more[order], less[order])
