"""Multipliers and hulls by hand: what a relaxation takes, adds, and proves."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from mpq._support.arrays import Array
from mpq.problem.problem import Problem
from mpq.solvers import Lagrangian
from mpq.solvers.additive import lagrangian as lagrangian_module
from mpq.solvers.additive.hull import Hull
from mpq.solvers.additive.multipliers import Dual, _cutting_planes, _highest, _program, maximised
from mpq.solvers.additive.presolve import Reduced
from tests.conftest import MakeProblem


def reduced_of(make_problem: MakeProblem, seed: int, resources: int) -> Reduced:
    """Five layers at three precisions, budgets that bind."""
    rng = np.random.default_rng(seed)
    loss = -np.sort(-rng.random((5, 3)), axis=1)
    cost = np.sort(rng.random((resources, 5, 3)), axis=2)
    low, high = cost.min(axis=2).sum(axis=1), cost.max(axis=2).sum(axis=1)
    return Reduced.of(make_problem(loss, cost, low + 0.4 * (high - low)).grouped)


def test_a_relaxation_by_hand(make_problem: MakeProblem) -> None:
    """One unit of the budget at a price of 2: what every cell adds, and what it proves."""
    problem = make_problem([[3.0, 0.0], [4.0, 0.0]], [[[0.0, 2.0], [0.0, 1.0]]], [2.0])
    reduced = Reduced.of(problem.grouped)

    dual = Dual.at(reduced, np.array([2.0]))

    # Weighted: 3 or 2, 4 or 1; less the price of all of it.
    assert dual.columns.tolist() == [1, 1]
    assert dual.reduced_cost == pytest.approx(np.array([[1.0, 0.0], [3.0, 0.0]]))
    assert dual.bound == pytest.approx(2 + 1 - 2)
    assert dual.used == pytest.approx([1.5])
    assert dual.owed(reduced) == pytest.approx(2 * reduced.edge[0])


@pytest.mark.parametrize(("count", "expected"), [(0, 2), (1, 3), (2, 4), (3, 5), (4, 5), (99, 5)])
def test_the_nearest_cells(count: int, expected: int) -> None:
    """So many beside each row's own, and never one that is not usable."""
    cost = np.array([[0.0, 2.0, np.inf], [1.0, 0.0, 3.0]])
    dual = Dual(np.ones(1), 0.0, cost, np.array([0, 1]), np.zeros(1))

    found = dual.cells_within(count)

    assert found.sum() == expected
    assert found[0, 0]
    assert found[1, 1]
    assert not found[0, 2]
    assert found[1, 0] == (count >= 1)


@pytest.mark.parametrize(("bound", "is_proof"), [(7.0, False), (7.0 + 1e-9, False), (7.1, True)])
def test_a_bound_above_every_loss_proves_that_nothing_fits(
    make_problem: MakeProblem, bound: float, is_proof: bool
) -> None:
    """By more than the rounding of all that is added up in it."""
    problem = make_problem([[3.0, 0.0], [4.0, 0.0]], [[[0.0, 2.0], [0.0, 1.0]]], [2.0])
    reduced = Reduced.of(problem.grouped)
    dual = replace(Dual.at(reduced, np.array([20.0])), bound=bound)

    assert dual.proves_infeasible(reduced) == is_proof


@pytest.mark.parametrize("resources", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_the_largest_bound_is_below_every_choice(
    make_problem: MakeProblem, seed: int, resources: int
) -> None:
    """And no multipliers nearby prove more; with one budget a choice within it is met."""
    reduced = reduced_of(make_problem, seed, resources)
    every = [np.array(c) for c in product(range(3), repeat=5)]
    fitting = [c for c in every if reduced.usable[range(5), c].all()]
    best = min(reduced.loss(c) for c in fitting if (reduced.used(c) <= 1).all())

    dual, within = maximised(reduced)

    assert dual.bound <= best + 1e-12
    for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0):
        for row in range(len(dual.multipliers)):
            other = dual.multipliers.copy()
            other[row] *= factor
            assert Dual.at(reduced, other).bound <= dual.bound + 1e-9
    if within is not None:
        assert (reduced.used(within) <= 1).all()
        assert reduced.loss(within) >= best - 1e-12
    assert resources > 1 or within is not None


@pytest.mark.parametrize("seed", range(4))
def test_planes_and_programs_come_to_the_same_bound(make_problem: MakeProblem, seed: int) -> None:
    """Two ways to the multipliers of two budgets."""
    reduced = reduced_of(make_problem, seed, 2)
    start = Dual.at(reduced, np.zeros(len(reduced.excess)))

    planes, _ = _cutting_planes(reduced, start)
    solved = _program(reduced, reduced.usable, planes.columns)

    assert solved is not None
    multipliers, _ = solved
    assert (multipliers >= 0).all()
    assert Dual.at(reduced, multipliers).bound == pytest.approx(planes.bound, abs=1e-8)


