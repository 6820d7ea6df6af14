"""Boosted trees: what was measured teaches which configuration to measure next."""

from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import product
from math import prod
from typing import Any, ClassVar, Final, Self, final

import numpy as np

from mpq._support.arrays import Array, Columns
from mpq.errors import InputError, MissingDependencyError
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.solvers._base import Losses
from mpq.solvers.black_box._base import (
    MeasuringSolver,
    Run,
    check_trials,
    depends_of,
    predicted,
)
from mpq.solvers.black_box.earlier import Earlier
from mpq.solvers.black_box.population import Assignments, Space
from mpq.solvers.black_box.study import Trials

_LISTED: Final = 4096
"""Assignments up to which all of them are looked at, and not children of the best."""
_CHILDREN, _PARENTS = 400, 20
_TREES, _DEPTH = 100, 3


@final
@dataclass(frozen=True)
class BoostedTrees(MeasuringSolver):
    """Asks boosted trees what to measure next, as Quantune does; proves nothing itself.

    Gradient-boosted regression trees (Friedman 2001, doi:10.1214/aos/1013203451) learn from all
    trials so far what an assignment loses, from numbers that every network has: which candidate
    the first layer takes, which the last one, the share of the layers at each candidate, and how
    much is predicted to be lost. Of all assignments within the budgets, where they are few, or
    else of children of the best trials, those that the trees think best are measured, and some at
    random. Quantune (Lee et al. 2022, arXiv:2202.05048), whose trees choose the configuration of a
    whole network by measured accuracy: with ``--tie-inner`` and candidates that say scheme,
    granularity and precision, an assignment is such a configuration. Departs from it in the
    predicted loss, in labels, which are ranks within a run, so that runs of networks that lose
    more or less go together, and in the trees, which are scikit-learn's.

    Args:
        num_trials: Measurements in all, seeds and those that the storage holds included.
        batch_size: Candidates measured at once.
        seed: Seed of every random draw.
        is_seeded: Whether the search begins at the solved assignments, or at random.
        is_measured: As for ``Evolutionary``.
        storage: As for ``Evolutionary``.
        study: As for ``Evolutionary``.
        starts: Further assignments to begin at, ``[L]`` columns each.
        time_limit_s: As for ``Evolutionary``.
        explore: Share of every batch that is random.
        earlier: The ``storage`` of an earlier search, of this network or another one, with the
            same candidates, metric and score: its trials teach the trees, too. Empty: none.
        objective: Losses of a batch; ``None``: the problem's own.

    Raises:
        InputError: If a number is out of range.
    """

    name: ClassVar[str] = "boosted-trees"
    summary: ClassVar[str] = "Quantune: trees learn from what was measured (mpq[trees]); no proof"

    num_trials: int = 60
    batch_size: int = 6
    seed: int = 0
    is_seeded: bool = False
    is_measured: bool = False
    storage: str = ""
    study: str = "mpq"
    starts: tuple[tuple[int, ...], ...] = ()
    time_limit_s: float | None = None
    explore: float = 0.2
    earlier: str = ""
    objective: Losses | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_trials(self)
        if not 0 <= self.explore <= 1:
            raise InputError(f"{self.name} needs explore from 0 to 1; got {self.explore}")

    def check(self) -> None:
        """See ``Solver.check``.

        Raises:
            MissingDependencyError: If scikit-learn is not installed.
        """
        if find_spec("sklearn") is None:
            raise MissingDependencyError(
                "boosted-trees needs scikit-learn: pip install 'mpq[trees]'"
            )

    def bind(self, losses: Losses) -> Self:
        """See ``Solver.bind``."""
        return replace(self, objective=losses)

    def solve(self, problem: Problem) -> Solution:
        """See ``Solver.solve``; infeasible problems are recognised exactly.

        Raises:
            InputError: If the loss is to be measured and there is no objective that measures it,
                or a storage cannot be used.
            MismatchError: If the study belongs to another problem, or the earlier search had other
                candidates, or another metric or score.
            MissingDependencyError: If scikit-learn is not installed.
            SolverError: If the storage fails on the way, or a loss is ``nan``.
        """
        self.check()
        lessons: tuple[Lesson, ...] = ()
        if self.earlier:
            known = Earlier.taught(self.earlier, self.study, depends_of(self.objective))
            lessons = (Lesson.of_earlier(known, problem),)
        return Run(self, problem, self.batch_size).solve(
            lambda space: _Grown(space, lessons, self.explore, self.seed)
        )


