"""The convex relaxation of a problem with interactions, by an interior point method."""

import time
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from mpq._support.arrays import Array, Columns, Mask
from mpq.problem.tolerances import LAST_DIGITS
from mpq.solvers.quadratic.moves import Quadratic

_ITERATIONS = 60
"""Of the interior point method, which mostly needs ten to twenty."""
_CLOSE = 1e-7
"""Of the relaxation's loss: the distance from its own bound at which it is solved."""
_PATIENCE = 5
"""Iterations without a better bound after which rounding is all that changes."""
_INSIDE = 0.995
"""Of the way to the border: a step to the border itself would be the last one."""


@final
@dataclass(frozen=True, eq=False)
class Relaxed:
    r"""What a slope of the loss and a multiplier for every budget prove.

    .. math:: D(z) \ge -\tfrac12 \lVert u \rVert^2 - \mu^T r
        + \sum_g \min_{m \in g} \bigl(c + F u + A^T \mu\bigr)_m

    for every assignment within the budgets, any ``u`` and any :math:`\mu \ge 0`.

    Args:
        bound: The right side, in the loss table's unit: no assignment loses less.
        reduced_cost: ``[M]``, at least 0: what a move adds to the bound if it is forced.
        share: ``[M]`` of each move in the relaxation's answer, from 0 to 1.
        multiplier: ``[R]`` loss for one unit of each budget.
    """

    bound: float
    reduced_cost: Array
    share: Array
    multiplier: Array

    def among(self, keep: Mask) -> "Relaxed":
        """Of some of the moves ``[M]``."""
        return replace(self, reduced_cost=self.reduced_cost[keep], share=self.share[keep])


def relaxed(quadratic: Quadratic, deadline: float = np.inf) -> Relaxed:
    r"""The relaxation in which a group may take shares of its moves, and its dual bound.

    .. math:: \min_x\; c^T x + \tfrac12 \lVert F^T x \rVert^2 \quad\text{s.t.}\quad
        \sum_{m \in g} x_m = 1,\; A x \le r,\; x \ge 0

    A primal-dual interior point method with predictor and corrector (Mehrotra 1992,
    doi:10.1137/0802028). As the quadratic form has as few dimensions as there are rows of the
    factor, its linear systems are of ``S + R`` unknowns, however many moves there are: the rest is
    diagonal, but for one sum a group (Fine and Scheinberg 2001, JMLR 2, do so for support vector
    machines). Departs from the papers in what is returned: the best bound that was met, which
    holds whether the method has converged or not.

    Args:
        quadratic: The loss and the budgets; what pairs of groups cost is not looked at.
        deadline: Time of ``time.perf_counter`` in seconds, at which it stops.
    """
    program = _Program.of(quadratic)
    point = program.first()
    best, primal = program.proved(point)
    idle, nearest = 0, point.complementarity
    for _ in range(_ITERATIONS):
        if primal - best.bound <= _CLOSE * abs(primal) or idle > _PATIENCE:
            break
        if time.perf_counter() > deadline:
            break
        following = program.stepped(point)
        if following is None:  # rounding has made the system singular
            break
        point = following
        found, primal = program.proved(point)
        # Far away bounds fall as often as they rise, while the method comes nearer all the same.
        is_closer = found.bound > best.bound or point.complementarity < 0.9 * nearest
        idle = 0 if is_closer else idle + 1
        nearest = min(nearest, point.complementarity)
        best = max(best, found, key=lambda one: one.bound)
    return program.in_units_of_the_table(best)


@final
@dataclass(frozen=True, eq=False)
class _Point:
    """Where the method stands; all but ``level`` above 0.

    Args:
        share: ``x [M]``.
        slack: ``s [R]``.
        level: ``y [G]`` multipliers of the groups' sums.
        distance: ``z [M]`` multipliers of the signs of ``x``.
        multiplier: ``[R]`` of the budgets.
    """

    share: Array
    slack: Array
    level: Array
    distance: Array
    multiplier: Array

    @property
    def complementarity(self) -> float:
        """What products of a variable and its multiplier are on average."""
        total = self.share @ self.distance + self.slack @ self.multiplier
        return float(total) / (len(self.share) + len(self.slack))

    def moved(self, step: "_Point", length: float) -> "_Point":
        """So far along a step."""
        return _Point(
            self.share + length * step.share, self.slack + length * step.slack,
            self.level + length * step.level, self.distance + length * step.distance,
            self.multiplier + length * step.multiplier,
        )  # fmt: skip

    def length(self, step: "_Point") -> float:
        """How far along a step nothing is below 0, at most 1."""
        return min(
            _to_border(self.share, step.share), _to_border(self.slack, step.slack),
            _to_border(self.distance, step.distance),
            _to_border(self.multiplier, step.multiplier),
        )  # fmt: skip


