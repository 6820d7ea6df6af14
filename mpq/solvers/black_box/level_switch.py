"""Level switches: one layer a level down, others up, and the best child is the next parent."""

import math
from dataclasses import dataclass, field, replace
from functools import partial
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
from mpq.solvers.black_box.selection import Selection, check_selection, shareable
from mpq.solvers.black_box.study import Trials

_MOST_SWITCHES = 3
"""Of one child: the smaller of two draws from 1 to this, as in the published code."""
_ATTEMPTS = 20
"""Times that as many children are drawn as are wanted: some are known, or break a budget."""


@final
@dataclass(frozen=True)
class LevelSwitch(MeasuringSolver):
    """Evolution by switches of levels from a uniform precision; proves nothing itself.

    A child is the best trial so far with one to three switches: a group takes the next cheaper of
    its precisions, and another one the next dearer, as the budgets allow. EvoPress (Sieberling et
    al. 2024, arXiv:2410.14649), which begins at the uniform precision that meets the budget and
    keeps the best child of every generation. With a ``selection`` many children are compared on few
    examples, which are drawn anew every time, the best of them on more, and the best of these on
    all, beside all trials before; without, every child is measured on all. Departs from the paper
    in that layers of all sizes are switched, and that no assignment is measured on all examples
    twice. Where no uniform precision meets the budgets, it begins at the least predicted loss.

    Args:
        num_trials: Evaluations on all examples.
        batch_size: Children of a generation that are evaluated on all examples.
        selection: Steps before that, such as ``128@1/64;16@1/8``: 128 children on a 64th of the
            examples, the best 16 of them on an eighth; empty: none. By the metric, also where a
            score is made small.
        seed: Seed of every random draw.
        is_seeded: Whether it begins at the solved assignments too, as ``evolutionary`` does.
        is_measured: As in ``Evolutionary``.
        storage: As in ``Evolutionary``.
        study: Name in the storage; one problem each.
        starts: Assignments to begin at instead of the uniform one, ``[L]`` columns each.
        time_limit_s: As in ``Evolutionary``.
        objective: Losses of a batch; ``None``: the problem's own.

    Raises:
        InputError: If a number is below 1, the time limit is no time, or the selection is none, or
            leaves fewer than ``batch_size``, or nothing is measured.
    """

    name: ClassVar[str] = "level-switch"
    summary: ClassVar[str] = "EvoPress: one layer a level down, another up, from uniform; no proof"

    num_trials: int = 1000
    batch_size: int = 16
    selection: str = ""
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
        check_selection(self.name, self.selection, self.is_measured, self.batch_size)

    def screening_s(self, each_s: float) -> float:
        """See ``Solver.screening_s``: of every generation, or as long as the time limit."""
        limit = math.inf if self.time_limit_s is None else self.time_limit_s
        num_generations = math.ceil(self.num_trials / self.batch_size)
        return min(num_generations * Selection.parse(self.selection).passes * each_s, limit)

    def bind(self, losses: Losses) -> Self:
        """See ``Solver.bind``."""
        return replace(self, objective=losses)

    def solve(self, problem: Problem) -> Solution:
        """See ``Solver.solve``; infeasible problems are recognised exactly.

        Raises:
            InputError: If the loss is to be measured and there is no objective that measures it,
                or not on shares of examples, or the storage cannot be used.
            MismatchError: If the study belongs to another problem.
            SolverError: If the storage fails on the way, or a loss is ``nan``.
        """
        if self.selection and self.objective is not None:
            shareable(self.name, self.objective)
        begun = replace(self, starts=self.starts or _starts(problem))
        return Run(begun, problem, None).solve(partial(_Switches, begun))


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
        solver: With its objective and selection, and where it begins.
        space: Search space of the problem.
    """

    def __init__(self, solver: LevelSwitch, space: Space) -> None:
        self._solver, self._space = solver, space
        self._selection = Selection.parse(solver.selection)
        grouped = space.problem.grouped
        cost = np.where(grouped.allowed, space.costs.sum(axis=0), np.inf)
        # Of every group its columns from the cheapest on: its levels; what is not allowed is last.
        self._levels = cost.argsort(axis=1, kind="stable")  # [G, B]
        self._top = grouped.allowed.sum(axis=1) - 1  # [G]
        self._groups = np.arange(space.num_groups)

    def __call__(self, trials: Trials, rng: np.random.Generator, count: int) -> Assignments:
        """See ``Propose``."""
        if len(trials):
            parent = trials.assignments[int(trials.values[:, 0].argmin())]
        else:
            parent = self._space.groups(np.array(self._solver.starts[:1], dtype=np.intp))[0]
        found = self._children(parent, trials, rng, max(count, self._selection.num_children))
        # Where all neighbours are known, what is left is drawn.
        if not len(found):
            return trials.unknown(self._space.random(count, rng))
        if not self._selection.steps:
            return found
        objective = shareable(self._solver.name, self._solver.objective)
        return self._selection.best_first(
            self._solver.name, objective, found, self._space.layers, rng
        )

    def _children(
        self, parent: Columns, trials: Trials, rng: np.random.Generator, count: int
    ) -> Assignments:
        """``[P, G]`` that keep the budgets and nobody has tried: so many, if they are found."""
        levels = (self._levels == parent[:, None]).argmax(axis=1)  # [G]
        found = np.empty((0, len(parent)), dtype=np.intp)
        for _ in range(_ATTEMPTS):
            drawn = np.array([self._child(levels, rng) for _ in range(count)], dtype=np.intp)
            columns = self._levels[self._groups, drawn]
            within = columns[self._space.within(columns)]
            found = trials.unknown(np.concatenate([found, within]))
            if len(found) >= count:
                break
        return found

    def _child(self, levels: Columns, rng: np.random.Generator) -> Columns:
        """``[G]`` levels after one to three switches."""
        child = levels.copy()
        for _ in range(int(rng.integers(1, _MOST_SWITCHES + 1, 2).min())):
            for change, can in ((-1, child > 0), (+1, child < self._top)):
                if can.any():
                    child[rng.choice(np.flatnonzero(can))] += change
        return child