@final
@dataclass(frozen=True, eq=False)
class Lesson:
    """What trees learn from: one run.

    Args:
        features: ``[T, F]``.
        labels: ``[T]`` ranks of the losses, from above 0 to 1.
    """

    features: Array
    labels: Array

    @classmethod
    def of(cls, features: Array, losses: Array) -> Self:
        """From losses, of which equal ones have one rank."""
        from scipy.stats import rankdata

        return cls(features, rankdata(losses) / len(losses))

    @classmethod
    def of_earlier(cls, earlier: Earlier, problem: Problem) -> Self:
        """From an earlier search; what was predicted there is not known."""
        columns, losses = earlier.of_candidates(problem)
        unknown = np.full(len(columns), np.nan)
        return cls.of(_features(columns, len(problem.loss.precisions), unknown, False), losses)


def _features(columns: Columns, num_precisions: int, guess: Array, is_own: bool) -> Array:
    """``[P, F]`` of assignments ``[P, L]``: first, last and shares of all, prediction, whose."""
    one_hot = columns[:, :, None] == np.arange(num_precisions)  # [P, L, B]
    own = np.full((len(columns), 1), float(is_own))
    return np.concatenate(
        [one_hot[:, 0], one_hot[:, -1], one_hot.mean(axis=1), guess[:, None], own], axis=1
    )


@final
@dataclass(frozen=True, eq=False)
class _Grown:
    """What trees think best after the trials so far.

    Args:
        space: Search space of the problem.
        lessons: Of earlier runs.
        explore: Share of a batch that is random.
        seed: Of the trees.
    """

    space: Space
    lessons: tuple[Lesson, ...]
    explore: float
    seed: int

    def __call__(self, trials: Trials, rng: np.random.Generator, count: int) -> Assignments:
        """See ``Propose``; random assignments until there is something to learn from."""
        finite = np.isfinite(trials.values[:, 0])
        known, losses = trials.assignments[finite], trials.values[finite, 0]
        pool = trials.unknown(self._pool(known[np.argsort(losses, kind="stable")], rng))
        pool = pool[rng.permutation(len(pool))]
        if not len(pool) or (len(known) < 2 and not self.lessons):
            return pool
        own = (Lesson.of(self._of(known), losses),) if len(known) >= 2 else ()
        features = self._of(pool)
        thought = self._trees((*own, *self.lessons)).predict(_filled(features))
        # Trees are steps: of those that they think alike, the least predicted loss.
        order = np.lexsort((features[:, -2], thought.round(9)))
        best = pool[order[: count - int(self.explore * count)]]
        return np.concatenate([best, pool[: 2 * count], pool[order]])

    def _of(self, assignments: Assignments) -> Array:
        """``[P, F]``; predictions as shares of the largest that a choice can have."""
        layers, grouped = self.space.layers(assignments), self.space.problem.grouped
        most = np.where(grouped.allowed, grouped.loss, 0.0).max(axis=1).sum()
        guess = predicted(self.space.problem)(layers) / (most or 1.0)
        return _features(layers, grouped.loss.shape[1], guess, True)

    def _trees(self, lessons: tuple[Lesson, ...]) -> Any:
        from sklearn.ensemble import GradientBoostingRegressor

        features = np.concatenate([lesson.features for lesson in lessons])
        labels = np.concatenate([lesson.labels for lesson in lessons])
        trees = GradientBoostingRegressor(
            n_estimators=_TREES, max_depth=_DEPTH, random_state=self.seed
        )
        return trees.fit(_filled(features), labels)

    def _pool(self, best: Assignments, rng: np.random.Generator) -> Assignments:
        """``[P, G]`` within the budgets."""
        allowed = [np.flatnonzero(row).tolist() for row in self.space.problem.grouped.allowed]
        if prod(map(len, allowed)) <= _LISTED:
            every = np.array(list(product(*allowed)), dtype=np.intp)
            return every[self.space.within(every)]
        found = self.space.random(_CHILDREN, rng)
        if not len(best):
            return found
        return np.concatenate([found, self.space.children(best[:_PARENTS], _CHILDREN, rng)])


def _filled(features: Array) -> Array:
    """Unknown predictions as -1, apart from all others."""
    return np.nan_to_num(features, nan=-1.0)