def _to_border(values: Array, step: Array) -> float:
    falls = step < 0
    return min(1.0, float((-values[falls] / step[falls]).min(initial=np.inf)))


@final
@dataclass(frozen=True, eq=False)
class _Program:
    """The relaxation in its own units.

    Args:
        rows: ``F [M, K]``.
        linear: ``c [M]``.
        costs: ``A [R, M]`` from 0, in units of what is free; budgets that all choices meet are out.
        room: ``r [R]``.
        group: ``[M]`` of each move, ascending.
        starts: ``[G]`` first move of each group.
        unit: In the loss table's.
        binds: Which of the problem's budgets these are.
        free: ``[R]`` the unit of each, in the user's.
    """

    rows: Array
    linear: Array
    costs: Array
    room: Array
    group: Columns
    starts: Columns
    unit: float
    binds: Mask
    free: Array

    @classmethod
    def of(cls, quadratic: Quadratic) -> "_Program":
        rows, starts = quadratic.rows, quadratic.starts
        # More examples than moves span no more dimensions than there are moves.
        if rows.shape[1] > len(rows):
            rows = np.asarray(np.linalg.qr(rows.T, mode="r")).T
        unit = float(max(np.abs(quadratic.linear).max(), quadratic.own.max())) or 1.0
        floors = np.minimum.reduceat(quadratic.costs, starts, axis=1)  # [R, G]
        free = np.maximum(quadratic.limits - floors.sum(axis=1), 0.0) + quadratic.edge
        extra = quadratic.costs - floors[:, quadratic.group]
        binds = np.maximum.reduceat(extra, starts, axis=1).sum(axis=1) > free
        unit_of = np.where(free > 0, free, 1.0)[:, None]
        # A move beyond the limit need not be as large as it is: twice the limit is as impossible.
        costs = np.minimum(extra / unit_of, 2.0)[binds]
        room = np.where(free > 0, 1.0, 0.0)[binds]
        return cls(
            rows / np.sqrt(unit), quadratic.linear / unit, costs, room,
            quadratic.group, starts, unit, binds, unit_of[binds, 0],
        )  # fmt: skip

    def in_units_of_the_table(self, found: Relaxed) -> Relaxed:
        """The same for the whole problem."""
        multiplier = np.zeros(len(self.binds))
        multiplier[self.binds] = found.multiplier / self.free
        unit = self.unit
        return Relaxed(
            found.bound * unit, found.reduced_cost * unit, found.share, multiplier * unit
        )

    def first(self) -> _Point:
        """Equal shares, and multipliers that are far from 0."""
        share = 1 / np.bincount(self.group)[self.group]
        slack = np.maximum(self.room - self.costs @ share, 0.1)
        multiplier = np.ones(len(slack))
        slope = self._slope(share @ self.rows, multiplier)
        level = np.minimum.reduceat(slope, self.starts) - 1.0
        return _Point(share, slack, level, slope - level[self.group], multiplier)

    def _slope(self, together: Array, multiplier: Array) -> Array:
        return np.asarray(self.linear + self.rows @ together + multiplier @ self.costs)

    def proved(self, point: _Point) -> tuple[Relaxed, float]:
        """What a point's slope and multipliers prove, and what its shares lose; in this unit."""
        together = point.share @ self.rows
        slope = self._slope(together, point.multiplier)
        least = np.minimum.reduceat(slope, self.starts)
        half, taken = 0.5 * float(together @ together), float(point.multiplier @ self.room)
        # Each number here is a sum of some hundred products.
        owed = LAST_DIGITS * (half + taken + float(np.abs(least).sum()))
        bound = float(least.sum()) - half - taken - owed
        shares = np.clip(point.share, 0.0, 1.0)
        found = Relaxed(bound, slope - least[self.group], shares, point.multiplier)
        return found, float(self.linear @ point.share) + half

    def stepped(self, point: _Point) -> _Point | None:
        """One iteration: a step as if there were no border, and one that heeds it."""
        system = _System.of(self, point)
        if system is None:
            return None
        now = point.complementarity
        straight = system.step(-point.share * point.distance, -point.slack * point.multiplier)
        after = point.moved(straight, point.length(straight)).complementarity
        aim = now * (after / now) ** 3
        # What the first step leaves out of each product is its own square.
        step = system.step(
            aim - point.share * point.distance - straight.share * straight.distance,
            aim - point.slack * point.multiplier - straight.slack * straight.multiplier,
        )
        following = point.moved(step, _INSIDE * point.length(step))
        return following if np.isfinite(following.complementarity) else None


