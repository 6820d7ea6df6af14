"""Where a search by measuring begins, against every assignment by plain numbers."""

from collections.abc import Callable
from itertools import pairwise, product

import numpy as np
import pytest

from mpq.problem.problem import Problem
from mpq.solvers.black_box import seeds
from mpq.solvers.black_box.population import Space

Make = Callable[..., Problem]
LOSS = [[9.0, 4.0, 1.0], [6.0, 5.0, 0.5], [8.0, 2.0, 0.0]]
COSTS = [
    [[1.0, 2.0, 4.0], [2.0, 3.0, 9.0], [1.0, 5.0, 6.0]],
    [[100.0, 300.0, 400.0], [100.0, 200.0, 300.0], [50.0, 60.0, 400.0]],
]
LIMITS = [12.0, 700.0]


def in_units(columns: tuple[int, ...]) -> tuple[float, float]:
    """Loss, and costs in shares of their limits, of one assignment."""
    loss = sum(LOSS[row][c] for row, c in enumerate(columns))
    shares = (
        sum(cost[row][c] for row, c in enumerate(columns)) / limit
        for cost, limit in zip(COSTS, LIMITS, strict=True)
    )
    return loss, sum(shares)


def test_the_hull_is_that_of_all_assignments(make_problem: Make) -> None:
    """From the least loss to the least cost, and nothing lies below a line between two of it."""
    every = {columns: in_units(columns) for columns in product(range(3), repeat=3)}

    found = [tuple(map(int, row)) for row in seeds.hull(make_problem(LOSS, COSTS, LIMITS))]

    assert min(every, key=lambda c: (every[c][0], every[c][1])) in found
    assert min(every, key=lambda c: (every[c][1], every[c][0])) in found
    points = sorted(every[columns] for columns in found)
    assert len(points) == len(set(points)) >= 4
    for (loss_a, cost_a), (loss_b, cost_b) in pairwise(points):
        slope = (loss_b - loss_a) / (cost_a - cost_b)  # what a unit of cost is worth
        assert slope > 0
        least = min(loss + slope * cost for loss, cost in every.values())
        assert loss_a + slope * cost_a == pytest.approx(least, rel=1e-12)


def test_a_limit_of_nothing_is_no_unit(make_problem: Make) -> None:
    """Costs then count as they are; and where all cost the same, the least loss is all there is."""
    problem = make_problem(LOSS, [np.zeros((3, 3))], [0.0])

    assert seeds.hull(problem).tolist() == [[2, 2, 2]]


def test_uniform_precisions_are_those_that_all_may_take(make_problem: Make) -> None:
    """One row for each."""
    space = Space.of(make_problem(LOSS, COSTS, LIMITS))

    assert seeds.uniform(space).tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]


def test_the_exact_answer_is_the_first_seed(make_problem: Make) -> None:
    """What breaks a budget is repaired or left out; none is there twice."""
    problem = make_problem(LOSS, COSTS, LIMITS)
    space, exact = Space.of(problem), np.array([1, 1, 1])

    found = seeds.solved(space, exact, np.random.default_rng(0))

    assert found[0].tolist() == [1, 1, 1]
    assert [0, 0, 0] in found.tolist()
    assert len(np.unique(found, axis=0)) == len(found)
    assert all(problem.is_feasible(row) for row in found)


def test_resources_are_counted_in_units_of_what_groups_use_at_most(make_problem: Make) -> None:
    """So that excesses over different limits can be added up; the loss has no unit of these."""
    space = Space.of(make_problem(LOSS, COSTS, LIMITS))
    chosen = np.array([[0, 1, 2], [2, 2, 2]])

    most = [4.0 + 9.0 + 6.0, 400.0 + 300.0 + 400.0]
    assert space.limits.tolist() == pytest.approx([12.0 / most[0], 700.0 / most[1]])
    expected = [
        [(1 + 3 + 6) / most[0], (100 + 200 + 400) / most[1]],
        [1.0, 1.0],
    ]
    np.testing.assert_allclose(space.used(chosen), expected, rtol=1e-12)
    assert space.within(chosen).tolist() == [True, False]


def test_a_group_falls_to_the_dearest_column_that_helps(make_problem: Make) -> None:
    """Not to the cheapest: that would give away precision."""
    cost = [[1.0, 2.0, 3.0, 10.0]]
    space = Space.of(make_problem([[3.0, 2.0, 1.0, 0.0]], [cost], [2.5]))

    repaired = space.repaired(np.array([[3], [2], [1]]), np.random.default_rng(0))

    assert repaired.tolist() == [[1], [1], [1]]
