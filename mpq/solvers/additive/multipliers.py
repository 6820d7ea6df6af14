"""Lagrangian relaxation: one multiplier for every budget, and the bound that they prove."""

from dataclasses import dataclass
from typing import Self, final

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array

from mpq._support.arrays import Array, Columns, Mask
from mpq.problem.tolerances import DUAL_BOUND
from mpq.solvers.additive.presolve import Reduced

# Caps against rounding that keeps an iteration alive: each step visits a new corner of the bound
# otherwise, and whatever the last one found is a valid bound.
_MAX_SECANTS = 500
_MAX_PLANES = 40
_MAX_PROGRAMS = 20
_PROGRAM_CELLS = 3000
"""Cells, beside one for each row, of the first linear program, or of one for its choice."""
_CLOSE = 1e-12
"""Distance of the bound from its upper estimate at which it is largest, relative to all losses."""

_CLOSE_IN_BOX = 1e-7
"""The same in units of a box, as fine as linear programs are solved."""


@final
@dataclass(frozen=True, eq=False)
class Dual:
    r"""The relaxation at given multipliers.

    .. math:: L(\mu) = \sum_g \min_b \bigl(s_{gb} + \sum_r \mu_r c^r_{gb}\bigr) - \sum_r \mu_r

    For every :math:`\mu \ge 0`, no choice within the budgets loses less than :math:`L(\mu)`
    (Everett 1963, doi:10.1287/opre.11.3.399).

    Args:
        multipliers: ``[R]``, loss for the whole of what is free of a budget.
        bound: ``L`` at these multipliers: no choice within the budgets rises by less.
        reduced_cost: ``[G, B]``, at least 0: what a cell adds to the bound if it is forced;
            infinite where it is not usable.
        columns: ``[G]`` cells whose reduced cost is 0.
        used: ``[R]`` shares of the budgets that they use.
    """

    multipliers: Array
    bound: float
    reduced_cost: Array
    columns: Columns
    used: Array

    @classmethod
    def at(cls, problem: Reduced, multipliers: Array) -> Self:
        """The relaxation at some multipliers."""
        # Of no budgets at all, tensordot makes zeros: that case needs no branch.
        weighted = problem.rise + np.tensordot(multipliers, problem.excess, axes=1)
        weighted = np.where(problem.usable, weighted, np.inf)
        columns = weighted.argmin(axis=1)
        least = weighted[np.arange(len(columns)), columns]
        bound = float(least.sum() - multipliers.sum())
        return cls(multipliers, bound, weighted - least[:, None], columns, problem.used(columns))

    def owed(self, problem: Reduced) -> float:
        """How far below the bound a choice may lose that is within a budget by its last digits.

        Where steps of a budget are a millionth of what it counts, such digits are worth something.
        """
        return float(self.multipliers @ problem.edge)

    def proves_infeasible(self, problem: Reduced) -> bool:
        """Whether the bound is above every loss, so that no choice can be within the budgets."""
        rounding = DUAL_BOUND * (problem.worst + float(self.multipliers.sum()))
        rounding += self.owed(problem)
        return self.bound > problem.worst + rounding

    def cells_within(self, count: int) -> Mask:
        """``[G, B]`` the cells of least reduced cost, so many beside one for each row."""
        rest = self.reduced_cost.copy()
        # Below every reduced cost: a row's own cell is in, whatever the count.
        rest[np.arange(len(rest)), self.columns] = -1.0
        flat = np.sort(rest, axis=None)
        finite = int(np.isfinite(flat).sum())
        # Never as far as the infinite ones, which are not usable.
        return np.asarray(rest <= flat[min(len(rest) + count, finite) - 1])


def maximised(problem: Reduced) -> tuple[Dual, Columns | None]:
    """The relaxation where its bound is largest.

    The bound is concave and piecewise linear in as many dimensions as there are budgets; an
    evaluation is a minimum over ``[G, B]``.

    Returns:
        The relaxation, and the best choice ``[G]`` within the budgets that was met on the way:
        with at most one budget there always is one.
    """
    near, within = nearly_maximised(problem)
    is_free = not near.multipliers.any() and (near.used <= 1).all()
    if is_free or len(near.used) == 1:
        return near, within
    return _finished(problem, near), within