@final
@dataclass(frozen=True, eq=False)
class _System:
    """The linear system of one iteration.

    Args:
        program: The relaxation.
        point: Where the method stands.
        weight: ``T [M]`` share over distance.
        total: ``[G]`` sums of the weights.
        heaviest: ``[G]`` the move of the largest weight of each group.
        joined: ``W [M, K + R]`` the rows, and the costs weighted by the budgets.
        factored: Cholesky factors of ``[K + R, K + R]``.
    """

    program: _Program
    point: _Point
    weight: Array
    total: Array
    heaviest: Columns
    joined: Array
    factored: tuple[Array, bool]

    @classmethod
    def of(cls, program: _Program, point: _Point) -> "_System | None":
        """``None`` where rounding has made it singular."""
        weight = point.share / point.distance
        starts, group = program.starts, program.group
        is_heaviest = np.flatnonzero(weight == np.maximum.reduceat(weight, starts)[group])
        heaviest = is_heaviest[np.unique(group[is_heaviest], return_index=True)[1]]
        total = np.add.reduceat(weight, starts)
        scale = np.sqrt(point.multiplier / point.slack)[:, None]
        joined = np.hstack([program.rows, (program.costs * scale).T])
        # Against the heaviest move of the group: where a group is nearly decided, the mean is
        # nearly that move, and their difference would have no digits left.
        apart = joined - joined[heaviest][group]
        mean = np.add.reduceat(weight[:, None] * apart, starts, axis=0) / total[:, None]
        apart -= mean[group]
        inner = apart.T @ (weight[:, None] * apart)
        inner[np.diag_indices_from(inner)] += 1.0
        try:
            factored = cho_factor(inner, lower=True)
        except (LinAlgError, ValueError):
            return None
        return cls(program, point, weight, total, heaviest, joined, factored)

    def step(self, shares: Array, slacks: Array) -> _Point:
        """To where products of variables and multipliers have changed by so much."""
        program, point = self.program, self.point
        starts, group = program.starts, program.group
        slope = program._slope(point.share @ program.rows, point.multiplier)
        left = slope - point.level[group] - point.distance
        missing = 1 - np.add.reduceat(point.share, starts)
        beyond = program.room - program.costs @ point.share - point.slack
        pull = (slacks - point.multiplier * beyond) / point.slack
        right = shares / point.share - left - pull @ program.costs
        along, level = self._solved(right, missing)
        slack = beyond - program.costs @ along
        return _Point(
            along, slack, level,
            (shares - point.distance * along) / point.share,
            (slacks - point.multiplier * slack) / point.slack,
        )  # fmt: skip

    def _solved(self, right: Array, missing: Array) -> tuple[Array, Array]:
        """``(T^-1 + W W') x - E' y = right``, ``E x = missing``."""
        group, starts = self.program.group, self.program.starts
        base = self._balanced(right) + self.weight * (missing / self.total)[group]
        inner = cho_solve(self.factored, base @ self.joined)
        rest = right - self.joined @ inner
        along = base - self._balanced(self.joined @ inner)
        held = rest[self.heaviest]
        sums = np.add.reduceat(self.weight * (rest - held[group]), starts)
        return along, (missing - sums) / self.total - held

    def _balanced(self, values: Array) -> Array:
        """Weighted, less what makes each group's sum 0."""
        group, starts = self.program.group, self.program.starts
        apart = values - values[self.heaviest][group]
        mean = np.add.reduceat(self.weight * apart, starts) / self.total
        return np.asarray(self.weight * (apart - mean[group]))
