"""The search of the core, step by step against every choice that it stands for."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from mpq.solvers.additive.core_search import (
    _open_rows,
    _Rest,
    _second,
    _States,
    _suffix_sums,
    closed,
)
from mpq.solvers.additive.multipliers import Dual, maximised
from mpq.solvers.additive.presolve import Reduced
from tests.conftest import MakeProblem


def reduced_of(make_problem: MakeProblem, seed: int, layers: int = 6) -> Reduced:
    """Losses that fall and costs that rise, one budget that binds."""
    rng = np.random.default_rng(seed)
    loss = -np.sort(-rng.random((layers, 3)), axis=1)
    cost = np.sort(rng.random((layers, 3)), axis=1)
    low, high = cost.min(axis=1).sum(), cost.max(axis=1).sum()
    return Reduced.of(make_problem(loss, [cost], [low + 0.45 * (high - low)]).grouped)


def best_of(reduced: Reduced) -> float:
    """Least rise of all choices within the budget."""
    every = product(*(np.flatnonzero(row).tolist() for row in reduced.usable))
    chosen = [np.array(columns) for columns in every]
    return min(reduced.loss(c) for c in chosen if reduced.used(c)[0] <= 1)


@pytest.mark.parametrize("seed", range(12))
def test_the_gap_is_closed(make_problem: MakeProblem, seed: int) -> None:
    """From whatever choice within the budget: the best of all, with its own loss as the bound."""
    reduced = reduced_of(make_problem, seed)
    dual, within = maximised(reduced)
    assert within is not None
    cheapest = np.where(reduced.usable, reduced.excess[0], np.inf).argmin(axis=1)

    for start in (within, cheapest):
        found, rise = closed(reduced, dual, start, 10**6)
        assert reduced.used(found)[0] <= 1
        assert reduced.loss(found) == pytest.approx(best_of(reduced))
        assert rise == pytest.approx(reduced.loss(found))


@pytest.mark.parametrize("seed", range(12))
def test_with_few_states_the_bound_still_holds(make_problem: MakeProblem, seed: int) -> None:
    """Given up after the first row, or later: between the relaxation's and the optimum."""
    reduced = reduced_of(make_problem, seed)
    dual, _ = maximised(reduced)
    cheapest = np.where(reduced.usable, reduced.excess[0], np.inf).argmin(axis=1)
    for most in (0, 1, 2, 4):
        found, rise = closed(reduced, dual, cheapest, most)
        assert reduced.used(found)[0] <= 1
        assert reduced.loss(found) <= reduced.loss(cheapest)
        assert dual.bound - 1e-12 <= rise <= best_of(reduced) + 1e-12


def test_states_are_counted_after_a_row(make_problem: MakeProblem) -> None:
    """Exactly as many as are allowed are kept; one more, and the search gives up."""
    reduced = reduced_of(make_problem, 3)
    dual, _ = maximised(reduced)
    cheapest = np.where(reduced.usable, reduced.excess[0], np.inf).argmin(axis=1)
    best = best_of(reduced)

    gaps = [best - closed(reduced, dual, cheapest, most)[1] for most in range(20)]

    assert gaps[0] > 1e-9
    assert gaps[-1] == pytest.approx(0.0, abs=1e-12)
    first = next(i for i, gap in enumerate(gaps) if gap < 1e-12)
    assert all(gap < 1e-12 for gap in gaps[first:])


@pytest.mark.parametrize("within", [[0, 1], [1, 0]])
def test_of_equal_choices_the_known_one_stays(make_problem: MakeProblem, within: list[int]) -> None:
    """Two layers that may be exchanged: nothing is better by more than rounding."""
    problem = make_problem([[1.0, 0.0]] * 2, [[[0.0, 0.7]] * 2], [1.0])
    reduced = Reduced.of(problem.grouped)
    dual, _ = maximised(reduced)

    found, rise = closed(reduced, dual, np.array(within), 100)

    assert found.tolist() == within
    assert rise == pytest.approx(1.0)


