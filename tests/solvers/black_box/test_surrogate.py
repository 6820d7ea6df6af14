"""Surrogate-assisted search: its belief against dense algebra, its economy against the others."""

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import numpy.typing as npt
import pytest

from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable, PairwiseCost
from mpq.problem.problem import Problem
from mpq.quantization.precision import Precision
from mpq.solvers.black_box import surrogate as module_under_test
from mpq.solvers.black_box.evolutionary import Evolutionary
from mpq.solvers.black_box.population import Space
from mpq.solvers.black_box.surrogate import Surrogate

PRECISIONS = tuple(map(Precision.parse, ("w2a8", "w4a8", "w6a8", "w8a8")))
Assignments = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float64]


def random_problem(seed: int, layers: int = 24) -> Problem:
    """Predicted losses over several sizes of layers; one limit at 4.5 of 8 bits."""
    rng = np.random.default_rng(seed)
    names = tuple(f"layer{i}" for i in range(layers))
    bits = np.array([2.0, 4.0, 6.0, 8.0])
    size = rng.lognormal(3, 1, (layers, 1))
    loss = -np.sort(-rng.lognormal(0, 1.5, (layers, 1)) * 2.0**-bits, axis=1)
    cost = CostTable("size", "bytes", names, PRECISIONS, size * bits)
    table = CostTable("loss", "nats", names, PRECISIONS, loss)
    return Problem(table, Constraints((Budget.of(cost, float(size.sum() * 4.5)),)))


class Truth:
    """Another loss than the predicted one: layers off by factors, pairs that add up or cancel,
    and saturation."""

    def __init__(self, problem: Problem, seed: int) -> None:
        rng = np.random.default_rng([seed, 1])
        table = problem.loss.values
        self._table = table * rng.lognormal(0, 0.5, (len(table), 1))
        self._mixing = rng.standard_normal((40, len(table)))
        self.best: list[float] = []

    def __call__(self, assignments: Assignments) -> Floats:
        alone = self._table[np.arange(len(self._table)), assignments]  # [P, L]
        together = ((np.sqrt(alone) @ self._mixing.T) ** 2).mean(axis=1)
        losses = np.sqrt(1 + 0.5 * (alone.sum(axis=1) + together)) - 1
        for loss in losses.tolist():
            self.best.append(min([loss, *self.best[-1:]]))
        return np.asarray(losses)


@pytest.mark.parametrize("seed", range(3))
def test_fewer_measurements_than_evolution(seed: int) -> None:
    """After 80 it is where the evolutionary search, with the same seeds, is not after 400."""
    problem = random_problem(seed)
    ours, theirs = Truth(problem, seed), Truth(problem, seed)

    solution = Surrogate(num_trials=80, objective=ours).solve(problem)
    Evolutionary(num_trials=400, objective=theirs).solve(problem)

    assert len(ours.best) == 80
    assert solution.loss == ours.best[-1]
    assert ours.best[-1] < theirs.best[-1]
    assert ours.best[-1] < 0.97 * ours.best[0], "better than the exact additive answer"


def test_near_the_best_that_is_known() -> None:
    """100 measurements end within 3 % of the best that 20,000 evaluations find."""
    problem = random_problem(0)
    known = Truth(problem, 0)
    Evolutionary(num_trials=20000, objective=known).solve(problem)

    solution = Surrogate(objective=Truth(problem, 0)).solve(problem)

    assert solution.loss <= known.best[-1] * 1.03


def weight_space(rise: Floats, assignments: Assignments, cell: float, pair: float) -> Floats:
    """``[P, F]`` one column for each unknown of the model, times its standard deviation."""
    layers = len(rise)
    rows = []
    for columns in assignments:
        own = rise[np.arange(layers), columns]
        cells = np.zeros(rise.shape)
        cells[np.arange(layers), columns] = own
        pairs = [np.sqrt(own[g] * own[h]) for g, h in combinations(range(layers), 2)]
        linear = np.concatenate([[own.sum()], own, cells.ravel()])
        rows.append(np.concatenate([cell * linear, pair * np.array(pairs)]))
    return np.array(rows)


