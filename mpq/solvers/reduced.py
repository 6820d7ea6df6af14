"""A multiple-choice knapsack without what does not matter: floors, units, cells that cannot be."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Self, final

import numpy as np
import numpy.typing as npt

from mpq.budget import ROUNDING
from mpq.problem import Choice, Grouped

Array = npt.NDArray[np.float64]
Cells = npt.NDArray[np.bool_]


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
        excess: ``[R, G, B]`` cost above the row's smallest, in units of what is free.
        usable: ``[G, B]`` False where a cell is not allowed, alone overruns a budget, or costs and
            loses at least as much as another of its row.
        free: ``[R]`` the unit of each budget, in the user's.
        offset: Sum of the rows' smallest losses.
        overrun: Whether the smallest costs of all rows together already break a budget.
    """

    rise: Array
    excess: Array
    usable: Cells
    free: Array
    offset: float
    overrun: bool

    @classmethod
    def of(cls, grouped: Grouped, allowed: Cells | None = None) -> Self:
        """From a problem with ties added up.

        Args:
            grouped: The problem.
            allowed: ``[G, B]`` cells to choose among; default: all that are allowed.
        """
        usable = (grouped.allowed if allowed is None else allowed).copy()
        while True:
            floors = np.where(usable, grouped.costs, np.inf).min(axis=2)  # [R, G]
            excess = np.where(usable, grouped.costs - floors[:, :, None], 0.0)
            # What is free is compared as `Budget.is_met` compares it.
            free = grouped.limits - [math.fsum(row) for row in floors.tolist()]
            free += ROUNDING * np.abs(grouped.limits)
            overruns = usable & (excess > free[:, None, None]).any(axis=0)
            is_overrun = bool((free < 0).any()) or bool((usable == overruns).all(axis=1).any())
            if is_overrun or not overruns.any():
                break
            usable &= ~overruns  # which may lift the floors
        usable &= ~_dominated(grouped.loss, excess, usable)
        floor = np.where(usable, grouped.loss, np.inf).min(axis=1)
        rise = np.where(usable, grouped.loss - floor[:, None], 0.0)
        unit = np.where(free > 0, free, 1.0)[:, None, None]
        binds = np.where(usable, excess, 0.0).max(axis=2).sum(axis=1) > free * (1 - ROUNDING)
        offset = math.fsum(floor.tolist())
        return cls(rise, (excess / unit)[binds], usable, free[binds], offset, is_overrun)

    def loss(self, choice: Choice) -> float:
        """Sum of rises of ``choice [G]``."""
        return math.fsum(self.rise[np.arange(len(choice)), choice].tolist())

    def used(self, choice: Choice) -> Array:
        """``[R]`` shares of the budgets that ``choice [G]`` uses."""
        return np.asarray(self.excess[:, np.arange(len(choice)), choice].sum(axis=1))

    @cached_property
    def worst(self) -> float:
        """The largest sum of rises that any choice has."""
        return float(self.rise.max(axis=1).sum())

    @cached_property
    def unlimited(self) -> Choice:
        """``[G]`` the cells that lose least, whatever they cost."""
        return np.asarray(np.where(self.usable, self.rise, np.inf).argmin(axis=1))


def _dominated(loss: Array, excess: Array, usable: Cells) -> Cells:
    """``[G, B]`` cells that another of the row betters in everything; of equal ones all but one."""
    found = np.zeros_like(usable)
    for column in range(loss.shape[1]):
        others = np.arange(loss.shape[1]) != column
        values = np.concatenate([loss[None], excess])  # [1 + R, G, B]
        at_most = (values <= values[:, :, [column]]).all(axis=0)
        less = (values < values[:, :, [column]]).any(axis=0)
        betters = usable & others & at_most & (less | (np.arange(loss.shape[1]) < column))
        found[:, column] = betters.any(axis=1)
    return found & usable
