"""Surrogate-assisted solver: many cheap predicted candidates, few measured ones."""

from dataclasses import dataclass, field, replace
from itertools import product
from typing import ClassVar, Self, final

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular

from mpq._support.arrays import Array
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.solvers._base import Losses
from mpq.solvers.additive.default import solve_additive
from mpq.solvers.black_box._base import (
    MeasuringSolver,
    Run,
    check_trials,
    depends_of,
    predicted,
)
from mpq.solvers.black_box.earlier import Earlier, best_within
from mpq.solvers.black_box.population import Assignments, Space
from mpq.solvers.black_box.study import Trials

Shape = tuple[float, float, float, float]

_GENERATIONS, _CHILDREN, _PARENTS = 12, 200, 50
"""Of the search among predicted candidates, between two batches."""
_SHORTLIST = 300
"""Candidates among which a batch is chosen jointly."""
_REACH = 0.1
"""Share of the groups that differ at which local corrections have little in common."""
_CAUTION = 2.0
"""Largest number of standard deviations by which a candidate may be hoped to be better."""
_SHAPES = list(product((0.1, 0.3, 1.0), (0.0, 0.15, 0.5, 1.5), (0.02, 0.1), (0.003, 0.03)))
"""Tried standard deviations of u, of rho, of delta and of the noise."""


