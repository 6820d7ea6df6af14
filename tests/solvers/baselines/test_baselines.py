"""The published baselines: honest answers, and what they are known to miss."""

from collections.abc import Callable
from itertools import product
from math import fsum

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mpq
from mpq.errors import InputError, UnknownNameError
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.interactions import Interactions
from mpq.problem.problem import Problem
from mpq.problem.solution import Status
from mpq.quantization.precision import Precision
from mpq.solvers import (
    Bisection,
    DynamicProgramming,
    Greedy,
    Lagrangian,
    Solver,
    Threshold,
    WaterFilling,
)

Make = Callable[..., Problem]
BASELINES: list[Solver] = [Greedy(), Greedy("down"), WaterFilling(), Bisection(), Threshold()]
ONE_BUDGET: list[Solver] = [WaterFilling(), DynamicProgramming(), DynamicProgramming(grid=23)]


def name_of(solver: Solver) -> str:
    """How pytest calls a solver."""
    return "-".join([solver.name, *map(str, vars(solver).values())])


ALL = [*BASELINES, *ONE_BUDGET[1:]]


@pytest.mark.parametrize("solver", ALL, ids=name_of)
@given(data=st.data())
def test_answers_are_feasible_and_bounds_hold(
    solver: Solver, make_problem: Make, data: st.DataObject
) -> None:
    """Against every assignment: feasible, the bound below the best, optimal where it says so."""
    layers, precisions = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    most = 1 if solver in ONE_BUDGET else 3
    resources = data.draw(st.integers(0, most))
    cell = data.draw(st.sampled_from([st.integers(0, 3), st.integers(-50, 50), st.floats(0, 1e6)]))
    table = st.lists(
        st.lists(cell, min_size=precisions, max_size=precisions), min_size=layers, max_size=layers
    )
    loss = np.array(data.draw(table), dtype=np.float64)
    costs = [np.abs(np.array(data.draw(table), dtype=np.float64)) for _ in range(resources)]
    assignments = list(product(range(precisions), repeat=layers))
    limits = [
        fsum(cost[range(layers), data.draw(st.sampled_from(assignments))])
        * data.draw(st.sampled_from([1.0, 1.0, 0.9, 1.1]))
        for cost in costs
    ]
    problem = make_problem(loss, costs, limits)
    feasible = [c for c in map(np.array, assignments) if problem.is_feasible(c)]

    found = solver.solve(problem)

    if not feasible:
        assert found.status is Status.INFEASIBLE
        assert len(found.shortfalls) == resources
        return
    best, scale = min(map(problem.loss_of, feasible)), np.abs(loss).sum()
    if found.columns is None:
        assert (found.status, resources > 1) == (Status.UNKNOWN, True)
        return
    assert problem.is_feasible(found.columns)
    assert found.loss == problem.loss_of(found.columns)
    assert found.bound is not None
    assert found.bound <= best + 1e-9 * scale
    if found.status is Status.OPTIMAL:
        assert found.loss == pytest.approx(best, rel=1e-9, abs=1e-9 * scale)
    else:
        assert found.status is Status.FEASIBLE


@pytest.mark.parametrize("solver", ALL, ids=name_of)
def test_units_change_no_assignment(solver: Solver, make_problem: Make) -> None:
    """Nats or millionths, seconds or nanoseconds."""
    rng = np.random.default_rng(0)
    loss = -np.sort(-rng.random((8, 4)), axis=1)
    cost = np.sort(rng.random((1, 8, 4)) + 0.1, axis=2)

    once = solver.solve(make_problem(loss, cost, [4.0]))
    again = solver.solve(make_problem(loss * 1e-6, cost * 1e9, [4.0e9]))

    np.testing.assert_array_equal(once.columns, again.columns)


@pytest.mark.parametrize("solver", ALL, ids=name_of)
def test_interactions_are_refused(solver: Solver, make_problem: Make) -> None:
    """The message says what to use."""
    problem = make_problem(np.ones((2, 2)), interactions=Interactions(np.ones((3, 2, 2))))

    with pytest.raises(InputError, match="has interactions: use the solver"):
        solver.solve(problem)


@pytest.mark.parametrize("solver", ONE_BUDGET, ids=name_of)
def test_two_budgets_that_can_bind_are_refused(solver: Solver, make_problem: Make) -> None:
    """One that every assignment meets does not count."""
    cost = np.array([[1.0, 2.0], [1.0, 2.0]])
    loss = [[1.0, 0.0], [3.0, 0.0]]

    loose = solver.solve(make_problem(loss, [cost, cost], [3.0, 100.0]))

    assert loose.columns is not None
    with pytest.raises(
        InputError, match=r"takes one budget, and 2 can bind here: use .*lagrangian"
    ):
        solver.solve(make_problem(loss, [cost, cost], [3.0, 3.5]))


