"""Genetic operators and seeds, against brute force and by what they promise."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.quantization.precision import Precision
from mpq.solvers.additive.ilp import IntegerLinearProgram
from mpq.solvers.black_box import seeds
from mpq.solvers.black_box.population import Space, crowding, nondominated, survivors

PRECISIONS = tuple(map(Precision.parse, ("w2a8", "w4a8", "w6a8", "w8a8")))
Floats = npt.NDArray[np.float64]


def random_problem(seed: int, layers: int = 8, resources: int = 2, share: float = 0.4) -> Problem:
    """Ties, a fixed layer, a cell that cannot run, limits that bind."""
    rng = np.random.default_rng(seed)
    names = tuple(f"layer{i}" for i in range(layers))
    loss = -np.sort(-rng.lognormal(0, 1, (layers, 4)), axis=1)
    budgets = []
    for row in range(resources):
        cost = np.sort(rng.integers(1, 90, (layers, 4)), axis=1) / 7
        low, high = cost.min(axis=1).sum(), cost.max(axis=1).sum()
        cost[2, 3] = np.nan
        table = CostTable(f"r{row}", "bytes", names, PRECISIONS, cost)
        budgets.append(Budget.of(table, float(low + (share + row) / (1 + row) * (high - low))))
    return Problem(
        CostTable("loss", "nats", names, PRECISIONS, loss),
        Constraints(tuple(budgets), ties=(("layer0", "layer3"),), fixed={"layer5": PRECISIONS[1]}),
    )


@pytest.mark.parametrize("resources", [0, 1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_every_individual_is_within_the_budgets(resources: int, seed: int) -> None:
    """Random ones and children alike, by the problem's own arithmetic; and they are many."""
    problem = random_problem(seed, resources=resources)
    space, rng = Space.of(problem), np.random.default_rng(seed)

    parents = space.random(30, rng)
    children = space.children(parents, 100, rng)

    assert min(len(parents), len(children) / 3) > 20
    for columns in np.concatenate([parents, children]):
        assert problem.is_feasible(problem.grouped.expand(columns))
    assert len(np.unique(children, axis=0)) > 50


@pytest.mark.parametrize("seed", range(4))
def test_within_is_what_the_problem_calls_feasible(seed: int) -> None:
    """For random assignments, and for limits that are met to the last digit."""
    space = Space.of(random_problem(seed))
    assignments = space.drawn(300, np.random.default_rng(seed))
    at_limit = space.layers(assignments)[0]
    budgets = tuple(Budget.of(b.tables[0], b.used(at_limit)) for b in space.problem.budgets)
    tight = Space.of(Problem(space.problem.loss, Constraints(budgets, space.problem.ties)))

    for each in (space, tight):
        expected = [each.problem.is_feasible(columns) for columns in each.layers(assignments)]
        np.testing.assert_array_equal(each.within(assignments), expected)
    assert tight.within(assignments)[0]


@pytest.mark.parametrize("seed", range(4))
def test_a_repair_leaves_alone_what_holds(seed: int) -> None:
    """And takes from the rest no more than single steps down."""
    space, rng = Space.of(random_problem(seed)), np.random.default_rng(seed)
    assignments = space.drawn(200, rng)

    repaired = space.repaired(assignments, rng)

    held = space.within(assignments)
    assert 0 < held.sum() < 200
    np.testing.assert_array_equal(repaired[held], assignments[held])
    assert space.within(repaired).mean() > 0.9
    assert (space.used(repaired) <= space.used(assignments) + 1e-12).any(axis=1).all()


def dominates(one: Floats, other: Floats) -> bool:
    """By the definition."""
    return bool((one <= other).all() and (one < other).any())


POINTS: st.SearchStrategy[npt.NDArray[np.int64]] = st.lists(
    st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=25
).map(np.array)


@settings(max_examples=100)
@given(points=POINTS)
def test_a_front_is_what_nobody_dominates(points: npt.NDArray[np.int64]) -> None:
    """Point by point, with ties and copies."""
    values = points.astype(np.float64)

    found = nondominated(values)

    expected = [not any(dominates(other, value) for other in values) for value in values]
    assert found.tolist() == expected


@settings(max_examples=100)
@given(points=POINTS, count=st.integers(1, 30))
def test_survivors_come_front_by_front(points: npt.NDArray[np.int64], count: int) -> None:
    """Nobody who survives is dominated by somebody who does not."""
    values = points.astype(np.float64)

    alive = survivors(values, count)

    assert len(set(alive.tolist())) == len(alive) == min(count, len(values))
    lost = np.setdiff1d(np.arange(len(values)), alive)
    assert not any(dominates(values[row], values[other]) for row in lost for other in alive)
    assert (
        survivors(values[:, :1], count).tolist()
        == sorted(range(len(values)), key=lambda row: (values[row, 0], row))[:count]
    )


def test_crowding_of_a_line() -> None:
    """Ends are infinite; others have the distance of their neighbours, by value."""
    values = np.array([[0.0, 4.0], [1.0, 3.0], [4.0, 0.0], [2.0, 2.0]])

    np.testing.assert_allclose(crowding(values), [np.inf, 1.0, np.inf, 1.5])


@pytest.mark.parametrize("seed", range(5))
def test_the_hull_holds_what_every_multiplier_finds(seed: int) -> None:
    """By a fine sweep: no weighted sum is smaller than the best of the hull's, but by little."""
    problem = random_problem(seed, resources=1)
    grouped = problem.grouped
    groups = np.arange(len(grouped.members))

    found = seeds.hull(problem)

    losses = grouped.loss[groups, found].sum(axis=1)
    costs = grouped.costs[0][groups, found].sum(axis=1) / grouped.limits[0]
    for multiplier in np.geomspace(1e-3, 1e3, 200):
        weighed = grouped.loss + multiplier * grouped.costs[0] / grouped.limits[0]
        least = np.where(grouped.allowed, weighed, np.inf).min(axis=1).sum()
        assert least * (1 - 1e-12) <= (losses + multiplier * costs).min() <= least * 1.02


@pytest.mark.parametrize("seed", range(4))
def test_seeds_begin_with_the_exact_answer(seed: int) -> None:
    """The rest is distinct and within the budgets, the uniform precisions among them."""
    problem = random_problem(seed)
    exact = IntegerLinearProgram().solve(problem).columns
    assert exact is not None
    space = Space.of(problem)

    found = seeds.solved(space, exact, np.random.default_rng(0))

    np.testing.assert_array_equal(space.layers(found)[0], exact)
    assert len(np.unique(found, axis=0)) == len(found) > 10
    assert space.within(found).all()


def test_uniform_seeds_are_those_that_all_may_take() -> None:
    """A fixed layer leaves one precision that is uniform."""
    space = Space.of(random_problem(0))

    assert seeds.uniform(space).tolist() == [[1] * 7]


def test_those_on_the_front_survive_first() -> None:
    """Whoever is best in one thing only does not come before whoever nobody dominates."""
    values = np.array([[0.0, 9.0], [1.0, 9.5], [5.0, 5.0], [9.0, 0.0], [9.0, 9.0]])

    assert set(survivors(values, 3).tolist()) == {0, 2, 3}
    assert survivors(values, 5).tolist()[3:] == [1, 4]
    assert survivors(values[:, 1:], 2).tolist() == [3, 2]
