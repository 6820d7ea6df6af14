"""Tangents of the outer approximation: each below the loss, and when they are enough."""

import math
import time
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from mpq.problem.budget import Budget
from mpq.problem.cost_table import PairwiseCost
from mpq.problem.solution import Status
from mpq.solvers import OuterApproximation
from mpq.solvers.additive.pulp_backend import Way
from mpq.solvers.quadratic import outer_approximation as module_under_test
from mpq.solvers.quadratic.moves import Quadratic
from mpq.solvers.quadratic.outer_approximation import _Program
from tests.solvers.quadratic.cases import Case, random_case


@pytest.mark.parametrize(
    ("loss", "bound", "is_late", "status"),
    [
        (1.0, 0.5, True, Status.FEASIBLE),
        (1.0, 0.5 - 1e-9, True, Status.TIME_LIMIT),
        (1.0, 0.25, False, Status.FEASIBLE),
        (-1.0, -1.5, True, Status.FEASIBLE),
        (-1.0, -1.6, True, Status.TIME_LIMIT),
        (1.0, 1.0 - 1.9e-7, True, Status.OPTIMAL),
        (1.0, 1.0 - 2.1e-7, True, Status.FEASIBLE),
        (-1.0, -1.0 - 1.9e-7, False, Status.OPTIMAL),
        (0.0, 0.0, True, Status.OPTIMAL),
        (1.0, 1.5, True, Status.OPTIMAL),
    ],
)
def test_how_it_ended(loss: float, bound: float, is_late: bool, status: Status) -> None:
    """With a gap of one half: one that is just met is met, however late it is."""
    deadline = -math.inf if is_late else math.inf

    assert OuterApproximation(gap=0.5)._status(loss, bound, deadline) is status


def test_at_the_deadline_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A moment before, it is not."""
    monkeypatch.setattr(time, "perf_counter", lambda: 5.0)

    found = [OuterApproximation()._status(1.0, 0.5, deadline) for deadline in (5.0, 5.1)]

    assert found == [Status.TIME_LIMIT, Status.FEASIBLE]


def program(case: Case, unit: float = 2.0) -> tuple[_Program, Quadratic]:
    """Without a cut."""
    quadratic = Quadratic.of(case.problem())
    return _Program(quadratic, unit), quadratic


def one_hot(quadratic: Quadratic, columns: tuple[int, ...]) -> Any:
    """``[M]`` of a choice."""
    x = np.zeros(len(quadratic.group))
    x[quadratic.moves(np.array(columns))] = 1.0
    return x


@pytest.mark.parametrize("unit", [2.0, -2.0])
def test_squares_of_the_rows_are_the_loss(unit: float) -> None:
    """In the unit, whatever its sign, with the linear part; an assignment's own cut is met."""
    model, quadratic = program(random_case(1, num_layers=3), unit)
    assert model.unit == 2.0
    for columns in product(range(4), repeat=3):
        x = one_hot(quadratic, columns)
        squares = 0.5 * (x @ model._rows) ** 2
        loss = model._linear @ x + squares.sum()
        assert 2.0 * loss == pytest.approx(quadratic.loss(np.array(columns)))


def test_a_loss_of_nothing_is_its_own_unit() -> None:
    """There is nothing to be relative to."""
    assert program(random_case(1, num_layers=3), 0.0)[0].unit == 1.0


def test_tangents_are_below_the_squares_and_touch_where_they_were_made() -> None:
    """One for each square; the same assignment gives none twice, and no assignment none."""
    model, quadratic = program(random_case(1, num_layers=3))
    moves = quadratic.moves(np.array([1, 0, 2]))

    assert model.cut(moves)
    assert not model.cut(moves)
    assert not model.cut(moves[:0])

    ((left, right),) = model._tangents
    rank = model._rows.shape[1]
    assert left.shape == (rank, 12 + rank)
    for columns in product(range(4), repeat=3):
        x = one_hot(quadratic, columns)
        squares = 0.5 * (x @ model._rows) ** 2
        room = right - left @ np.concatenate([x, squares])
        assert (room >= -1e-9).all()
        if columns == (1, 0, 2):
            assert room == pytest.approx(0.0, abs=1e-9)


