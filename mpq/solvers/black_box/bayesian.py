"""Bayesian solver: optuna's TPE for losses that take long to measure."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Self, final

import numpy as np

from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.solvers._base import Losses
from mpq.solvers.black_box._base import MeasuringSolver, Run, check_trials
from mpq.solvers.black_box.population import Assignments, Space
from mpq.solvers.black_box.study import Trials, quiet

if TYPE_CHECKING:
    import optuna


@final
@dataclass(frozen=True)
class Bayesian(MeasuringSolver):
    """Asks optuna's tree-structured Parzen estimator what to measure next; proves nothing itself.

    TPE (Bergstra et al. 2011; multivariate as in Falkner et al. 2018, arXiv:1807.01774) with a
    constant liar within a batch. Departs from it by the solved assignments in the first batch, and
    by repairing suggestions that break a budget: costs are known before anything is measured.

    The sampler works in memory, with a parameter for each group; the storage takes whole
    assignments, as ``Evolutionary`` writes them, so that what one of the three solvers of measured
    losses has begun may be resumed by another.

    Args:
        num_trials: Evaluations in all, seeds and those that the storage holds included.
        batch_size: Suggestions evaluated at once.
        seed: Seed of every random draw.
        is_seeded: Whether the search begins at the solved assignments, or at random.
        is_measured: As for ``Evolutionary``.
        storage: As for ``Evolutionary``.
        study: As for ``Evolutionary``.
        starts: Further assignments to begin at, ``[L]`` columns each.
        time_limit_s: As for ``Evolutionary``.
        objective: Losses of a batch; ``None``: the problem's own.
    """

    name: ClassVar[str] = "bayesian"
    summary: ClassVar[str] = "TPE (optuna), for measured losses that take long; no proof"

    num_trials: int = 200
    batch_size: int = 10
    seed: int = 0
    is_seeded: bool = True
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
        return Run(self, problem, num_seeds=self.batch_size).solve(_Suggestions)


@final
class _Suggestions:
    """What TPE suggests after the trials so far.

    Args:
        space: Search space of the problem.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self._told = 0
        self._study: optuna.Study | None = None

    def __call__(self, trials: Trials, rng: np.random.Generator, count: int) -> Assignments:
        """See ``Propose``; random assignments until there is one trial."""
        with quiet():
            asked = self._asked(trials, int(rng.integers(2**32)), count, rng)
        fixed = self._space.repaired(asked, rng)
        suggested = fixed[self._space.within(fixed)]
        # Where TPE suggests what is known already, neighbours of that and random ones step in.
        near = self._space.children(suggested, count, rng) if len(suggested) else suggested
        return np.concatenate([suggested, near, self._space.random(2 * count, rng)])

    def _asked(
        self, trials: Trials, seed: int, count: int, rng: np.random.Generator
    ) -> Assignments:
        """``[count, G]`` as the sampler wants them, budgets aside."""
        import optuna

        study = self._filled(trials)
        # A new sampler for each batch: what it draws depends on the trials and the seed alone.
        study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=1)
        asked = [study.ask() for _ in range(count)]
        assignments = self._space.drawn(count, rng)
        for row, trial in enumerate(asked):
            for group, column in trial.relative_params.items():
                assignments[row, int(group)] = column
        for trial in asked:
            # A failed trial is as good as deleted: it is the repaired one that is evaluated.
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return assignments

    def _filled(self, trials: Trials) -> "optuna.Study":
        """The study in memory, with all trials."""
        import optuna

        # Fewer trials than before: `_next` asks for whole batches first. A study cannot forget.
        if self._study is None or self._told > len(trials):
            self._study, self._told = optuna.create_study(direction="minimize"), 0
        spaces: dict[str, optuna.distributions.BaseDistribution] = {
            # Categories: columns are in the order of the candidates, not of their cost.
            str(group): optuna.distributions.CategoricalDistribution(np.flatnonzero(row).tolist())
            for group, row in enumerate(self._space.problem.grouped.allowed)
        }
        for columns, values in zip(
            trials.assignments[self._told :].tolist(),
            trials.values[self._told :].tolist(),
            strict=True,
        ):
            params = {str(group): column for group, column in enumerate(columns)}
            trial = optuna.create_trial(value=values[0], params=params, distributions=spaces)
            self._study.add_trial(trial)
        self._told = len(trials)
        return self._study