def nearly_maximised(problem: Reduced) -> tuple[Dual, Columns | None]:
    """The same without linear programs over cells, which take longest; exact with one budget.

    With several, the bound is below the largest by what is rounding beside all losses together.
    """
    start = Dual.at(problem, np.zeros(len(problem.excess)))
    # At multipliers of 0 this is the least loss of all: within the budgets it is the answer.
    if (start.used <= 1).all():
        return start, start.columns
    return _secants(problem, start) if len(start.used) == 1 else _cutting_planes(problem, start)


def _secants(problem: Reduced, over: Dual) -> tuple[Dual, Columns]:
    """One budget: where the lines of a choice above it and of one within it meet, look again."""
    # The cheapest cells are within the budget; of equally cheap ones, the least loss.
    within = np.where(problem.excess[0] == 0, problem.rise, np.inf)
    within = np.where(problem.usable, within, np.inf).argmin(axis=1)
    above, found = over.columns, over
    for _ in range(_MAX_SECANTS):
        gained = problem.loss(within) - problem.loss(above)
        released = problem.used(above)[0] - problem.used(within)[0]
        # One choice is above the budget and one within it, so that what is released is positive.
        multiplier = max(gained / released, 0.0)
        found = Dual.at(problem, np.array([multiplier]))
        # Both choices' lines are above the bound, which is largest where it reaches their crossing.
        expected = problem.loss(within) + multiplier * (problem.used(within)[0] - 1)
        if expected - found.bound <= _CLOSE * problem.worst:
            break
        if found.used[0] <= 1:
            within = found.columns
        else:
            above = found.columns
    return found, within


def _finished(problem: Reduced, best: Dual) -> Dual:
    """Several budgets: cutting planes came near, linear programs over few cells finish.

    Cells that a program's multipliers would rather have are added to the next one until there are
    none (column generation, Dantzig and Wolfe 1960, doi:10.1287/opre.8.1.101).
    """
    if best.proves_infeasible(problem):
        return best
    near = best.cells_within(_PROGRAM_CELLS)
    for _ in range(_MAX_PROGRAMS):
        solved = _program(problem, near, best.columns)
        if solved is None:  # no choice among so few cells: the planes' bound holds
            break
        found = Dual.at(problem, solved[0])
        best = max(best, found, key=lambda dual: dual.bound)
        # Column generation's test: a cell below the least of its row's would lower the program.
        held = np.where(near, found.reduced_cost, np.inf).min(axis=1)
        missing = found.reduced_cost < held[:, None] - _CLOSE * problem.worst
        if not missing.any():
            break
        near |= missing
    return best


def _cutting_planes(problem: Reduced, start: Dual) -> tuple[Dual, Columns | None]:
    """Every choice that was met is a plane above the bound (Kelley 1960, doi:10.1137/0108053).

    The multipliers stay in a box until no larger bound is found at its border.
    """
    # Without a box the first programs have no largest value: one plane rises for ever. The worst
    # loss is the scale, as a multiplier is loss for the whole of what is free.
    unit = problem.worst or 1.0
    planes = [(problem.loss(start.columns) / unit, start.used - 1)]
    best, within, box = start, None, 1.0
    for _ in range(_MAX_PLANES):
        highest = _highest(planes, box)
        if highest is None:  # the bound holds that was found before
            break
        estimate, multipliers = highest
        found = Dual.at(problem, multipliers * unit)
        best = max(best, found, key=lambda dual: dual.bound)
        loss = problem.loss(found.columns)
        if (found.used <= 1).all() and (within is None or loss < problem.loss(within)):
            within = found.columns
        if best.proves_infeasible(problem):
            break
        planes.append((loss / unit, found.used - 1))
        if estimate - best.bound / unit <= _CLOSE * box:
            # The border is met to within a tolerance only.
            if (multipliers < 0.999 * box).all():
                break
            box *= 100.0
    return best, within


