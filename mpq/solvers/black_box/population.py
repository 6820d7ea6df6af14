"""Genetic operators as array arithmetic: whole generations at once, always within the budgets."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self, final

import numpy as np
import numpy.typing as npt

from mpq._support.arrays import Array
from mpq.problem.pairwise_costs import PairwiseCosts
from mpq.problem.problem import Problem
from mpq.problem.tolerances import LIMIT

Assignments = npt.NDArray[np.intp]
"""``[P, G]`` column of every group of tied layers, for ``P`` assignments."""

_CROSSED = 0.9
"""Share of children that have two parents."""
_STEPS = 0.8
"""Share of mutations that go to the next column up or down."""
_INFORMED, _BLUR = 0.5, 0.2
"""Share of repairs that lean towards a small predicted loss, and how far their order strays."""
_HAIR = 1e-9
"""Relative distance to a limit below which the problem's own arithmetic decides."""


@final
@dataclass(frozen=True, eq=False)
class Space:
    """The assignments of a problem, for many at once.

    Args:
        problem: Whose groups, budgets and allowed cells.
        costs: ``[R, G, B]``, each resource in units of what single groups use of it at most.
        limits: ``[R]`` in the same units.
        pairwise: What pairs of groups use besides, in the same units; row 0 is of the loss.
        is_informed: Whether half of the repairs lean towards a small predicted loss. Children of
            solved assignments gain from that; from random starts it ends in local optima.
    """

    problem: Problem
    costs: Array
    limits: Array
    pairwise: PairwiseCosts
    is_informed: bool = True

    @classmethod
    def of(cls, problem: Problem, is_informed: bool = True) -> Self:
        """The space of a problem."""
        grouped = problem.grouped
        largest = np.abs(grouped.costs).max(axis=2).sum(axis=1)  # [R]
        # One unit for all resources, so that excesses over different limits can be added up.
        scale = np.where(largest > 0, largest, 1.0)
        costs, limits = grouped.costs / scale[:, None, None], grouped.limits / scale
        joint = grouped.pairwise.values / np.concatenate([[1.0], scale])[:, None, None]
        pairwise = replace(grouped.pairwise, values=joint)
        return cls(problem, costs, limits, pairwise, is_informed)

    @cached_property
    def group_of(self) -> npt.NDArray[np.intp]:
        """``[L]`` the group that every layer belongs to."""
        return self.problem.grouped.group_of

    @cached_property
    def num_groups(self) -> int:
        """``G``."""
        return len(self.problem.grouped.members)

    def layers(self, assignments: Assignments) -> Assignments:
        """``[P, L]`` a column per layer, from one per group."""
        return assignments[:, self.group_of]

    def groups(self, layers: Assignments) -> Assignments:
        """``[P, G]``, inverse of ``layers`` where ties hold."""
        return layers[:, [rows[0] for rows in self.problem.grouped.members]]

    def used(self, assignments: Assignments) -> Array:
        """``[P, R]`` of every resource, in the units of ``limits``."""
        alone = self.costs[:, np.arange(self.num_groups), assignments].sum(axis=2).T
        return np.asarray(alone + self.pairwise.cost(assignments)[:, 1:])

    @cached_property
    def _joint(self) -> Array:
        """``[R, G, B, G, B]`` of the pairwise costs."""
        return self.pairwise.dense(self.num_groups)[1:]

    def _over(self, used: Array) -> Array:
        slack = LIMIT * np.abs(self.limits)
        return np.where(used > self.limits + slack, used - self.limits, 0.0)

    def within(self, assignments: Assignments) -> npt.NDArray[np.bool_]:
        """``[P]`` whether every budget holds, as ``Problem.is_feasible`` counts."""
        room = (self.limits - self.used(assignments)).min(axis=1, initial=np.inf)  # [P]
        holds = room > 0
        # Sums in another order differ in their last digits: the problem's own are what counts.
        for row in np.flatnonzero(np.abs(room) <= _HAIR):
            holds[row] = self.problem.is_feasible(self.problem.grouped.expand(assignments[row]))
        return np.asarray(holds)

    def drawn(self, count: int, rng: np.random.Generator) -> Assignments:
        """``[count, G]`` columns drawn uniformly among the allowed ones; budgets aside."""
        allowed = self.problem.grouped.allowed
        # The largest of uniform keys is uniform among the allowed, however many a row has.
        keys = np.where(allowed, rng.random((count, *allowed.shape)), -1.0)
        return np.asarray(keys.argmax(axis=2))

    def random(self, count: int, rng: np.random.Generator) -> Assignments:
        """``[P, G]`` at most ``count`` random assignments within the budgets."""
        assignments = self.repaired(self.drawn(count, rng), rng)
        return assignments[self.within(assignments)]

    def repaired(self, assignments: Assignments, rng: np.random.Generator) -> Assignments:
        """The same within the budgets, where changing single groups leads there.

        One after the other, every group of an assignment that breaks a budget takes the most
        expensive of the columns that break it less, until none is broken. The order is random; in
        half of the assignments it leans towards groups that are predicted to lose little for what
        they save, as the repair of Chu and Beasley does (1998, Journal of Heuristics 4:63).
        """
        assignments = assignments.copy()
        num_columns = self.costs.shape[2]
        late = np.flatnonzero(~self.within(assignments))
        order = self._order(assignments[late], rng)
        # Within one budget a group gets cheaper less often than it has columns: enough passes.
        for step in range(num_columns * self.num_groups):
            if not len(late):
                break
            group = order[:, step % self.num_groups]
            assignments[late, group] = self._lighter(assignments[late], group)
            still = ~self.within(assignments[late])
            late, order = late[still], order[still]
        return assignments

    def _order(self, assignments: Assignments, rng: np.random.Generator) -> Assignments:
        """``[P, G]`` groups in the order in which each assignment is repaired."""
        regret = self._regret[np.arange(self.num_groups), assignments]
        # Equal ones in random order.
        rank = np.lexsort((rng.random(assignments.shape), regret), axis=1).argsort(axis=1)
        is_informed = self.is_informed & (rng.random((len(assignments), 1)) < _INFORMED)
        # Ranks run up to the number of groups, of which the blur is a share.
        noise = rng.standard_normal(assignments.shape) * self.num_groups
        return np.asarray(np.where(is_informed, rank + _BLUR * noise, noise).argsort(axis=1))

    @cached_property
    def _regret(self) -> Array:
        """``[G, B]`` predicted loss for each unit of cost that one column down saves."""
        allowed, loss = self.problem.grouped.allowed, self.problem.grouped.loss
        order = self._by_cost
        cost = np.take_along_axis(self.costs.sum(axis=0), order, axis=1)
        rises = -np.diff(np.take_along_axis(loss, order, axis=1), axis=1)
        saves = np.diff(cost, axis=1)
        is_step = np.take_along_axis(allowed, order, axis=1)[:, 1:] & (saves > 0)
        ratio = np.full(order.shape, np.inf)  # of the cheapest, too: there is no column below
        np.divide(rises, saves, out=ratio[:, 1:], where=is_step)
        regret = np.empty_like(ratio)
        np.put_along_axis(regret, order, ratio, axis=1)
        return regret

    @cached_property
    def _by_cost(self) -> Assignments:
        """``[G, B]`` columns by rising cost, those that are not allowed last."""
        cost = np.where(self.problem.grouped.allowed, self.costs.sum(axis=0), np.inf)
        return np.asarray(cost.argsort(axis=1, kind="stable"))

    def _lighter(
        self, assignments: Assignments, group: npt.NDArray[np.intp]
    ) -> npt.NDArray[np.intp]:
        """``[P]`` the next column of one group each that breaks the budgets less, or the same."""
        rows = np.arange(len(assignments))
        held = assignments[rows, group]
        costs = self.costs[:, group]  # [R, P, B]
        if len(self.pairwise):
            every = np.arange(self.num_groups)
            near = self._joint[:, group[:, None], :, every, assignments]  # [P, G, R, B]
            costs = costs + near.sum(axis=1).swapaxes(0, 1)
        change = costs - costs[:, rows, held][:, :, None]
        used = self.used(assignments).T[:, :, None] + change
        over = self._over(used.transpose(1, 2, 0)).sum(axis=2)  # [P, B]
        lighter = (over < over[rows, held][:, None]) & self.problem.grouped.allowed[group]
        # The most expensive of them gives away the least precision.
        most_expensive = np.where(lighter, change.sum(axis=0), -np.inf).argmax(axis=1)
        return np.where(lighter.any(axis=1), most_expensive, held)

    def children(self, parents: Assignments, count: int, rng: np.random.Generator) -> Assignments:
        """``[P, G]`` crossed, mutated and repaired; those that stay outside are left out.

        A mutated group takes the next column up or down in cost, or any. What the repair then
        takes from other groups makes of it an exchange within the budget, as the level switches of
        EvoPress (Sieberling et al. 2024, arXiv:2410.14649) are.

        Args:
            parents: ``[M, G]``, the best first.
            count: Children before some are left out.
            rng: Generator of every draw.
        """
        # The better of two drawn at random is the one with the smaller index.
        first, second = rng.integers(len(parents), size=(2, 2, count)).min(axis=1)
        crossed = rng.random((count, 1)) < _CROSSED
        swapped = crossed & (rng.random((count, self.num_groups)) < 0.5)
        children = np.where(swapped, parents[second], parents[first])
        mutated = rng.random(children.shape) < 1 / self.num_groups
        # At least one group changes: a copy is known already.
        mutated[np.arange(count), rng.integers(self.num_groups, size=count)] = True
        is_step = rng.random(children.shape) < _STEPS
        changed = np.where(is_step, self._stepped(children, rng), self.drawn(count, rng))
        children = self.repaired(np.where(mutated, changed, children), rng)
        return children[self.within(children)]

    def _stepped(self, assignments: Assignments, rng: np.random.Generator) -> Assignments:
        """Every group one column up or down in cost."""
        allowed = self.problem.grouped.allowed
        groups = np.arange(self.num_groups)
        order = self._by_cost
        rank = order.argsort(axis=1)[groups, assignments] + rng.choice(
            [-1, 1], size=assignments.shape
        )
        # Columns that are not allowed are sorted last, so that their ranks are beyond these.
        stepped = np.clip(rank, 0, allowed.sum(axis=1) - 1)
        return np.asarray(order[groups, stepped])


