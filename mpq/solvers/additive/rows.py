"""A multiple-choice knapsack of very many rows, as arrays that are read part by part."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import numpy.typing as npt

from mpq._support.arrays import Array, Columns, Mask
from mpq.errors import InputError
from mpq.problem.tolerances import LIMIT

_PART_CELLS = 1 << 17
"""Cells of a table that are read at a time: in float64 they stay in a processor's cache."""
Table = npt.NDArray[np.float32] | npt.NDArray[np.float64]
"""Losses and costs as they are stored."""
Choice = npt.NDArray[np.unsignedinteger]
"""``[G]`` columns, in the smallest type that holds them."""


@final
@dataclass(frozen=True, eq=False)
class Rows:
    """Choose one column per row: least loss within limits.

    A row is whatever has a precision of its own, such as an output channel, a block of channels,
    or a group of these that are tied and added up. Arrays are not copied, and must not change.
    They may be float32, which halves the memory; sums and comparisons are in float64 in any case,
    for a part of the rows at a time.

    Args:
        loss: ``[G, B]``, in any one unit.
        costs: ``[R, G, B]`` of ``R`` resources, each in a unit of its own.
        limits: ``[R]`` the largest sums of costs, in the same units.
        allowed: ``[G, B]`` whether a row may take a column; ``None``: all of them. What is not
            allowed may have any numbers.

    Raises:
        InputError: If shapes do not fit together, a number is not finite, or a row has no column.
    """

    loss: Table
    costs: Table
    limits: Array
    allowed: Mask | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "limits", np.array(self.limits, dtype=np.float64))
        shape = self.loss.shape
        if len(shape) != 2 or not all(shape):
            raise InputError(f"rows need a loss [G, B] that is not empty; got {shape}")
        num_limits = len(self.limits)
        if self.limits.shape != (num_limits,) or self.costs.shape != (num_limits, *shape):
            raise InputError(
                f"rows of a loss {shape} and limits {self.limits.shape} need costs [R, G, B] = "
                f"{(num_limits, *shape)}; got {self.costs.shape}"
            )
        if self.allowed is not None and self.allowed.shape != shape:
            raise InputError(f"rows: what is allowed is {self.allowed.shape}, the loss is {shape}")
        for what, array in (("loss", self.loss), ("cost", self.costs)):
            if array.dtype not in (np.float32, np.float64):
                raise InputError(f"rows: a {what} is float32 or float64; got {array.dtype}")
        if not np.isfinite(self.limits).all():
            raise InputError(f"rows: limits are finite; got {self.limits.tolist()}")
        for index in self.parts(np.arange(len(self))):
            self._check(index)

    def _check(self, index: Columns) -> None:
        allowed = self.usable(index)
        if not allowed.any(axis=1).all():
            row = int(index[~allowed.any(axis=1)][0])
            raise InputError(f"rows: row {row} has no column that is allowed")
        for what, table in (("loss", self.loss), *(("cost", cost) for cost in self.costs)):
            bad = allowed & ~np.isfinite(table[index])
            if bad.any():
                at, column = (int(i[0]) for i in np.nonzero(bad))
                raise InputError(
                    f"rows: row {index[at]} at column {column} has the {what} "
                    f"{table[index[at], column]}; every number must be finite where it is allowed"
                )

    def __len__(self) -> int:
        return len(self.loss)

    @cached_property
    def allowance(self) -> Array:
        """``[R]`` the limits with the slack that ``Budget.is_met`` has."""
        return np.asarray(self.limits + LIMIT * np.abs(self.limits))

    def parts(self, index: Columns) -> Iterator[Columns]:
        """The rows ``index [N]``, as many at a time as are read together."""
        step = max(_PART_CELLS // self.loss.shape[1], 1)
        for start in range(0, len(index), step):
            yield index[start : start + step]

    def usable(self, index: Columns) -> Mask:
        """``[N, B]`` what rows ``index [N]`` may take."""
        if self.allowed is None:
            return np.ones((len(index), self.loss.shape[1]), dtype=np.bool_)
        return np.asarray(self.allowed[index])

    def losses(self, index: Columns) -> Array:
        """``[N, B]`` of rows ``index [N]``; infinite where a column is not allowed."""
        found = self.loss[index].astype(np.float64)
        if self.allowed is not None:
            found[~self.allowed[index]] = np.inf
        return found

    def expenses(self, index: Columns) -> Array:
        """``[R, N, B]`` costs of rows ``index [N]``; 0 where a column is not allowed."""
        found = self.costs[:, index].astype(np.float64)
        if self.allowed is not None:
            found[:, ~self.allowed[index]] = 0.0
        return found

    def totals(self, index: Columns) -> "Totals":
        """What rows ``index [N]`` lose and cost at the least and at the most."""
        num_limits = len(self.limits)
        floor, spread, largest, size = np.zeros((4, num_limits))
        least = most = 0.0
        for part in self.parts(index):
            losses, usable = self.losses(part), self.usable(part)
            least += float(losses.min(axis=1).sum())
            most += float(np.where(usable, losses, -np.inf).max(axis=1).sum())
            costs = self.expenses(part)
            cheapest = np.where(usable, costs, np.inf).min(axis=2)  # [R, N]
            excess = np.where(usable, costs, -np.inf).max(axis=2) - cheapest
            floor += cheapest.sum(axis=1)
            size += np.abs(cheapest).sum(axis=1)
            spread += excess.sum(axis=1)
            largest = np.maximum(largest, excess.max(axis=1, initial=0.0))
        return Totals(floor, spread, largest, size, least, most)

    def reached(self, excess: Array) -> Mask:
        """``[G, B]`` what is allowed and at most ``excess [R]`` dearer than its row's cheapest."""
        found = np.empty(self.loss.shape, dtype=np.bool_)
        for part in self.parts(np.arange(len(self))):
            usable, costs = self.usable(part), self.expenses(part)
            floors = np.where(usable, costs, np.inf).min(axis=2, keepdims=True)
            found[part] = usable & (costs - floors <= excess[:, None, None]).all(axis=0)
        return found

    def used(self, columns: Choice) -> Array:
        """``[R]`` sums of the costs of ``columns [G]``."""
        parts = self.parts(np.arange(len(self)))
        return np.asarray(
            sum(self.costs[:, i, columns[i]].sum(axis=1, dtype=np.float64) for i in parts)
        )

    def lost(self, columns: Choice) -> float:
        """Sum of the losses of ``columns [G]``."""
        parts = self.parts(np.arange(len(self)))
        return float(sum(self.loss[i, columns[i]].sum(dtype=np.float64) for i in parts))


@final
@dataclass(frozen=True, eq=False)
class Totals:
    """Sums over rows; ``[R]`` where they are of costs.

    Args:
        floor: The least cost of every row.
        spread: Of the differences between the largest and the least cost of every row.
        largest: The largest of these differences; no sum.
        size: The least costs without their signs, for the rounding of sums.
        least: The least loss of every row.
        most: The largest loss of every row.
    """

    floor: Array
    spread: Array
    largest: Array
    size: Array
    least: float
    most: float