def test_a_coefficient_of_a_thousand_million_is_too_large() -> None:
    """Without the cut the bound still holds; just below it is kept."""
    model, _ = program(Case(np.ones((1, 1, 1)), np.zeros((1, 1))), 1.0)
    model._rows = np.array([[1.0]])
    every = np.ones(1, dtype=np.bool_)
    for point in (1e9 + 0.5, 1e9, 1e9 - 0.5, -1e9, 0.0):
        model._add(np.array([point]), every)

    kept = [left[0, 0] for left, _ in model._tangents if len(left)]

    assert kept == [1e9 - 0.5, 0.0]


def test_shares_of_a_budget() -> None:
    """Cells in units of what the limit leaves free; beyond it, just beyond it."""
    costs = np.array([[1.0, 2.0, 9.0], [5.0, 3.0, 4.0]])
    model, _ = program(Case(np.ones((1, 2, 3)), np.zeros((2, 3)), (costs,), (6.0,)))

    assert model._room == pytest.approx([1.0])
    # 2 is free: the first layer takes 0, a half, and too much; the other all, 0, and a half.
    assert model._costs[0] == pytest.approx([0, 0.5, 3.0, 1.0, 0, 0.5])
    assert model._index.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("seed", range(3))
def test_the_relaxation_is_a_bound_that_comes_near(seed: int) -> None:
    """At most the least loss; with its cuts the integer program proves nearly the optimum."""
    case = random_case(seed, num_layers=5)
    best = float(case.losses().min())
    quadratic = Quadratic.of(case.problem())

    cut, bare = _Program.of(quadratic, best), _Program(quadratic, best)
    moves, proved = cut.solved(Way("HiGHS"), 60.0, 0.0)

    assert bare.relaxed == -math.inf
    assert 0 < cut.relaxed <= best
    assert len(cut._tangents) < 60
    assert cut.relaxed - 1e-6 * best <= proved <= best
    assert quadratic.group[moves].tolist() == list(range(5))


def test_one_round_of_tangents_is_one_more_linear_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty of them at most; each has the cuts of those before it, so that the bound rises."""
    bounds = []
    quadratic = Quadratic.of(random_case(0, num_layers=5).problem())
    for rounds in (1, 2, 4, 60):
        monkeypatch.setattr(module_under_test, "_ROOT_ROUNDS", rounds)
        bounds.append(_Program.of(quadratic, 100.0).relaxed)

    assert bounds == sorted(bounds)
    # No square is cut at first: the linear part alone.
    floor = np.minimum.reduceat(quadratic.linear, quadratic.starts).sum()
    assert bounds[0] >= floor - 1e-4
    assert bounds[0] < bounds[-1]


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_without_a_gap_the_bound_is_the_optimum(seed: int) -> None:
    """But for what it may owe to the tolerances of the integer program: a ten-millionth."""
    case = random_case(seed, num_layers=5)
    best = float(case.losses().min())

    found = OuterApproximation(gap=0.0).solve(case.problem())

    assert found.loss == pytest.approx(best, rel=1e-9)
    assert found.bound is not None
    assert (1 - 1.1e-7) * best <= found.bound <= best


def test_pairs_are_shares_of_a_budget_too() -> None:
    """Of what is free; beyond it, more than two cells are together; losses keep their unit."""
    case = Case(np.ones((1, 2, 3)), np.zeros((2, 3)), (np.zeros((2, 3)),), (4.0,))
    problem = case.problem()
    joint = np.array([[0.0, 1.0, 9.0], [4.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    pair = PairwiseCost("layer0", "layer1", joint)
    table = replace(problem.budgets[0].tables[0], pairs=(pair,))
    problem = problem.with_budgets(Budget.of(table, 4.0))

    model = _Program(Quadratic.of(problem), 1.0)

    assert model._pairwise.values.shape == (1, 2, 3, 3)
    assert not model._pairwise.values[0, 0].any()
    assert model._pairwise.values[0, 1] == pytest.approx(
        np.array([[0.0, 0.25, 2.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    )