def highest(planes: list[tuple[float, Array]], most: float) -> list[float]:
    """Height, and where it is."""
    found = _highest(planes, most)
    assert found is not None
    return [found[0], *found[1].tolist()]


def test_the_highest_point_under_two_planes() -> None:
    """One rises by 1 from 1, the other falls by 1 from 3: they meet at 2 and at 1."""
    planes = [(1.0, np.array([1.0])), (3.0, np.array([-1.0]))]

    assert highest(planes, 10.0) == pytest.approx([2.0, 1.0])
    # In a smaller box the first one is what counts.
    assert highest(planes, 0.5) == pytest.approx([1.5, 0.5])
    assert highest([(-4.0, np.array([-1.0]))], 1.0) == pytest.approx([-4.0, 0.0])


def test_a_hull_by_hand() -> None:
    """From the cheapest on; cells above the line between two others are left out."""
    loss = np.array([[10.0, 8.0, 4.0, 3.0], [5.0, 6.0, 5.0, 0.0]])
    cost = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 0.0, 2.0]])
    usable = np.array([[True] * 4, [True, True, False, True]])

    hull = Hull.of(loss, cost, usable)

    assert hull.start.tolist() == [0, 0]
    # 5 for 1; 6 for 2; then 1 for 1.
    assert hull.row.tolist() == [1, 0, 0]
    assert hull.column.tolist() == [3, 2, 3]
    assert hull.cost.tolist() == [1.0, 2.0, 1.0]
    assert hull.gain.tolist() == [5.0, 6.0, 1.0]


def test_of_cells_on_one_line_the_farthest() -> None:
    """The steps between have the same rate; a cell that costs no more or gains nothing is none."""
    loss, cost = np.array([[6.0, 4.0, 2.0, 2.0, 7.0]]), np.array([[0.0, 1.0, 2.0, 3.0, 0.0]])

    hull = Hull.of(loss, cost, np.ones((1, 5), dtype=np.bool_))

    assert (hull.start.tolist(), hull.column.tolist()) == ([0], [2])
    assert (hull.cost.tolist(), hull.gain.tolist()) == ([2.0], [4.0])


def many(make_problem: MakeProblem, layers: int) -> Problem:
    """So many layers at four precisions."""
    return make_problem(np.zeros((layers, 4)), [np.ones((layers, 4))], [1.0])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (Lagrangian(), Lagrangian(1e-4, 3.0)),
        (Lagrangian(time_limit_s=1.0), Lagrangian(1e-4, 1.0)),
        (Lagrangian(time_limit_s=3.5), Lagrangian(1e-4, 3.0)),
        (Lagrangian(0.5, 2.0, "CBC"), Lagrangian(0.5, 2.0, "CBC")),
        (Lagrangian(1e-5), Lagrangian(1e-4, 3.0)),
    ],
)
def test_with_many_layers_an_explanation_takes_seconds(
    make_problem: MakeProblem, given: Lagrangian, expected: Lagrangian
) -> None:
    """No longer than was asked for, nor to less than a hundredth of a percent."""
    assert given._explaining(many(make_problem, 501)) == expected
    assert given._explaining(many(make_problem, 500)) is given


@pytest.mark.parametrize("gap", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_a_gap_is_of_what_is_lost_above_the_least(
    make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch, seed: int, gap: float
) -> None:
    """With two budgets, also where few cells are looked at first: within it, or the optimum."""
    monkeypatch.setattr(lagrangian_module, "_CORE_CELLS", 2)
    rng = np.random.default_rng(seed)
    loss, cost = -np.sort(-rng.random((5, 3)), axis=1), np.sort(rng.random((2, 5, 3)), axis=2)
    low, high = cost.min(axis=2).sum(axis=1), cost.max(axis=2).sum(axis=1)
    problem = make_problem(loss, cost, low + 0.4 * (high - low))
    every = [np.array(c) for c in product(range(3), repeat=5)]
    best = min(problem.loss_of(c) for c in every if problem.is_feasible(c))
    least = float(loss.min(axis=1).sum())

    found = Lagrangian(gap=gap).solve(problem)

    assert found.bound is not None
    assert found.bound <= best + 1e-9
    assert found.loss - found.bound <= gap * (found.loss - least) + 1e-9
    if not gap:
        assert found.status.name == "OPTIMAL"
        assert found.loss == pytest.approx(best)