@pytest.mark.parametrize("solver", BASELINES[:3], ids=name_of)
@pytest.mark.parametrize("seed", range(3))
def test_with_many_layers_they_come_close(solver: Solver, make_problem: Make, seed: int) -> None:
    """Losses that fall by four with every bit, as the closed form takes for granted."""
    rng = np.random.default_rng(seed)
    size = rng.lognormal(0, 1, (300, 1))
    loss = rng.lognormal(0, 1.5, (300, 1)) * 4.0 ** -np.arange(2, 9)
    cost = size * np.arange(2, 9)
    problem = make_problem(loss, [cost], [4.6 * size.sum()])

    found, best = solver.solve(problem), Lagrangian().solve(problem)

    assert best.loss <= found.loss
    assert found.loss <= best.loss * (1.2 if isinstance(solver, WaterFilling) else 1.05)


def test_bisection_lowers_the_least_sensitive_layers(make_problem: Make) -> None:
    """In that order whatever they cost, so that it misses what saves most."""
    loss = [[3.0, 0.0], [2.0, 0.0], [1.0, 0.0]]
    cost = [[1.0, 10.0], [1.0, 3.0], [1.0, 2.0]]

    found = Bisection().solve(make_problem(loss, [cost], [12.0]))

    assert found.columns is not None
    assert found.columns.tolist() == [1, 0, 0]
    assert (found.loss, found.status) == (3.0, Status.FEASIBLE)


@pytest.mark.parametrize("limit", [12.0, 14.0, 17.0, 22.0])
def test_threshold_has_the_least_largest_loss(make_problem: Make, limit: float) -> None:
    """Of all assignments within one budget; and with a given threshold each layer's cheapest."""
    rng = np.random.default_rng(7)
    loss = -np.sort(-rng.random((4, 4)), axis=1)
    loss -= loss[:, -1:]
    cost = np.sort(rng.integers(1, 9, (4, 4)), axis=1).astype(float)
    problem = make_problem(loss, [cost], [limit])
    rows = range(4)
    within = [c for c in product(rows, repeat=4) if cost[rows, c].sum() <= limit]

    found = Threshold().solve(problem)

    assert found.columns is not None
    largest = loss[rows, found.columns].max()
    assert largest == min(loss[rows, c].max() for c in within)
    given = Threshold(max_loss=0.3).solve(make_problem(loss, [cost], [100.0]))
    assert given.columns is not None
    for row, column in zip(rows, given.columns.tolist(), strict=True):
        assert loss[row, column] <= 0.3
        assert cost[row, column] == cost[row, loss[row] <= 0.3].min()
    with pytest.raises(InputError, match="max_loss >= 0"):
        Threshold(max_loss=-1.0)


def test_a_threshold_beyond_the_budget_is_named(make_problem: Make) -> None:
    """Why there is no answer, and what helps: also in the error of a search."""
    tight = make_problem([[3, 0], [2, 0]], [[[1, 4], [1, 4]]], [6])

    found = mpq.SOLVERS.build("threshold:max_loss=0").solve(tight)

    assert found.status is Status.UNKNOWN
    assert "max_loss=0 is beyond a budget: give a larger one" in found.failure


def test_a_threshold_that_no_layer_can_keep_is_named(make_problem: Make) -> None:
    """A layer whose better precisions alone break the budget takes none that loses more."""
    tight = make_problem([[3, 1, 0], [2, 1, 0]], [[[1, 4, 9], [1, 4, 9]]], [8])

    found = [Threshold(max_loss=loss).solve(tight) for loss in (0.5, 1.0)]

    assert [each.status is Status.UNKNOWN for each in found] == [True, False]
    assert "max_loss=0.5 is beyond a budget" in found[0].failure


def test_greedy_from_both_sides(make_problem: Make) -> None:
    """Up leaves what does not fit and goes on; down stops as soon as the budget holds."""
    loss = [[4.0, 0.0], [3.0, 0.0], [1.0, 0.0]]
    cost = [[0.0, 4.0], [0.0, 4.0], [0.0, 2.0]]
    problem = make_problem(loss, [cost], [6.0])

    up, down = Greedy("up").solve(problem).columns, Greedy("down").solve(problem).columns

    assert up is not None
    assert down is not None
    assert up.tolist() == [1, 0, 1]
    assert down.tolist() == [1, 0, 0]


def test_greedy_knows_two_directions() -> None:
    """The message lists them."""
    with pytest.raises(UnknownNameError, match=r"no direction of greedy 'left' .*down, up"):
        Greedy("left")  # type: ignore[arg-type]


@pytest.mark.parametrize("unit", [1.0, 8.0, 1e-3])
def test_whole_costs_are_exact(make_problem: Make, unit: float) -> None:
    """Bytes, multiples of eight, or thousandths: any common unit is found."""
    rng = np.random.default_rng(1)
    cost = rng.integers(1, 40, (1, 12, 4)) * unit
    cost[0, 0, 0] = unit
    problem = make_problem(rng.random((12, 4)), cost, [150 * unit])

    found = DynamicProgramming().solve(problem)

    assert found.status is Status.OPTIMAL
    assert found.loss == pytest.approx(Lagrangian().solve(problem).loss, rel=1e-12)


