"""What a surrogate believes and breeds, by hand: its variances, its line, its choice of a batch."""

from itertools import product

import numpy as np
import numpy.typing as npt
import pytest

from mpq.problem.problem import Problem
from mpq.solvers.black_box import surrogate as module_under_test
from mpq.solvers.black_box.population import Space
from mpq.solvers.black_box.study import TrialLog, Trials
from mpq.solvers.black_box.surrogate import _Belief, _Candidates, _diverse, _line, _Prior
from tests.conftest import MakeProblem

Assignments = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float64]
CELLS, PAIRS, LOCAL, NOISES = (0.1, 0.3, 1.0), (0.0, 0.15, 0.5, 1.5), (0.02, 0.1), (0.003, 0.03)


def posed(make_problem: MakeProblem, layers: int = 5) -> Problem:
    """Layers at four precisions, of losses of several sizes; one limit that binds a little."""
    rng = np.random.default_rng(layers)
    loss = -np.sort(-rng.lognormal(0, 1, (layers, 4)), axis=1)
    cost = np.tile([1.0, 2.0, 3.0, 4.0], (layers, 1))
    return make_problem(loss, [cost], [3.5 * layers])


def covariance(prior: _Prior, rows: Assignments, shape: tuple[float, ...]) -> Floats:
    """``[P, P]`` of relative corrections, term by term from the formula of ``Surrogate``."""
    cell, pair, local, _ = shape
    rises = prior.rise[range(len(prior.rise)), rows]
    share = rises / rises.sum(axis=1, keepdims=True)
    both = share[:, None] * share[None]  # [P, P, G]
    agree = rows[:, None] == rows[None]
    one, other = np.triu_indices(len(prior.rise), 1)
    return np.asarray(
        cell**2 * (1 + both.sum(axis=2) + (both * agree).sum(axis=2))
        + pair**2 * np.sqrt(both[:, :, one] * both[:, :, other]).sum(axis=2)
        + local**2 * np.exp(-10.0 * (~agree).mean(axis=2))
    )


def measured(
    make_problem: MakeProblem, seed: int, count: int = 12
) -> tuple[_Prior, Assignments, Floats]:
    """Some choices, and losses that are not those predicted."""
    rng = np.random.default_rng(seed)
    prior = _Prior.of(Space.of(posed(make_problem)))
    rows = np.unique(rng.integers(0, 4, (count, 5)), axis=0)
    return prior, rows, 2 * prior.loss(rows) * rng.lognormal(0, 0.2, len(rows)) + 1


@pytest.mark.parametrize("seed", range(3))
def test_of_all_variances_those_under_which_the_losses_are_likeliest(
    make_problem: MakeProblem, seed: int
) -> None:
    """By the density of a normal distribution, of the 48 that are tried."""
    prior, rows, losses = measured(make_problem, seed)
    size = prior.rise[range(5), rows].sum(axis=1)
    offset, scale = _line(prior.loss(rows), losses, size)
    relative = (losses - offset - scale * prior.loss(rows)) / (scale * size)

    belief = _Belief.of(prior, rows, losses)

    def likelihood(shape: tuple[float, ...]) -> float:
        noisy = covariance(prior, rows, shape) + shape[3] ** 2 * np.eye(len(rows))
        _, volume = np.linalg.slogdet(noisy)
        return float(-0.5 * relative @ np.linalg.solve(noisy, relative) - 0.5 * volume)

    shapes = list(product(CELLS, PAIRS, LOCAL, NOISES))
    assert belief.shape == max(shapes, key=likelihood)
    assert (belief.offset, belief.scale) == (offset, scale)
    assert shapes == module_under_test._SHAPES


@pytest.mark.parametrize("shape", [(0.3, 0.5, 0.1, 0.03), (0.1, 0.0, 0.02, 0.003)])
def test_neighbours_have_something_in_common(
    make_problem: MakeProblem, shape: tuple[float, float, float, float]
) -> None:
    """Mean, deviation and covariance are those of the process, conditioned on what was measured."""
    prior, rows, losses = measured(make_problem, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module_under_test, "_SHAPES", [shape])
        belief = _Belief.of(prior, rows[:8], losses[:8])
    both = covariance(prior, rows, shape)
    known, asked = slice(0, 8), slice(8, None)
    unit = belief.scale * prior.rise[range(5), rows].sum(axis=1)
    predicted = belief.offset + belief.scale * prior.loss(rows)
    noisy = both[known, known] + shape[3] ** 2 * np.eye(8)
    weights = np.linalg.solve(noisy, (losses[:8] - predicted[:8]) / unit[:8])
    left = both[asked, asked] - both[asked, known] @ np.linalg.solve(noisy, both[known, asked])

    mean, deviation = belief.of_assignments(rows[8:])
    again, spread = belief.joint(rows[8:])

    assert mean == pytest.approx(predicted[8:] + unit[8:] * (both[asked, known] @ weights))
    assert again == pytest.approx(mean)
    assert spread == pytest.approx(left * np.outer(unit[8:], unit[8:]))
    assert deviation == pytest.approx(np.sqrt(np.diag(spread)))


