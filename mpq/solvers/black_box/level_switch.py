"""Level switches: one layer a level down, others up, and the best child is the next parent."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self, final

import numpy as np

from mpq._support.arrays import Columns
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.solvers._base import Losses
from mpq.solvers.additive.default import solve_additive
from mpq.solvers.black_box._base import MeasuringSolver, Run, check_trials
from mpq.solvers.black_box.population import Assignments, Space
from mpq.solvers.black_box.seeds import uniform
from mpq.solvers.black_box.study import Trials

_MOST_SWITCHES = 3
"""Of one child: the smaller of two draws from 1 to this, as in the published code."""
_ATTEMPTS = 20
"""Draws for every child that is wanted, of which some are known or break a budget."""


@final
@dataclass(frozen=True)
class LevelSwitch(MeasuringSolver):
    """Evolution by switches of levels from a uniform precision; proves nothing itself.

    A child is the best trial so far with one to three switches: a group takes the next cheaper of
    its precisions, and another one the next dearer, as the budgets allow. EvoPress (Sieberling et
    al. 2024, arXiv:2410.14649), which begins at the uniform precision that meets the budget and
    keeps the best child of every generation. Departs from it in that every child is measured on
    all examples, where it selects in steps of more and more, that layers of all sizes are switched,
    and that no assignment is measured twice. Where no uniform precision meets the budgets, it
    begins at the least predicted loss.

    Args:
        num_trials: Evaluations in all.
        batch_size: Children of a generation, evaluated at once.
        seed: Seed of every random draw.
        is_seeded: Whether it begins at the solved assignments too, as ``evolutionary`` does.
        is_measured: As in ``Evolutionary``.
        storage: As in ``Evolutionary``.
        study: Name in the storage; one problem each.
        starts: Assignments to begin at instead of the uniform one, ``[L]`` columns each.
        time_limit_s: As in ``Evolutionary``.
        objective: Losses of a batch; ``None``: the problem's own.

    Raises:
        InputError: If a number is below 1, or the time limit is no time.
    """

    name: ClassVar[str] = "level-switch"
    summary: ClassVar[str] = "EvoPress: one layer a level down, another up, from uniform; no proof"

    num_trials: int = 1000
    batch_size: int = 16
    seed: int = 0
    is_seeded: bool = False
    is_measured: bool = False
    storage: str = ""
    study: str = "mpq"
    starts: tuple[tuple[int, ...], ...] = ()
    time_limit_s: float | None = None
    objective: Losses | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_trials(self)

    def bind(self, losses: Losses) -> Self:
        """See ``Solver.bind``."""
        return replace(self, objective=losses)

    def solve(self, problem: Problem) -> Solution:
        """See ``Solver.solve``; infeasible problems are recognised exactly.

        Raises:
            InputError: If the loss is to be measured and there is no objective that measures it,
                or the storage cannot be used.
            MismatchError: If the study belongs to another problem.
            SolverError: If the storage fails on the way, or a loss is ``nan``.
        """
        starts = self.starts or _starts(problem)
        return Run(replace(self, starts=starts), problem, None).solve(_Switches)


def _starts(problem: Problem) -> tuple[tuple[int, ...], ...]:
    """The uniform precision within the budgets that uses most of them, or the additive answer."""
    space = Space.of(problem)
    found = uniform(space)
    within = found[space.within(found)]
    if len(within):
        most = space.used(within).sum(axis=1).argmax()
        return (tuple(space.layers(within[[most]])[0].tolist()),)
    exact = solve_additive(problem).columns
    return () if exact is None else (tuple(exact.tolist()),)


@final
class _Switches:
    """Children of the best trial.

    Args:
        space: Search space of the problem.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        grouped = space.problem.grouped
        cost = np.where(grouped.allowed, space.costs.sum(axis=0), np.inf)
        # Of every group its columns from the cheapest on: its levels.
        self._levels = [
            row[: int(count)]
            for row, count in zip(
                cost.argsort(axis=1, kind="stable"), grouped.allowed.sum(axis=1), strict=True
            )
        ]

    def __call__(self, trials: Trials, rng: np.random.Generator, count: int) -> Assignments:
        """See ``Propose``."""
        if not len(trials):
            return self._space.random(count, rng)
        parent = trials.assignments[int(trials.values[:, 0].argmin())]
        drawn = [self._child(parent, rng) for _ in range(_ATTEMPTS * count)]
        children = np.array(drawn, dtype=np.intp)
        found = trials.unknown(children[self._space.within(children)])
        # Where all neighbours are known, what is left is drawn.
        return found if len(found) else trials.unknown(self._space.random(count, rng))

    def _child(self, parent: Columns, rng: np.random.Generator) -> Columns:
        child = parent.copy()
        for _ in range(int(rng.integers(1, _MOST_SWITCHES + 1, 2).min())):
            self._step(child, rng, -1)
            self._step(child, rng, +1)
        return child

    def _step(self, columns: Columns, rng: np.random.Generator, change: int) -> None:
        """Moves a random group that can a level, in place."""
        places = np.array(
            [int(np.flatnonzero(levels == columns[g])[0]) for g, levels in enumerate(self._levels)]
        )
        lengths = np.array([len(levels) for levels in self._levels])
        can = np.flatnonzero((places + change >= 0) & (places + change < lengths))
        if len(can):
            group = int(rng.choice(can))
            columns[group] = self._levels[group][places[group] + change]