def survivors(values: Array, count: int) -> npt.NDArray[np.intp]:
    """Rows that survive, the best first: by front, then where the front is least crowded.

    Selection of NSGA-II (Deb et al. 2002, doi:10.1109/4235.996017); a single value is sorted.

    Args:
        values: ``[P, K]``, all to be minimised.
        count: How many survive at most.
    """
    if values.shape[1] == 1:
        return np.argsort(values[:, 0], kind="stable")[:count]
    left = np.arange(len(values))
    chosen: list[npt.NDArray[np.intp]] = []
    while len(left) and sum(map(len, chosen)) < count:
        is_front = nondominated(values[left])
        front = left[is_front]
        chosen.append(front[np.argsort(-crowding(values[front]), kind="stable")])
        left = left[~is_front]
    return np.concatenate([*chosen, np.empty(0, dtype=np.intp)])[:count]


def nondominated(values: Array) -> npt.NDArray[np.bool_]:
    """``[P]`` rows than which none is at least as good in everything and better in something."""
    is_front = np.ones(len(values), dtype=np.bool_)
    # In this order nobody is dominated by a later one, so that one pass is enough.
    for row in np.lexsort(values.T[::-1]):
        if is_front[row]:
            worse = (values >= values[row]).all(axis=1) & (values > values[row]).any(axis=1)
            is_front &= ~worse
    return is_front


def crowding(values: Array) -> Array:
    """``[P]`` distance between a row's neighbours, added up over the values; ends are infinite."""
    distance = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        ordered = column[order]
        width = ordered[-1] - ordered[0]
        distance[order[[0, -1]]] = np.inf
        # Where all are equal none is more crowded, and there is no width to divide by.
        if width > 0:
            distance[order[1:-1]] += (ordered[2:] - ordered[:-2]) / width
    return distance