def test_slopes_are_differences_of_what_is_believed(make_problem: MakeProblem) -> None:
    """Of one group changed at a time: 0 where it stays."""
    prior, rows, losses = measured(make_problem, 2)
    belief = _Belief.of(prior, rows, losses)
    start = rows[3:4]

    slopes = belief.slopes(start)

    for group, column in product(range(5), range(4)):
        other = start.copy()
        other[0, group] = column
        mean, _ = belief.of_assignments(np.concatenate([start, other]))
        assert slopes[group, column] == pytest.approx(mean[1] - mean[0], abs=1e-12)
        assert column != start[0, group] or abs(slopes[group, column]) < 1e-12


@pytest.mark.parametrize("unit", [1.0, 0.1, 1e-6, 1e6])
def test_a_line_is_by_relative_errors(unit: float) -> None:
    """What is small counts as much as what is large; in whatever unit losses are measured."""
    guess, size = np.array([1.0, 2.0, 4.0, 9.0]), np.array([1.0, 0.5, 3.0, 8.0])
    losses = np.array([3.0, 5.5, 9.0, 17.0]) * unit

    offset, scale = _line(guess, losses, size)

    slope, height = np.polyfit(guess, losses, 1, w=1 / size)
    assert offset == pytest.approx(height)
    assert scale == pytest.approx(slope)


@pytest.mark.parametrize("losses", [[4.0, 3.0, 1.0], [1.2, 1.1, 1.0], [0.0, 0.0, 0.0]])
def test_losses_that_do_not_rise_with_the_prediction_give_a_level(losses: list[float]) -> None:
    """The mean of the differences, by relative errors; the prediction keeps its own scale."""
    guess, size = np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 0.5])

    offset, scale = _line(guess, np.array(losses), size)

    weights = 1 / size**2
    assert scale == 1.0
    assert offset == pytest.approx((weights * (np.array(losses) - guess)).sum() / weights.sum())