def maximised_within(problem: Reduced, low: Array, high: Array) -> Dual:
    """The relaxation where its bound is largest among multipliers ``[R]`` from low to high.

    Cutting planes as well, but in units of the box and of what the bound differs by in it: so their
    tolerances are as fine as the box is small.
    """
    width = high - low
    best = found = Dual.at(problem, 0.5 * (low + high))
    unit = float(np.abs((found.used - 1) * width).sum()) or 1.0
    base, planes = found.bound, list[tuple[float, Array]]()
    for _ in range(_MAX_PLANES):
        slope = (found.used - 1) * width / unit
        place = (found.multipliers - low) / width
        planes.append(((found.bound - base) / unit - float(slope @ place), slope))
        highest = _highest(planes, 1.0)
        if highest is None or highest[0] - (best.bound - base) / unit <= _CLOSE_IN_BOX:
            break
        found = Dual.at(problem, low + highest[1] * width)
        best = max(best, found, key=lambda dual: dual.bound)
    return best


def _highest(planes: list[tuple[float, Array]], box: float) -> tuple[float, Array] | None:
    """The highest point under all planes, with multipliers within a box.

    Levels and multipliers are in units of the worst loss: HiGHS calls numbers from 1e20 on
    infinite, and its tolerances are absolute. ``None`` where it fails all the same.
    """
    levels = np.array([level for level, _ in planes])
    slopes = np.array([slope for _, slope in planes])
    num_budgets = slopes.shape[1]
    found = linprog(
        # linprog minimises: the height counts negatively.
        np.r_[-1.0, np.zeros(num_budgets)],
        A_ub=np.hstack([np.ones((len(planes), 1)), -slopes]),
        b_ub=levels,
        # Its variables are at least 0 unless told otherwise, and a height may be negative.
        bounds=[(None, None)] + [(0, box)] * num_budgets,
    )
    # Variables keep their bounds up to a tolerance, too: one below 0 would prove what is not so.
    return None if found.x is None else (float(found.x[0]), np.maximum(found.x[1:], 0.0))


def nearest_vertex(problem: Reduced, dual: Dual) -> Columns | None:
    """``[G]`` a choice of least rise, but for as many rows as there are budgets.

    These share two columns in the linear program, and have the one of which they have more: so the
    choice may overrun budgets by what few rows cost. ``None`` where the cells of least reduced cost
    do not hold a choice within the budgets.
    """
    found = _program(problem, dual.cells_within(_PROGRAM_CELLS), dual.columns)
    return None if found is None else found[1]


def _program(problem: Reduced, near: Mask, columns: Columns) -> tuple[Array, Columns] | None:
    """Multipliers and choice of the linear program over some cells; rows with one cell keep it."""
    near = near.copy()
    near[np.arange(len(near)), columns] = True
    is_open = near.sum(axis=1) > 1
    group, column = np.nonzero(near & is_open[:, None])
    kept = problem.excess[:, ~is_open, columns[~is_open]].sum(axis=1)
    position = np.cumsum(is_open) - 1
    one = csr_array((np.ones(len(group)), (position[group], np.arange(len(group)))))
    # HiGHS's tolerances are absolute: no cell rises by more than 1 in this unit.
    unit = problem.worst or 1.0
    found = linprog(
        problem.rise[group, column] / unit,
        A_ub=problem.excess[:, group, column],
        b_ub=1 - kept,
        A_eq=one,
        b_eq=np.ones(int(is_open.sum())),
    )
    if found.status != 0:
        return None
    # Written by rising share, so that the largest of a row stays.
    order = np.argsort(found.x, kind="stable")
    vertex = columns.copy()
    vertex[group[order]] = column[order]
    # Marginals of rows with <= are at most 0, up to a tolerance. Any multipliers prove a bound as
    # long as they are not negative.
    return np.maximum(-np.asarray(found.ineqlin.marginals) * unit, 0.0), vertex
