"""Greedy steps, each of them measured: all next levels are tried, and the best one is taken."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import inf, isnan, nan
from typing import ClassVar, Final, Literal, Self, final

import numpy as np

from mpq._support.arrays import Array, Columns
from mpq._support.progress import track
from mpq.errors import InputError, UnknownNameError
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.solvers._base import Losses, Solver
from mpq.solvers.additive.answers import check_effort
from mpq.solvers.additive.cheapest import cheapest
from mpq.solvers.additive.default import solve_additive
from mpq.solvers.baselines.greedy import DIRECTIONS
from mpq.solvers.black_box._base import asked_losses, predicted, require_objective
from mpq.solvers.black_box.pace import Pace
from mpq.solvers.black_box.population import Assignments, Space

_HAIR: Final = 1e-9
"""Relative distance to a limit below which the problem's own arithmetic decides."""
_WHY: Final = "no step down is left that saves anything of a budget that is broken"


@final
@dataclass(frozen=True)
class MeasuredGreedy(Solver):
    r"""One group of layers after the other a level down, or up, measured after every step.

    .. math:: \text{down: } \min_{g, b} \frac{L(z_{g \to b}) - L(z)}{c(z) - c(z_{g \to b})}

    ``down`` begins at the most expensive precisions and takes the step that loses least for what it
    saves, until the budgets hold: the greedy allocation of MPTQ-ViT (Tai and Wu 2024,
    arXiv:2401.14895), which weighs performance against compressibility. ``up`` begins at the
    cheapest and takes the step that gains most for what it costs, as long as one fits and gains. A
    step leads to the next cheaper, or dearer, of a group's precisions; where several cost as much,
    each is tried. All steps that there are are measured before one is taken, as errors of layers
    do not add up: about ``G^2 B / 2`` measurements of ``G`` groups at ``B`` precisions.

    Departs from the paper, as far as it is known to us, in that cost is what the budgets count: a
    sum over those that are still broken, each in units of its limit. Once no measurement is left,
    or no time, or both losses are infinite, a step loses what it lost when it was measured last,
    and one that never was what the loss table predicts. Without an objective the predicted loss is
    measured. Proves nothing.

    Args:
        direction: ``down`` from the most expensive, or ``up`` from the cheapest.
        num_trials: Measurements in all, at most.
        batch_size: Assignments that are measured at once.
        is_measured: As in ``Evolutionary``.
        time_limit_s: As in ``Evolutionary``.
        objective: Losses of a batch, of which some break budgets with ``down``; ``None``: the
            problem's own.

    Raises:
        UnknownNameError: If there is no such direction.
        InputError: If a number is below 1, or the time limit is no time.
    """

    name: ClassVar[str] = "measured-greedy"
    summary: ClassVar[str] = "measured losses: MPTQ-ViT, all steps are measured before one is taken"
    is_repeatable: ClassVar[bool] = False

    direction: Literal["down", "up"] = "down"
    num_trials: int = 10_000
    batch_size: int = 16
    is_measured: bool = False
    time_limit_s: float | None = None
    objective: Losses | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_effort(self.name, 0.0, self.time_limit_s)
        if self.direction not in DIRECTIONS:
            raise UnknownNameError(f"direction of {self.name}", self.direction, DIRECTIONS)
        if self.num_trials < 1 or self.batch_size < 1:
            raise InputError(
                f"{self.name} needs num_trials >= 1 and batch_size >= 1; got {self.num_trials} and "
                f"{self.batch_size}"
            )

    @property
    def is_measuring(self) -> bool:
        """See ``Solver.is_measuring``: as the option says."""
        return self.is_measured

    def measuring_s(self, each_s: float) -> float:
        """See ``Solver.measuring_s``: of all trials, or as long as the time limit."""
        limit = inf if self.time_limit_s is None else self.time_limit_s
        return min(self.num_trials * each_s, limit)

    def bind(self, losses: Losses) -> Self:
        """See ``Solver.bind``."""
        return replace(self, objective=losses)

    def solve(self, problem: Problem) -> Solution:
        """See ``Solver.solve``; several budgets may leave ``down`` without an answer.

        Raises:
            InputError: If the loss is to be measured and there is no objective that measures it, or
                an objective does not return one loss for each assignment.
            SolverError: If a loss is ``nan``.
        """
        require_objective(self.is_measured, self.objective)
        start = time.perf_counter()
        exact = solve_additive(problem, self.time_limit_s)
        if exact.columns is None:
            return replace(exact, solver=self.name)
        measuring = _Measuring(self, Space.of(problem))
        walk = _down if self.direction == "down" else _up
        groups = walk(_Steps(measuring.space), measuring)
        columns = problem.grouped.expand(groups)
        seconds = time.perf_counter() - start
        if not problem.is_feasible(columns):
            return Solution(Status.UNKNOWN, None, nan, None, self.name, seconds, why=_WHY)
        if self.objective is not None:
            status = Status.TIME_LIMIT if measuring.was_stopped else Status.FEASIBLE
            return Solution(status, columns, measuring.known(groups), None, self.name, seconds)
        # The additive bound says nothing of a loss that is not additive.
        loss, bound = problem.loss_of(columns), exact.bound
        bound = None if bound is None or problem.interactions is not None else min(bound, loss)
        status = Status.OPTIMAL if bound == loss else Status.FEASIBLE
        return Solution(status, columns, loss, bound, self.name, seconds)