@final
@dataclass(frozen=True)
class Surrogate(MeasuringSolver):
    r"""Corrects the prediction by what was measured, and measures what then looks best.

    The true loss is taken to be the problem's own, :math:`p` (table and interactions), scaled and
    shifted, plus a Gaussian process:

    .. math:: f(z) = c + a \Bigl[p(z) + \sum_g s_{g z_g} (u + u_g + u_{g z_g})
        + \sum_{g < h} \rho_{gh} \sqrt{s_{g z_g} s_{h z_h}} + \delta(z)\Bigr]

    where :math:`s_{gb}` is what a cell rises above the least of its group. Layers and cells may be
    off by a factor (:math:`u`), the errors of two groups may add up or cancel (:math:`\rho`), and
    neighbours have something in common (:math:`\delta`, whose covariance falls with the number of
    groups that differ); noise and :math:`\delta` are relative to :math:`\sum_g s_{g z_g}`. The
    variances are those of a small grid with the largest marginal likelihood. In each round
    thousands of candidates are bred from the best measured ones and scored by array arithmetic.
    Among them is the exact optimum of the corrected loss, linear around the best one. The batch
    takes those of least :math:`\mu - \kappa \sigma`, for :math:`\kappa` from 0 up, each as if the
    ones before it were measured.

    In the spirit of APQ (Wang et al. 2020, arXiv:2006.08509) and SimQ-NAS (Sridhar et al. 2023,
    arXiv:2312.13301), whose searches ask a trained predictor, and of EvoPress (Sieberling et al.
    2024, arXiv:2410.14649), whose mutations are ours. Departs from them by the prior: the
    prediction is right but for what measurements say against it, so that few are needed.

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
        earlier: The ``storage`` of an earlier search of the same layers by the same metric and
            score, at other limits, on other examples or with other weights: what was measured there
            corrects the prediction before anything is measured here, and the best of it are
            measured first. Empty: none.
        objective: Losses of a batch; ``None``: the problem's own.
    """

    name: ClassVar[str] = "surrogate"
    summary: ClassVar[str] = "few measurements that correct the prediction; no proof"

    num_trials: int = 100
    batch_size: int = 10
    seed: int = 0
    is_seeded: bool = True
    is_measured: bool = False
    storage: str = ""
    study: str = "mpq"
    starts: tuple[tuple[int, ...], ...] = ()
    time_limit_s: float | None = None
    earlier: str = ""
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
                or the storage, or that of the earlier search, cannot be used.
            MismatchError: If the study belongs to another problem, or the earlier search is of
                other layers or candidates, or measured with another metric or score.
            SolverError: If the storage fails on the way, or a loss is ``nan``.
        """
        if not self.earlier:
            return Run(self, problem, num_seeds=self.batch_size).solve(_Candidates.of)
        known = Earlier.taught(self.earlier, self.study, depends_of(self.objective))
        columns, losses = known.of_layers(problem)
        best = best_within(problem, columns, losses, -(-self.batch_size // 2))
        begun = replace(self, starts=(*self.starts, *best))

        def informed(space: Space) -> _Candidates:
            return _Candidates(space, _Prior.of(space).after(space.groups(columns), losses))

        return Run(begun, problem, num_seeds=self.batch_size).solve(informed)


@final
@dataclass(frozen=True, eq=False)
class _Candidates:
    """What looks best after the trials so far.

    Args:
        space: Search space of the problem.
        prior: What is believed before anything is measured.
    """

    space: Space
    prior: "_Prior"

    @classmethod
    def of(cls, space: Space) -> Self:
        """For a problem."""
        return cls(space, _Prior.of(space))

    def __call__(self, trials: Trials, rng: np.random.Generator, count: int) -> Assignments:
        """See ``Propose``; random assignments until there are two finite trials."""
        finite = np.isfinite(trials.values[:, 0])
        if finite.sum() < 2:
            return self.space.random(2 * count, rng)
        assignments, losses = trials.assignments[finite], trials.values[finite, 0]
        belief = _Belief.of(self.prior, assignments, losses)
        best = assignments[np.argsort(losses, kind="stable")[:_PARENTS]]
        pool = trials.unknown(self._bred(belief, best, rng))
        return _diverse(belief, pool, count)

    def _bred(self, belief: "_Belief", best: Assignments, rng: np.random.Generator) -> Assignments:
        """``[P, G]`` candidates: generations of children by belief, and the exact optimum."""
        optimum = self._optimum(belief, best[:1])
        parents = np.concatenate([optimum, best])
        pool = [optimum]
        for generation in range(_GENERATIONS):
            children = self.space.children(parents, _CHILDREN, rng)
            pool.append(children)
            # Equal rows would fill the parents with copies of one candidate.
            parents = np.unique(np.concatenate([parents, children]), axis=0)
            # Alternately what is believed and what may be hoped for.
            hope = _CAUTION * (generation % 2)
            mean, deviation = belief.of_assignments(parents)
            parents = parents[np.argsort(mean - hope * deviation, kind="stable")[:_PARENTS]]
        return np.concatenate([*pool, self.space.random(_CHILDREN, rng)])

    def _optimum(self, belief: "_Belief", start: Assignments) -> Assignments:
        """``[1, G]`` exact optimum of the corrected sum, interactions as they are at ``start``."""
        problem = self.space.problem
        values = np.zeros_like(problem.loss.values)
        # A group costs the sum of its layers: all of its slope at one of them comes to the same.
        values[[rows[0] for rows in problem.grouped.members]] = np.where(
            problem.grouped.allowed, belief.slopes(start), 0.0
        )
        # The slopes hold what pairs cost beside `start`: the table's own would count it twice.
        loss = replace(problem.loss, values=values, constant=0.0, pairs=())
        found = solve_additive(replace(problem, loss=loss, interactions=None))
        # The same budgets as those of the problem, which was found feasible before.
        return start if found.columns is None else self.space.groups(found.columns[None])


@final
@dataclass(frozen=True, eq=False)
class _Prior:
    """The prediction, and how far each of its cells may be off.

    Args:
        space: Search space of the problem.
        predict: Predicted losses ``[P]`` of ``[P, L]``.
        rise: ``[G, B]`` of every cell above the least of its group; never 0.
    """

    space: Space
    predict: Losses
    rise: Array

    @classmethod
    def of(cls, space: Space) -> Self:
        """For a problem."""
        grouped = space.problem.grouped
        least = np.where(grouped.allowed, grouped.loss, np.inf).min(axis=1, keepdims=True)
        rise = np.where(grouped.allowed, grouped.loss - least, 0.0)
        floor = 1e-2 * rise.sum() / grouped.allowed.sum()
        # A cell that is predicted to lose nothing may still be wrong.
        return cls(space, predicted(space.problem), np.maximum(rise, floor or 1.0))

    def after(self, assignments: Assignments, losses: Array) -> "_Prior":
        """The same with what an earlier search's ``losses [T]`` make of the prediction."""
        learned = _Belief.of(self, assignments, losses)

        def predict(layers: Assignments) -> Array:
            return learned.of_assignments(self.space.groups(layers))[0]

        return replace(self, predict=predict)

    def loss(self, assignments: Assignments) -> Array:
        """``[P]`` as predicted."""
        return self.predict(self.space.layers(assignments))

    def features(self, assignments: Assignments) -> "_Features":
        """What the covariance is computed from."""
        groups = np.arange(self.space.num_groups)
        own = self.rise[groups, assignments]  # [P, G]
        # Positive, because no rise is 0: shares divide by it.
        size = own.sum(axis=1)
        one_hot = np.zeros((len(assignments), *self.rise.shape))
        one_hot[np.arange(len(assignments))[:, None], groups, assignments] = 1.0
        flat = one_hot.reshape(len(assignments), -1)
        share = own / size[:, None]
        cells = (one_hot * share[:, :, None]).reshape(len(assignments), -1)
        return _Features(size, share, flat, cells)