def test_what_the_second_cell_adds() -> None:
    """Of every row; rows are open up to the gap, the smallest first."""
    reduced = np.array([[0.0, 3.0, 2.0], [1.0, 0.0, np.inf], [0.0, np.inf, np.inf], [5.0, 5.0, 0]])
    dual = Dual(np.ones(1), 0.0, reduced, np.array([0, 1, 0, 2]), np.zeros(1))

    assert _second(reduced).tolist() == [2.0, 1.0, np.inf, 5.0]
    assert _second(reduced[0]) == 2.0
    assert _open_rows(dual, 5.0).tolist() == [1, 0]
    assert _open_rows(dual, 5.5).tolist() == [1, 0, 3]
    assert _open_rows(dual, 1.0).tolist() == []
    single = Dual(np.ones(1), 0.0, reduced[:, :1], np.zeros(4, dtype=np.intp), np.zeros(1))
    assert _open_rows(single, 9.0).tolist() == []


def states(*pairs: tuple[float, float]) -> _States:
    """Costs and reduced costs."""
    cost, reduced = np.array(pairs).T
    return _States(cost, reduced, np.arange(len(pairs)), 10 + np.arange(len(pairs)))


def test_one_row_more_is_every_sum_below_the_gap() -> None:
    """At the gap itself it is none; cells that are not usable are infinite."""
    found = states((1.0, 0.0), (2.0, 0.5)).extended(
        np.array([0.0, 10.0, 20.0]), np.array([0.25, 0.5, np.inf]), 1.0
    )

    assert found.cost.tolist() == [1.0, 11.0, 2.0]
    assert found.reduced.tolist() == [0.25, 0.5, 0.75]
    assert found.parent.tolist() == [0, 0, 1]
    assert found.column.tolist() == [0, 1, 0]
    none = _States.none_yet()
    assert (none.cost.tolist(), none.reduced.tolist()) == ([0.0], [0.0])


def test_states_that_cost_and_lose_more_go() -> None:
    """The loss is the reduced cost without what the multiplier charges."""
    # Losses at a multiplier of 2: 4, 1, 1, 0, 3.
    given = states((1.0, 6.0), (2.0, 5.0), (3.0, 7.0), (4.0, 8.0), (2.5, 8.0))

    found = given.undominated(2.0)

    assert found.cost.tolist() == [1.0, 2.0, 4.0]
    assert found.parent.tolist() == [0, 1, 3]
    assert found.column.tolist() == [10, 11, 13]
    assert found.reduced.tolist() == [6.0, 5.0, 8.0]


def test_sums_to_the_end() -> None:
    """From each position, and 0 beyond."""
    assert _suffix_sums(np.array([1.0, 2.0, 4.0])).tolist() == [7.0, 6.0, 4.0, 0.0]


def fractions(rest: list[tuple[Any, Any]], room: float) -> float:
    """Least loss of mixtures of cells, by a fine grid over the multiplier."""
    best = -np.inf
    for multiplier in np.r_[0.0, np.geomspace(1e-3, 1e3, 2001)]:
        least = sum(float((loss + multiplier * cost).min()) for loss, cost in rest)
        best = max(best, least - multiplier * room)
    return best


@pytest.mark.parametrize("seed", range(5))
def test_the_rest_is_the_relaxation_of_later_rows(seed: int) -> None:
    """Its reduced costs, and what stays unused at the multiplier's price."""
    rng = np.random.default_rng(seed)
    multiplier = 0.7
    loss, cost = rng.random((4, 3)), rng.random((4, 3)) - 0.5
    reduced = loss + multiplier * cost
    rest = _Rest.of(cost, reduced, multiplier)
    for position in range(4):
        later = [(loss[row], cost[row]) for row in range(position + 1, 4)]
        floor = sum(float(c.min()) for _, c in later)
        for room in (floor + 0.05, floor + 0.5, floor + 5.0):
            found = rest.after(position, np.array([room]))[0]
            assert found == pytest.approx(fractions(later, room) + multiplier * room, abs=2e-3)
        assert rest.after(position, np.array([floor - 0.01]))[0] == np.inf