@final
class _Measuring:
    """Losses of assignments, as many as may be measured, none twice.

    Args:
        solver: With its objective and limits.
        space: Search space of the problem.
    """

    def __init__(self, solver: MeasuredGreedy, space: Space) -> None:
        self.space = space
        self._solver = solver
        self._predicted = predicted(space.problem)
        self._objective = solver.objective or self._predicted
        self._pace = Pace(solver.time_limit_s)
        self._losses: dict[tuple[int, ...], float] = {}

    @property
    def was_stopped(self) -> bool:
        """Whether the time was over before the search."""
        return self._pace.was_stopped

    def losses(self, assignments: Assignments) -> list[float | None]:
        """``[P]``; ``None`` where neither trials nor time are left."""
        keys = list(map(tuple, assignments.tolist()))
        unknown = list(dict.fromkeys(key for key in keys if key not in self._losses))
        while unknown and not self._is_over():
            left = self._solver.num_trials - len(self._losses)
            count = min(self._solver.batch_size, left, self._pace.num_fitting or left)
            part, unknown = unknown[:count], unknown[count:]
            self._measure(part)
        return [self._losses.get(key) for key in keys]

    def known(self, groups: Columns) -> float:
        """The loss of one assignment, which is measured whatever is left."""
        key = tuple(groups.tolist())
        if key not in self._losses:
            self._measure([key])
        return self._losses[key]

    def predicted(self, assignments: Assignments) -> Array:
        """``[P]`` by the loss table."""
        return self._predicted(self.space.layers(assignments))

    def _is_over(self) -> bool:
        count = len(self._losses)
        return count >= self._solver.num_trials or self._pace.stops(count)

    def _measure(self, keys: list[tuple[int, ...]]) -> None:
        start = time.perf_counter()
        layers = self.space.layers(np.array(keys, dtype=np.intp))
        found = asked_losses(self._solver.name, self._objective, layers)
        self._pace.took(time.perf_counter() - start, len(keys))
        self._losses.update(zip(keys, found.tolist(), strict=True))


