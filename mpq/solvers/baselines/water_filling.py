"""A baseline: reverse water-filling, the closed form of bit allocation, rounded."""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from mpq._support.arrays import Array, Columns
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.solvers._base import Solver
from mpq.solvers.additive.answers import require_one_budget
from mpq.solvers.additive.hull import Hull
from mpq.solvers.additive.presolve import Reduced
from mpq.solvers.baselines._base import solved_by

_HALVINGS = 100
"""Of an interval of float64 numbers: past 64 it no longer shrinks, whatever its size."""


@final
@dataclass(frozen=True)
class WaterFilling(Solver):
    r"""Gives every layer the cost at which all of them gain the same for one unit more.

    Where a layer's loss falls exponentially with its cost, :math:`a_g e^{-k_g c}`, as it does with
    bits at high rate, the best real-valued allocation has equal slopes,

    .. math:: c_g(\mu) = \ln(a_g k_g / \mu) / k_g,

    within the layer's range, and :math:`\mu` is where the budget is used up: reverse water-filling
    (Cover and Thomas, Elements of Information Theory, 2006, section 10.3), the closed form of BAQ
    (Zhang et al. 2025, arXiv:2506.05664) and of Shoham and Gersho (1988, doi:10.1109/29.90373).
    Departs from BAQ in that the exponentials are fitted to the given table, a line through the
    logarithms of its slopes, and not derived from a Hessian; and in that the level is the one at
    which costs rounded to the nearest precision are within the budget.
    """

    name: ClassVar[str] = "water-filling"
    takes_interactions: ClassVar[bool] = False
    takes_pairs: ClassVar[bool] = False
    summary: ClassVar[str] = "baseline: reverse water-filling (BAQ), rounded; one budget"

    def solve(self, problem: Problem) -> Solution:
        """See ``Solver.solve``.

        Raises:
            InputError: If the problem has interactions, costs of pairs of layers, or more than one
                budget that can bind.
        """
        return solved_by(_filled, problem, self.name)


def _filled(reduced: Reduced) -> Columns:
    require_one_budget(reduced, WaterFilling.name)
    if not len(reduced.excess):
        return reduced.unlimited
    cost = reduced.excess[0]
    hull = Hull.of(reduced.rise, cost, reduced.usable)
    level, decay = _fitted(hull, cost)
    least = cost[np.arange(len(cost)), hull.start]
    most = least + np.bincount(hull.row, hull.cost, minlength=len(cost))

    # A cell above the hull must not be rounded to: between its neighbours it gains less per cost.
    on_hull = np.zeros(cost.shape, dtype=np.bool_)
    on_hull[np.arange(len(cost)), hull.start] = on_hull[hull.row, hull.column] = True

    def rounded(slope: float) -> Columns:
        amount = np.clip((level - slope) / decay, least, most)
        distance = np.where(on_hull, np.abs(cost - amount[:, None]), np.inf)
        return np.asarray(distance.argmin(axis=1))

    # At the lowest slope every row is at its most, at the highest at its least, which fits.
    low, high = float((level - decay * most).min()), float((level - decay * least).max())
    for _ in range(_HALVINGS):
        slope = 0.5 * (low + high)
        is_over = (reduced.used(rounded(slope)) > 1).any()
        low, high = (slope, high) if is_over else (low, slope)
    # `high` begins within the budget, and moves only to levels that are.
    return rounded(high)


def _fitted(hull: Hull, cost: Array) -> tuple[Array, Array]:
    """Every row's logarithm of the slope at no cost, and how fast it falls with the cost.

    A line through the hull's slopes at the middles of its steps, by least squares. A row with a
    single slope falls, as with one bit more, by a factor of four from one end to the other.
    """
    rows = len(cost)

    def sums(values: Array) -> Array:
        return np.bincount(hull.row, values, minlength=rows).astype(np.float64)

    # A step has the mean slope of its interval, which the fitted line has near the middle.
    middle = cost[hull.row, hull.column] - 0.5 * hull.cost
    slope = np.log(hull.gain / hull.cost)
    # A row without steps divides by 1: it has a single cell, to which any amount is clipped.
    count = np.maximum(np.bincount(hull.row, minlength=rows), 1)
    mean, height = sums(middle) / count, sums(slope) / count
    spread = sums((middle - mean[hull.row]) ** 2)
    # Positive, as slopes fall along a hull: so the decay can be divided by.
    falls = -sums((middle - mean[hull.row]) * (slope - height[hull.row]))
    length = sums(hull.cost)
    one_bit = np.log(4.0) / np.where(length > 0, length, 1.0)
    decay = np.where(spread > 0, falls / np.where(spread > 0, spread, 1.0), one_bit)
    return height + decay * mean, decay