def test_the_belief_is_bayesian_linear_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without local corrections, mean and deviation are those of a ridge over all unknowns."""
    cell, pair, noise = 0.3, 0.5, 0.05
    monkeypatch.setattr(module_under_test, "_SHAPES", [(cell, pair, 0.0, noise)])
    monkeypatch.setattr(module_under_test, "_line", lambda *_: (0.25, 1.5))
    problem = random_problem(0, layers=5)
    rng = np.random.default_rng(0)
    known, asked = rng.integers(0, 4, (2, 12, 5))
    losses = rng.lognormal(0, 1, 12)
    prior = module_under_test._Prior.of(Space.of(problem))

    belief = module_under_test._Belief.of(prior, known, losses)
    mean, deviation = belief.of_assignments(asked)
    _, covariance = belief.joint(asked)

    rise, scale = prior.rise, 1.5
    predicted = [
        np.array([problem.loss_of(columns) for columns in assignments])
        for assignments in (known, asked)
    ]
    old, new = (
        scale * weight_space(rise, assignments, cell, pair) for assignments in (known, asked)
    )
    sizes = rise[np.arange(5), known].sum(axis=1)
    weight = 1 / (noise * scale * sizes) ** 2
    precision = np.eye(old.shape[1]) + old.T @ (weight[:, None] * old)
    residual = losses - 0.25 - scale * predicted[0]
    found = np.linalg.solve(precision, old.T @ (weight * residual))
    np.testing.assert_allclose(mean, 0.25 + scale * predicted[1] + new @ found, rtol=1e-6)
    expected = new @ np.linalg.solve(precision, new.T)
    np.testing.assert_allclose(covariance, expected, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(deviation, np.sqrt(np.diag(expected)), rtol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_the_corrected_optimum_counts_pairs_once(seed: int) -> None:
    """Linear around a start, where what pairs cost beside it is in the slopes already."""
    rng = np.random.default_rng(seed)
    problem = random_problem(seed, layers=4)
    pairs = tuple(
        PairwiseCost(f"layer{i}", f"layer{i + 1}", rng.lognormal(1, 1, (4, 4))) for i in range(3)
    )
    problem = replace(problem, loss=replace(problem.loss, pairs=pairs))
    candidates = module_under_test._Candidates.of(Space.of(problem))
    known = rng.integers(0, 4, (8, 4))
    losses = np.array([problem.loss_of(columns) for columns in known])
    belief = module_under_test._Belief.of(candidates.prior, known, losses)

    found = candidates._optimum(belief, known[:1])

    slopes = belief.slopes(known[:1])
    feasible = filter(problem.is_feasible, map(np.array, product(range(4), repeat=4)))
    least = min(slopes[range(4), columns].sum() for columns in feasible)
    assert slopes[range(4), found[0]].sum() == pytest.approx(least)


def test_the_scale_of_a_loss_is_learned() -> None:
    """A loss in another unit, and shifted, is searched alike."""
    problem = random_problem(2)
    plain, other = Truth(problem, 2), Truth(problem, 2)

    one = Surrogate(num_trials=60, objective=plain).solve(problem)
    same = Surrogate(num_trials=60, objective=lambda c: 5 + 1000 * other(c)).solve(problem)

    assert (same.loss - 5) / 1000 == pytest.approx(one.loss, rel=0.02)


def test_losses_that_contradict_the_prediction() -> None:
    """Where fewer bits are measured to be better, that is found in the end."""
    problem = random_problem(0, layers=8)

    def upside_down(assignments: Assignments) -> Floats:
        return np.asarray(1 + assignments.sum(axis=1, dtype=np.float64))

    solution = Surrogate(num_trials=60, objective=upside_down).solve(problem)

    assert solution.loss <= 3.0


def test_no_forbidden_precision_is_measured() -> None:
    """Where every layer may take two of four: the network may not even run in the others."""
    plain, rng = random_problem(1, layers=8), np.random.default_rng(1)
    few = {
        name: tuple(PRECISIONS[i] for i in rng.choice(4, 2, replace=False))
        for name in plain.loss.layers
    }
    problem, truth = (
        Problem(plain.loss, Constraints(plain.budgets, candidates=few)),
        Truth(plain, 1),
    )
    asked: list[Assignments] = []

    def measured(assignments: Assignments) -> Floats:
        asked.extend(assignments)
        return truth(assignments)

    Surrogate(num_trials=40, objective=measured).solve(problem)

    assert len(asked) > 20
    assert all(problem.is_feasible(columns) for columns in asked)


def test_a_prediction_of_nothing_is_corrected_too() -> None:
    """A table that tells no precision from another leaves it to the measurements."""
    problem = random_problem(0, layers=6)
    truth, level = Truth(problem, 0), np.ones_like(problem.loss.values)

    solution = Surrogate(num_trials=60, objective=truth).solve(
        replace(problem, loss=replace(problem.loss, values=level))
    )

    assert solution.loss == truth.best[-1]
    assert solution.loss < 0.5 * truth.best[0]


def test_what_may_not_be_taken_says_nothing_of_the_rest() -> None:
    """How far a prediction may be off is the same with a forbidden precision and without it."""
    full = Problem(random_problem(0, layers=5).loss)
    values = full.loss.values * 1e-6
    loss = replace(full.loss, values=values)
    fewer = CostTable("loss", "nats", loss.layers, PRECISIONS[1:], values[:, 1:])
    allowed = dict.fromkeys(loss.layers, PRECISIONS[1:])

    forbidden = module_under_test._Prior.of(
        Space.of(Problem(loss, Constraints(candidates=allowed)))
    )
    absent = module_under_test._Prior.of(Space.of(Problem(fewer)))

    np.testing.assert_array_equal(forbidden.rise[:, 1:], absent.rise)