@final
class _Steps:
    """Where each group can go: levels of equal cost, the cheapest first.

    Args:
        space: Search space of the problem.
    """

    def __init__(self, space: Space) -> None:
        grouped = space.problem.grouped
        self.allowed = grouped.allowed
        # All resources in one unit, so that columns of a group can be put in an order.
        self.cost = np.where(self.allowed, space.costs.sum(axis=0), np.inf)  # [G, B]
        self._loss = grouped.loss

    def end(self, sign: int) -> Columns:
        """``[G]`` the cheapest (-1) or dearest (1) columns; of equals that of the least loss."""
        return cheapest(self._loss, -sign * self.cost, self.allowed)

    def from_(self, columns: Columns, sign: int) -> Iterator[tuple[int, int]]:
        """Group and column of every next level; those of equal cost are one level."""
        for group, column in enumerate(columns.tolist()):
            cost = self.cost[group]
            beyond = self.allowed[group] & (sign * (cost - cost[column]) > 0)
            if beyond.any():
                nearest = (sign * cost[beyond]).min()
                for other in np.flatnonzero(beyond & (sign * cost == nearest)).tolist():
                    yield group, other


def _moved(columns: Columns, steps: list[tuple[int, int]]) -> Assignments:
    """``[P, G]`` an assignment for each step."""
    found = np.repeat(columns[None], len(steps), axis=0)
    for row, (group, column) in enumerate(steps):
        found[row, group] = column
    return found


@final
class _Changes:
    """What a step changes of the loss: measured, or as when it was measured last, or predicted."""

    def __init__(self, measuring: _Measuring) -> None:
        self._measuring = measuring
        self._last: dict[tuple[int, int], float] = {}

    def __call__(self, columns: Columns, steps: list[tuple[int, int]], moved: Assignments) -> Array:
        """``[P]`` from an assignment ``[G]``."""
        here, *found = self._measuring.losses(np.concatenate([columns[None], moved]))
        guess = self._measuring.predicted(moved) - self._measuring.predicted(columns[None])
        for step, loss, predicted_change in zip(steps, found, guess.tolist(), strict=True):
            change = nan if loss is None or here is None else loss - here
            # From an infinite loss to another nothing was measured of the step, either.
            if isnan(change):
                self._last.setdefault(step, predicted_change)
            else:
                self._last[step] = change
        return np.array([self._last[step] for step in steps])


def _down(steps: _Steps, measuring: _Measuring) -> Columns:
    """``[G]`` from the dearest until the budgets hold, or no step helps."""
    space, changes = measuring.space, _Changes(measuring)
    columns = steps.end(1)
    for _ in track(range(int(steps.allowed.sum())), "measured greedy, down"):
        if space.within(columns[None])[0]:
            break
        used = space.used(columns[None])[0]  # [R]
        broken = used >= space.limits - _HAIR * np.abs(space.limits)
        unit = np.where(space.limits > 0, space.limits, 1.0)
        found = list(steps.from_(columns, -1))
        moved = _moved(columns, found)
        saved = ((used - space.used(moved)) / unit)[:, broken].sum(axis=1)
        kept = np.flatnonzero(saved > 0)
        if not len(kept):
            break
        found = [found[i] for i in kept]
        rises = changes(columns, found, moved[kept])
        group, column = found[int(np.argmin(rises / saved[kept]))]
        columns[group] = column
    return columns


def _up(steps: _Steps, measuring: _Measuring) -> Columns:
    """``[G]`` from the cheapest as long as a step fits and gains."""
    space, changes = measuring.space, _Changes(measuring)
    columns = steps.end(-1)
    for _ in track(range(int(steps.allowed.sum())), "measured greedy, up"):
        found = list(steps.from_(columns, 1))
        moved = _moved(columns, found)
        if not found:
            break
        kept = np.flatnonzero(space.within(moved))
        if not len(kept):
            break
        found = [found[i] for i in kept]
        gains = -changes(columns, found, moved[kept])
        paid = (space.used(moved[kept]) - space.used(columns[None])).sum(axis=1)
        best = int(np.argmax(gains / np.maximum(paid, np.finfo(float).tiny)))
        if gains[best] <= 0:
            break
        columns[found[best][0]] = found[best][1]
    return columns