@pytest.mark.parametrize("grid", [50, 500, 5000])
def test_rounded_costs_have_a_bound(make_problem: Make, grid: int) -> None:
    """The finer the grid, the closer answer and bound; the exact optimum is between them."""
    rng = np.random.default_rng(2)
    cost, loss = rng.random((1, 30, 4)), -np.sort(-rng.random((30, 4)), axis=1)
    problem = make_problem(loss, cost, [12.0])
    best = Lagrangian().solve(problem).loss

    found = DynamicProgramming(grid=grid).solve(problem)

    assert found.bound is not None
    assert found.bound <= best <= found.loss
    assert found.loss - found.bound <= 60 * 30 / grid


def test_a_table_that_would_not_fit_is_refused(make_problem: Make) -> None:
    """Before the memory is taken."""
    rng = np.random.default_rng(0)
    problem = make_problem(rng.random((2000, 2)), [rng.random((2000, 2))], [1000.0])

    with pytest.raises(InputError, match="2000 layers times 1000001 amounts are more than"):
        DynamicProgramming(grid=1_000_000).solve(problem)


@pytest.mark.parametrize("num_precisions", [128, 129, 257])
def test_more_precisions_than_a_byte_has_signs(num_precisions: int) -> None:
    """Columns are kept in as few bytes as hold them all; the best one here is the last."""
    precisions = tuple(Precision.parse(f"w4g{size}") for size in range(1, num_precisions + 1))
    rising = np.tile(np.arange(num_precisions, dtype=np.float64), (2, 1))
    loss = CostTable("loss", "nats", ("l0", "l1"), precisions, -rising)
    size = CostTable("size", "bytes", ("l0", "l1"), precisions, rising * [[1], [2]])
    problem = Problem(loss, Constraints((Budget.of(size, 1.5 * num_precisions),)))

    found = DynamicProgramming().solve(problem)

    best = min(
        -a - b
        for a, b in product(range(num_precisions), repeat=2)
        if a + 2 * b <= 1.5 * num_precisions
    )
    assert (found.status, found.loss) == (Status.OPTIMAL, best)
    assert found.columns is not None
    assert found.columns[0] == num_precisions - 1


def test_a_grid_has_units() -> None:
    """The message has the number."""
    with pytest.raises(InputError, match="needs a grid of at least 1; got 0"):
        DynamicProgramming(grid=0)


@pytest.mark.parametrize("unit", [1 - 5e-7, 1 + 5e-7, 1e-12, 3e-9])
def test_costs_that_are_nearly_whole_are_no_others(make_problem: Make, unit: float) -> None:
    """Two of three layers fit exactly; rounding the unit to 1 or to 0 would say otherwise."""
    cost = [[0.0, unit]] * 3

    found = DynamicProgramming().solve(make_problem([[1.0, 0.0]] * 3, [cost], [2 * unit]))

    assert (found.loss, found.bound, found.status) == (1.0, 1.0, Status.OPTIMAL)


def test_whole_and_tiny_costs_are_not_called_exact(make_problem: Make) -> None:
    """One byte beside a millionth of one: nothing is free."""
    cost = [[0.0, 1.0], [0.0, 5e-7]]
    problem = make_problem([[1.0, 0.0], [1.0, 0.0]], [cost], [1.0])

    found = DynamicProgramming(grid=100).solve(problem)

    assert found.columns is not None
    assert problem.is_feasible(found.columns)
    assert found.bound is not None
    assert found.bound <= 1.0 <= found.loss


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (12.0, [2, 2, 2]), (11.0, [2, 1, 2]), (8.0, [2, 1, 1]), (6.0, [1, 1, 1]),
        (5.0, [1, 0, 1]), (4.0, [1, 0, 0]), (3.0, [0, 0, 0]),
    ],
)  # fmt: skip
def test_bisection_goes_down_one_level_after_the_other(
    make_problem: Make, limit: float, expected: list[int]
) -> None:
    """As many layers as it takes from one precision to the next, and none two steps at once."""
    loss = [[9.0, 2.0, 0.0], [1.0, 0.5, 0.0], [4.0, 1.0, 0.0]]
    cost = [[1.0, 2.0, 4.0]] * 3

    found = Bisection().solve(make_problem(loss, [cost], [limit]))

    # The second layer is the least sensitive, then the third.
    assert found.columns is not None
    assert found.columns.tolist() == expected


def test_a_layer_of_fewer_precisions_stays_at_its_cheapest(make_problem: Make) -> None:
    """While the others are lowered further."""
    loss = [[9.0, 5.0, 2.0, 0.0], [1.0, 0.5, 0.3, 0.0]]
    cost = [[1.0, 2.0, 4.0, 8.0]] * 2
    candidates = {"l1": [mpq.Precision.parse(name) for name in ("w2a8", "w3a8")]}
    problem = make_problem(loss, [cost], [3.0], candidates=candidates)

    found = Bisection().solve(problem)

    assert found.columns is not None
    assert found.columns.tolist() == [1, 0]