@final
@dataclass(frozen=True, eq=False)
class _Features:
    """Of ``P`` choices, relative to the size of their predicted loss.

    Args:
        size: ``[P]`` sum of the rises.
        share: ``[P, G]`` each group's share of it.
        one_hot: ``[P, G B]`` 1 where a choice takes the cell, else 0.
        cells: ``[P, G B]`` the share in its cell.
    """

    size: Array
    share: Array
    one_hot: Array
    cells: Array

    def covariance(self, other: "_Features", shape: Shape) -> Array:
        """``[P, P']`` of the relative corrections, without noise."""
        cell, pair, local, _ = shape
        num_groups = self.share.shape[1]
        alone = self.share @ other.share.T
        # The square of a sum over groups holds every pair twice, beside the groups alone: hence the
        # difference and the half below.
        both = np.sqrt(self.share) @ np.sqrt(other.share).T
        # Two one-hot rows multiply to the number of groups that agree.
        differ = num_groups - self.one_hot @ other.one_hot.T
        return np.asarray(
            cell**2 * (1 + alone + self.cells @ other.cells.T)
            + 0.5 * pair**2 * (both**2 - alone)
            + local**2 * np.exp(-differ / (_REACH * num_groups))
        )


@final
@dataclass(frozen=True, eq=False)
class _Belief:
    """The prior after some measurements.

    Args:
        prior: What was believed before these measurements.
        known: Features of the ``T`` measured choices.
        shape: The one of ``_SHAPES`` with the largest marginal likelihood.
        offset: Mean of what the measured loss exceeds the scaled prediction by.
        scale: Factor from the prediction to the measured loss.
        factor: ``[T, T]`` Cholesky factor of the measured choices' covariance, upper.
        weights: ``[T]`` the covariance's inverse times the relative residuals.
    """

    prior: _Prior
    known: _Features
    shape: Shape
    offset: float
    scale: float
    factor: Array
    weights: Array

    @classmethod
    def of(cls, prior: _Prior, assignments: Assignments, losses: Array) -> Self:
        """After measuring ``losses [T]`` of ``assignments [T, G]``."""
        known = prior.features(assignments)
        guess = prior.loss(assignments)
        offset, scale = _line(guess, losses, known.size)
        relative = (losses - offset - scale * guess) / (scale * known.size)
        fits = []
        for shape in _SHAPES:
            noisy = known.covariance(known, shape) + shape[3] ** 2 * np.eye(len(losses))
            factor = cholesky(noisy)
            weights = cho_solve((factor, False), relative)
            # The constant of the logarithm is left out, being the same for all shapes.
            evidence = -0.5 * relative @ weights - np.log(np.diag(factor)).sum()
            fits.append((float(evidence), shape, factor, weights))
        _, shape, factor, weights = max(fits, key=lambda fit: fit[0])
        return cls(prior, known, shape, offset, scale, factor, weights)

    def slopes(self, start: Assignments) -> Array:
        """``[G, B]`` expected change of the loss when one group of ``start [1, G]`` changes."""
        num_groups, num_columns = self.prior.rise.shape
        every = np.arange(num_groups * num_columns)
        changed = np.repeat(start, len(every), axis=0)
        changed[every, every // num_columns] = every % num_columns
        mean, _ = self.of_assignments(np.concatenate([start, changed]))
        return np.asarray((mean[1:] - mean[0]).reshape(num_groups, num_columns))

    def of_assignments(self, assignments: Assignments) -> tuple[Array, Array]:
        """Mean and standard deviation ``[P]`` of the loss of ``assignments [P, G]``."""
        mean, covariance = self._joint(
            self.prior.features(assignments), assignments, is_joint=False
        )
        return mean, np.sqrt(covariance)

    def joint(self, assignments: Assignments) -> tuple[Array, Array]:
        """Mean ``[P]`` and covariance ``[P, P]``."""
        return self._joint(self.prior.features(assignments), assignments, is_joint=True)

    def _joint(
        self, features: _Features, assignments: Assignments, is_joint: bool
    ) -> tuple[Array, Array]:
        # Beliefs are about relative corrections; this brings them back to losses.
        unit = self.scale * features.size  # [P]
        cross = features.covariance(self.known, self.shape)  # [P, T]
        mean = (
            self.offset + self.scale * self.prior.loss(assignments) + unit * (cross @ self.weights)
        )
        half = solve_triangular(self.factor, cross.T, trans="T")  # [T, P]
        if is_joint:
            spread = features.covariance(features, self.shape) - half.T @ half
            return mean, spread * unit[:, None] * unit
        cell, pair, local, _ = self.shape
        # The diagonal of the covariance in closed form, shares adding up to 1: of thousands of
        # candidates the matrix is not needed.
        alone = (features.share**2).sum(axis=1)
        own = cell**2 * (1 + 2 * alone) + 0.5 * pair**2 * (1 - alone) + local**2
        variance = own - (half**2).sum(axis=0)
        return mean, np.maximum(variance, 0.0) * unit**2


def _line(guess: Array, losses: Array, size: Array) -> tuple[float, float]:
    """Offset and scale from predicted to measured losses, by least squares of relative errors."""
    columns = np.column_stack([1 / size, guess / size])
    (offset, scale), *_ = np.linalg.lstsq(columns, losses / size)
    if scale > 0:
        return float(offset), float(scale)
    # Measured losses fall where predicted ones rise: then only their level is taken over.
    return float(np.average(losses - guess, weights=size**-2.0)), 1.0


def _diverse(belief: _Belief, pool: Assignments, count: int) -> Assignments:
    """``[count, G]`` of the pool: from what is believed to be best to what may be hoped for."""
    if not len(pool):
        return pool
    mean, deviation = belief.of_assignments(pool)
    # By ranks: a candidate is kept that is good by its mean or by what may be hoped, on any scale.
    hope = np.minimum(mean.argsort().argsort(), (mean - _CAUTION * deviation).argsort().argsort())
    pool = pool[np.argsort(hope, kind="stable")[:_SHORTLIST]]
    mean, covariance = belief.joint(pool)
    noise = (belief.shape[3] * belief.scale * belief.prior.features(pool).size) ** 2
    left = np.ones(len(pool), dtype=np.bool_)
    chosen = []
    for caution in np.linspace(0, _CAUTION, count)[: len(pool)]:
        # Rounding may leave a variance below 0 once its candidate is as good as measured.
        deviation = np.sqrt(np.maximum(np.diag(covariance), 0.0))
        row = int(np.where(left, mean - caution * deviation, np.inf).argmin())
        chosen.append(row)
        left[row] = False
        # As if its mean had been measured: means stay, and what goes along with it is more certain.
        column = covariance[:, row]
        covariance = covariance - np.outer(column, column) / (column[row] + noise[row])
    return pool[chosen]