def test_a_cell_that_loses_nothing_may_be_wrong_by_a_hundredth_of_the_mean(
    make_problem: MakeProblem,
) -> None:
    """Of all allowed cells; where none loses anything, by 1."""
    plain = _Prior.of(Space.of(make_problem([[4.0, 1.0, 0.0], [2.0, 0.0, 0.0]])))
    level = _Prior.of(Space.of(make_problem([[3.0, 3.0], [5.0, 5.0]])))

    assert plain.rise == pytest.approx(np.array([[4.0, 1.0, 7 / 600], [2.0, 7 / 600, 7 / 600]]))
    assert level.rise.tolist() == [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize("count", [1, 4, 40])
def test_a_batch_is_taken_as_if_what_came_before_were_measured(
    make_problem: MakeProblem, count: int
) -> None:
    """From the least mean to what may be hoped for within two deviations, by conditioning."""
    prior, rows, losses = measured(make_problem, 3, 40)
    belief = _Belief.of(prior, rows[:6], losses[:6])
    pool = rows[6:]
    mean, spread = belief.joint(pool)
    noise = (belief.shape[3] * belief.scale * prior.rise[range(5), pool].sum(axis=1)) ** 2

    found = _diverse(belief, pool, count)

    taken: list[int] = []
    for caution in np.linspace(0, 2, count)[: len(pool)]:
        known = spread[np.ix_(taken, taken)] + np.diag(noise[taken])
        left = spread - spread[:, taken] @ np.linalg.solve(known, spread[taken])
        hoped = mean - caution * np.sqrt(np.maximum(np.diag(left), 0.0))
        hoped[taken] = np.inf
        taken.append(int(hoped.argmin()))
    assert found.tolist() == pool[taken].tolist()
    assert len(found) == min(count, len(pool))


def test_of_many_candidates_300_are_looked_at_together(make_problem: MakeProblem) -> None:
    """Those that are best by their mean, or by what may be hoped of them."""
    prior, rows, losses = measured(make_problem, 4)
    belief = _Belief.of(prior, rows, losses)
    pool = np.array(list(product(range(4), repeat=5)))
    mean, deviation = belief.of_assignments(pool)
    ranks = [np.argsort(np.argsort(key)) for key in (mean, mean - 2 * deviation)]
    looked: list[Assignments] = []
    joint = _Belief.joint

    def noting(self: _Belief, assignments: Assignments) -> tuple[Floats, Floats]:
        looked.append(assignments)
        return joint(self, assignments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Belief, "joint", noting)
        _diverse(belief, pool, 5)

    assert len(looked[0]) == 300
    best = set(map(tuple, pool[np.minimum(*ranks) < 150].tolist()))
    assert best <= set(map(tuple, looked[0].tolist()))
    assert len(_diverse(belief, pool[:0], 5)) == 0


def trials_of(space: Space, rows: Assignments, losses: Floats) -> Trials:
    """As a search has them."""
    log = TrialLog(space.num_groups, 1)
    log.append(rows, losses[:, None])
    return log.all()


def test_candidates_are_bred_for_twelve_generations(make_problem: MakeProblem) -> None:
    """Of 200 children each, by 50 parents: in turn the best by their mean and by hope."""
    problem = posed(make_problem, 6)
    space = Space.of(problem)
    candidates = _Candidates.of(space)
    rng = np.random.default_rng(0)
    rows = np.unique(rng.integers(0, 3, (80, 6)), axis=0)
    losses = candidates.prior.loss(rows) * rng.lognormal(0, 0.2, len(rows))
    bred: list[tuple[Assignments, int]] = []
    scored: list[tuple[Assignments, Floats, Floats]] = []
    children, of_assignments = Space.children, _Belief.of_assignments

    def breeding(
        self: Space, parents: Assignments, count: int, rng: np.random.Generator
    ) -> Assignments:
        bred.append((parents, count))
        return children(self, parents, count, rng)

    def scoring(self: _Belief, assignments: Assignments) -> tuple[Floats, Floats]:
        mean, deviation = of_assignments(self, assignments)
        scored.append((assignments, mean, deviation))
        return mean, deviation

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Space, "children", breeding)
        patch.setattr(_Belief, "of_assignments", scoring)
        found = candidates(trials_of(space, rows, losses), rng, 10)

    assert [count for _, count in bred] == [200] * 12
    # At first the exact optimum of what is believed, then the fifty best that were measured.
    assert bred[0][0][1:].tolist() == rows[np.argsort(losses, kind="stable")[:50]].tolist()
    rounds = [each for each in scored if len(each[0]) > 60][:12]
    for generation, (those, mean, deviation) in enumerate(rounds[:11]):
        order = np.argsort(mean - 2 * (generation % 2) * deviation, kind="stable")[:50]
        assert bred[generation + 1][0].tolist() == those[order].tolist()
        assert len(np.unique(those, axis=0)) == len(those)
    known = set(map(tuple, rows.tolist()))
    assert len(found) == 10
    assert not known & set(map(tuple, found.tolist()))
    assert space.within(found).all()


@pytest.mark.parametrize(("finite", "believes"), [(0, False), (1, False), (2, True), (3, True)])
def test_two_finite_losses_are_enough_to_believe(
    make_problem: MakeProblem, finite: int, believes: bool
) -> None:
    """With fewer there is no line; infinite ones are left out."""
    space = Space.of(posed(make_problem))
    candidates = _Candidates.of(space)
    rows = np.array([[0, 1, 2, 3, 0], [1, 1, 1, 1, 1], [2, 0, 2, 0, 2], [0, 0, 0, 0, 1]])
    losses = np.where(np.arange(4) < finite, np.arange(4.0) + 1, np.inf)
    asked: list[int] = []
    of = _Belief.of

    def noting(prior: _Prior, assignments: Assignments, losses: Floats) -> _Belief:
        asked.append(len(losses))
        return of(prior, assignments, losses)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module_under_test, "_GENERATIONS", 1)
        patch.setattr(_Belief, "of", noting)
        found = candidates(trials_of(space, rows, losses), np.random.default_rng(0), 4)

    assert asked == ([finite] if believes else [])
    assert len(found) == (4 if believes else len(space.random(8, np.random.default_rng(0))))
