"""The closed form of bit allocation by hand: fitted lines, and the level at which all is used."""

from itertools import product

import numpy as np
import pytest

from mpq.problem.solution import Status
from mpq.solvers import WaterFilling
from mpq.solvers.additive.hull import Hull
from mpq.solvers.additive.presolve import Reduced
from mpq.solvers.baselines import water_filling as module_under_test
from mpq.solvers.baselines.water_filling import _filled, _fitted
from tests.conftest import MakeProblem


def test_a_fitted_line_is_that_of_an_exponential() -> None:
    """Slopes of a loss that falls by ``e`` to the minus ``k`` are on a line, by hand."""
    cost = np.tile(np.arange(5.0), (2, 1))
    decay = np.array([0.5, 1.5])
    scale = np.array([3.0, 0.25])
    loss = scale[:, None] * np.exp(-decay[:, None] * cost)
    hull = Hull.of(loss, cost, np.ones((2, 5), dtype=np.bool_))

    level, found = _fitted(hull, cost)

    assert found == pytest.approx(decay)
    # A step of 1 has the mean slope of its interval, at its middle.
    slope = np.log(scale * (1 - np.exp(-decay)))
    assert level == pytest.approx(slope + 0.5 * decay)


def test_a_fitted_line_is_by_least_squares() -> None:
    """Of three steps of unlike lengths: against numpy's."""
    cost = np.array([[0.0, 1.0, 3.0, 7.0]])
    loss = np.array([[20.0, 10.0, 4.0, 2.0]])
    hull = Hull.of(loss, cost, np.ones((1, 4), dtype=np.bool_))

    level, decay = _fitted(hull, cost)

    slope, height = np.polyfit([0.5, 2.0, 5.0], np.log([10.0, 3.0, 0.5]), 1)
    assert (level[0], decay[0]) == (pytest.approx(height), pytest.approx(-slope))


def test_a_single_slope_falls_by_four_from_end_to_end() -> None:
    """As with one bit more; a row of one cell has any line."""
    cost = np.array([[1.0, 3.0], [0.0, 9.0]])
    hull = Hull.of(np.array([[6.0, 2.0], [1.0, 9.0]]), cost, np.ones((2, 2), dtype=np.bool_))

    level, decay = _fitted(hull, cost)

    assert decay == pytest.approx([np.log(4) / 2, np.log(4)])
    # A gain of 4 for a cost of 2, at 2, which is the middle.
    assert level[0] == pytest.approx(np.log(2.0) + 2 * decay[0])


def exponential(make_problem: MakeProblem, limit: float) -> Reduced:
    """Two layers alike but for a factor of 16: two steps apart at equal slopes."""
    cost = np.tile(np.arange(6.0), (2, 1))
    loss = np.array([[16.0], [1.0]]) * 4.0**-cost
    return Reduced.of(make_problem(loss, [cost], [limit]).grouped)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(2.0, [2, 0]), (4.0, [3, 1]), (6.0, [4, 2]), (8.0, [5, 3]), (9.0, [5, 4]), (10.0, [5, 5])],
)
def test_layers_gain_the_same_for_one_unit_more(
    make_problem: MakeProblem, limit: float, expected: list[int]
) -> None:
    """Within their range: the one that has most to lose is filled first."""
    assert _filled(exponential(make_problem, limit)).tolist() == expected


def test_a_hundred_halvings_find_the_last_level(
    make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of slopes that are nearly equal; with none the least is taken, which fits."""
    reduced = exponential(make_problem, 5.0)

    found = []
    for halvings in (0, 100):
        monkeypatch.setattr(module_under_test, "_HALVINGS", halvings)
        found.append(_filled(reduced).tolist())

    assert found[0] == [0, 0]
    assert reduced.used(np.array(found[1]))[0] <= 1
    assert found[1] in ([3, 1], [4, 1], [3, 2])


def test_what_is_above_the_hull_is_not_rounded_to(make_problem: MakeProblem) -> None:
    """Its neighbours gain more for the same cost; a second layer gives nothing."""
    loss = [[9.0, 8.9, 1.0], [0.0, 0.0, 0.0]]
    cost = [[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]]
    problem = make_problem(loss, [cost], [1.2])
    wide = make_problem([[9.0, 8.9, 1.0], [5.0, 1.0, 0.0]], [[[0, 1, 2], [0, 1, 2]]], [3.0])

    assert _filled(Reduced.of(problem.grouped)).tolist()[0] in (0, 1)
    assert _filled(Reduced.of(wide.grouped))[0] in (0, 2)


def test_without_a_budget_every_layer_is_at_its_best(make_problem: MakeProblem) -> None:
    """Whatever it costs."""
    found = WaterFilling().solve(make_problem([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]]))

    assert found.columns is not None
    assert found.columns.tolist() == [1, 0]
    assert found.status is Status.OPTIMAL


@pytest.mark.parametrize("seed", range(6))
def test_on_exponentials_it_is_near_the_optimum(make_problem: MakeProblem, seed: int) -> None:
    """Within what one step of one layer is worth, and never beyond the budget."""
    rng = np.random.default_rng(seed)
    size = rng.integers(1, 4, (4, 1)).astype(float)
    cost = size * np.arange(4.0)
    loss = rng.lognormal(0, 1, (4, 1)) * 4.0 ** -np.arange(4.0)
    problem = make_problem(loss, [cost], [0.5 * cost[:, -1].sum()])
    every = [np.array(c) for c in product(range(4), repeat=4)]
    best = min(problem.loss_of(c) for c in every if problem.is_feasible(c))

    found = WaterFilling().solve(problem)

    assert found.columns is not None
    assert problem.is_feasible(found.columns)
    assert best - 1e-12 <= found.loss <= 2.0 * best
    assert found.bound is not None
    assert found.bound <= best + 1e-12
