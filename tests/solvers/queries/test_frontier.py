"""The frontier has every point that pays, and no other."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mpq.cli.console import print_frontier
from mpq.errors import InfeasibleError, InputError, SolverError
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable, PairwiseCost
from mpq.problem.interactions import Interactions
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.quantization.precision import Precision
from mpq.report.frontier import Frontier, FrontierPoint
from mpq.solvers import (
    DynamicProgramming,
    Evolutionary,
    IntegerLinearProgram,
    Lagrangian,
    LocalSearch,
    Solver,
)
from mpq.solvers.queries.frontier import pareto_front, solve_frontier, solve_hull

PRECISIONS = tuple(map(Precision.parse, ("w2a8", "w4a8", "w8a8")))
NUMBERS = st.one_of(st.integers(0, 4).map(float), st.floats(-1e9, 1e9))
ILP = IntegerLinearProgram()
LOSS = np.array([[9, 4, 1], [8.5, 3.2, 0.1], [7.7, 5.3, 0.2], [6.1, 2.9, 0.4]])
SIZE = np.array([[1, 2, 4], [3, 6, 12], [2, 4, 8], [5, 10, 20]], dtype=np.float64)
TIME = np.array([[1, 2, 3], [4, 1, 2], [1, 3, 2], [2, 2, 5]], dtype=np.float64)


def table(name: str, unit: str, values: npt.ArrayLike) -> CostTable:
    """A table of layers ``l0``, ``l1``, ... at three precisions."""
    cells = np.array(values, dtype=np.float64)
    return CostTable(name, unit, tuple(f"l{i}" for i in range(len(cells))), PRECISIONS, cells)


def front_of(
    loss: npt.ArrayLike, cost: npt.ArrayLike, other: npt.ArrayLike, limit: float
) -> list[tuple[float, float]]:
    """Every Pareto-optimal (cost, loss) within the other limit: each against all, by hand."""
    rows = [np.array(t, dtype=np.float64) for t in (cost, loss, other)]
    sums = [
        tuple(float(sum(t[row, c] for row, c in enumerate(columns))) for t in rows)
        for columns in product(range(3), repeat=len(rows[0]))
    ]
    points = [(x, y) for x, y, z in sums if z <= limit and not np.isnan(x)]
    beaten = {
        (x, y) for x, y in points for u, v in points if (u <= x and v < y) or (u < x and v <= y)
    }
    return sorted(set(points) - beaten)


@given(points=st.lists(st.tuples(NUMBERS, NUMBERS), max_size=30))
def test_the_front_is_every_point_that_none_beats(points: list[tuple[float, float]]) -> None:
    """Each point against every other, by the definition; equal points count once."""
    beaten = {
        (x, y) for x, y in points for u, v in points if (u <= x and v < y) or (u < x and v <= y)
    }

    front = [points[i] for i in pareto_front(*([p[axis] for p in points] for axis in (0, 1)))]

    assert front == sorted(set(points) - beaten)


def test_many_limits_find_the_whole_frontier() -> None:
    """One limit for every integer cost: the frontier is that of exhaustive search."""
    problem = Problem(
        table("sketch", "nats", LOSS),
        Constraints((Budget.of(table("time", "seconds", TIME), 9.0),)),
    )
    size = table("size", "bytes", SIZE)
    expected = front_of(LOSS, SIZE, TIME, 9.0)
    num_points = int(expected[-1][0] - expected[0][0]) + 1

    assignments, statuses = solve_frontier(problem, size, ILP, num_points)

    found = [
        (Budget.of(size, 1.0).used(columns), problem.loss_of(columns)) for columns in assignments
    ]
    assert [cost for cost, _ in found] == [cost for cost, _ in expected]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected])
    assert statuses == [Status.OPTIMAL] * len(expected)


@pytest.mark.parametrize("num_points", [2, 3, 7])
@pytest.mark.parametrize("seed", range(3))
def test_every_point_is_pareto_optimal(seed: int, num_points: int) -> None:
    """Few limits find fewer points, all of them on the frontier, both ends included."""
    rng = np.random.default_rng(seed)
    loss, cost, other = rng.random((3, 4, 3))
    problem = Problem(
        table("sketch", "nats", loss), Constraints((Budget.of(table("o", "bytes", other), 2.0),))
    )
    cost_table = table("latency", "seconds", cost)
    expected = dict(front_of(loss, cost, other, 2.0))

    assignments, _ = solve_frontier(problem, cost_table, ILP, num_points)

    costs = [Budget.of(cost_table, 1.0).used(columns) for columns in assignments]
    losses = [problem.loss_of(columns) for columns in assignments]
    near = [min(expected, key=lambda c: abs(c - used)) for used in costs]
    assert costs == pytest.approx(near)
    assert losses == pytest.approx([expected[used] for used in near])
    assert (near[0], near[-1]) == (min(expected), max(expected))
    assert costs == sorted(set(costs))
    assert losses == sorted(set(losses), reverse=True)
    assert all(problem.is_feasible(columns) for columns in assignments)


@pytest.mark.parametrize("num_points", [2, 3, 20])
def test_precisions_that_lose_the_same_are_taken_where_they_are_cheap(num_points: int) -> None:
    """With 4 bits as good as 8, no point of the frontier pays for 8 bits."""
    loss = [[3, 0, 0], [2, 0, 0], [1, 0, 0]]
    cost = table("size", "bytes", [[1, 2, 4], [2, 3, 4], [1, 5, 9]])
    problem = Problem(table("sketch", "nats", loss))
    expected = front_of(loss, cost.values, np.zeros((3, 3)), 1.0)

    assignments, _ = solve_frontier(problem, cost, ILP, num_points)

    found = [
        (Budget.of(cost, 1.0).used(columns), problem.loss_of(columns)) for columns in assignments
    ]
    assert (found[0], found[-1]) == (expected[0], expected[-1])
    assert set(found) <= set(expected)


def test_a_budget_on_the_same_resource_is_replaced() -> None:
    """The frontier shows what another limit would give."""
    size = table("size", "bytes", SIZE)
    loss = table("sketch", "nats", LOSS)

    narrow = solve_frontier(Problem(loss, Constraints((Budget.of(size, 11.0),))), size, ILP, 6)
    free = solve_frontier(Problem(loss), size, ILP, 6)

    assert [c.tolist() for c in narrow[0]] == [c.tolist() for c in free[0]]


def test_precisions_that_the_device_lacks_are_left_out() -> None:
    """An empty cell of the resource is never chosen, however good or cheap it looks."""
    cost = SIZE.copy()
    cost[0, 2] = cost[1, 0] = np.nan
    problem = Problem(table("sketch", "nats", LOSS))

    assignments, _ = solve_frontier(problem, table("size", "bytes", cost), ILP, 60)

    found = [sum(LOSS[row, c] for row, c in enumerate(columns)) for columns in assignments]
    expected = front_of(LOSS, cost, np.zeros((4, 3)), 1.0)
    assert found == pytest.approx([loss for _, loss in expected])


def test_ties_and_fixed_layers_hold_on_the_frontier() -> None:
    """Every point keeps the rules of the problem."""
    loss = table("sketch", "nats", LOSS)
    problem = Problem(loss, Constraints(ties=(("l0", "l2"),), fixed={"l3": PRECISIONS[1]}))

    assignments, _ = solve_frontier(problem, table("size", "bytes", SIZE), ILP, 20)

    assert len(assignments) > 2
    assert all(columns[0] == columns[2] and columns[3] == 1 for columns in assignments)


def test_with_interactions_the_loss_of_the_points_is_theirs() -> None:
    """The front is sorted by the loss with interactions, not by the additive one."""
    factor = np.random.default_rng(0).standard_normal((20, 4, 3)).astype(np.float32)
    loss = table("sketch", "nats", 0.5 * (factor.astype(np.float64) ** 2).mean(axis=0))
    problem = Problem(loss, interactions=Interactions(factor))

    assignments, _ = solve_frontier(
        problem, table("size", "bytes", SIZE), Evolutionary(num_trials=60, population_size=20), 4
    )

    losses = [problem.loss_of(columns) for columns in assignments]
    assert losses == sorted(set(losses), reverse=True)


@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize("seed", range(5))
def test_with_interactions_every_point_pays(seed: int, share: float) -> None:
    """Found by local search: costs rise, losses fall, budgets hold, and none is below the best."""
    factor = np.random.default_rng(seed).standard_normal((20, 4, 3)) * [4, 2, 1]
    loss = table("sketch", "nats", 0.5 * (factor**2).mean(axis=0))
    time, size = table("time", "seconds", TIME), table("size", "bytes", SIZE)
    problem = Problem(
        loss, Constraints((Budget.of(time, 9.0),)), interactions=Interactions(factor, share)
    )

    assignments, statuses = solve_frontier(problem, size, LocalSearch(num_restarts=20), 12)

    losses = [problem.loss_of(columns) for columns in assignments]
    costs = [Budget.of(size, 1.0).used(columns) for columns in assignments]
    feasible = [c for c in map(np.array, product(range(3), repeat=4)) if problem.is_feasible(c)]
    assert len(assignments) > 2
    assert losses == sorted(set(losses), reverse=True)
    assert costs == sorted(set(costs))
    assert all(problem.is_feasible(columns) for columns in assignments)
    assert losses[-1] >= min(map(problem.loss_of, feasible))
    assert set(statuses) <= {Status.FEASIBLE, Status.OPTIMAL}


def test_one_choice_is_a_frontier_of_one_point() -> None:
    """Where nothing can be traded, the ends coincide."""
    only = {f"l{row}": PRECISIONS[1] for row in range(4)}
    problem = Problem(table("sketch", "nats", LOSS), Constraints(fixed=only))

    assignments, statuses = solve_frontier(problem, table("size", "bytes", SIZE), ILP, 5)

    assert [columns.tolist() for columns in assignments] == [[1, 1, 1, 1]]
    assert statuses == [Status.OPTIMAL]


def test_other_budgets_that_cannot_be_met_are_an_error() -> None:
    """The message says which budget, and what it would need."""
    time = table("time", "seconds", TIME)
    problem = Problem(table("sketch", "nats", LOSS), Constraints((Budget.of(time, 4.0),)))

    with pytest.raises(InfeasibleError, match=r"other budgets: time: limit 4 .* reachable 5: 1 s"):
        solve_frontier(problem, table("size", "bytes", SIZE), ILP, 5)


@pytest.mark.parametrize("num_points", [1, 0, -3])
def test_a_frontier_has_two_points(num_points: int) -> None:
    """One point is a search."""
    with pytest.raises(InputError, match=f"at least 2 points; got {num_points}"):
        solve_frontier(
            Problem(table("sketch", "nats", LOSS)), table("size", "bytes", SIZE), ILP, num_points
        )


def test_a_layer_that_runs_nowhere_is_named() -> None:
    """A row of empty cells is an error about that layer and not about numbers."""
    cost = SIZE.copy()
    cost[2] = np.nan

    with pytest.raises(InputError, match="no precision is left for 'l2'"):
        solve_frontier(Problem(table("sketch", "nats", LOSS)), table("size", "bytes", cost), ILP, 3)


class OutOfTime(Solver):
    """A solver that never finds anything."""

    name = "out_of_time"
    summary = "finds nothing"

    def solve(self, problem: Problem) -> Solution:
        return Solution(Status.UNKNOWN, None, float("nan"), None, self.name, 0.0)


def test_a_solver_that_finds_nothing_is_not_called_infeasible() -> None:
    """Nothing found is not the same as nothing there."""
    problem = Problem(table("sketch", "nats", LOSS))

    with pytest.raises(SolverError, match="stopped before finding"):
        solve_frontier(problem, table("size", "bytes", SIZE), OutOfTime(), 5)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("is_limited", [True, False])
@pytest.mark.parametrize("most", [3, 20])
def test_the_hull_is_every_corner_of_the_frontier(seed: int, is_limited: bool, most: int) -> None:
    """Of all assignments within the other budget, those that no mixture of two undercuts."""
    rng = np.random.default_rng(seed)
    loss, cost, other = (rng.integers(0, most, (4, 3)).astype(np.float64) for _ in range(3))
    limit = float(np.median(other, axis=1).sum()) if is_limited else 1e9
    budgets = (Budget.of(table("o", "bytes", other), limit),) if is_limited else ()
    front = front_of(loss, cost, other, limit)
    corners = [
        p
        for p in front
        if not any(
            (p[0] - a[0]) * (b[1] - a[1]) <= (p[1] - a[1]) * (b[0] - a[0])
            for a, b in product(front, front)
            if a[0] < p[0] < b[0]
        )
    ]
    size = table("size", "seconds", cost)

    assignments, statuses = solve_hull(
        Problem(table("s", "nats", loss), Constraints(budgets)), size, Lagrangian()
    )

    found = [(size.total(c), float(loss[range(4), c].sum())) for c in assignments]
    assert found == corners
    assert set(statuses) == {Status.OPTIMAL}


@pytest.mark.parametrize("kind", ["pairs", "cut"])
@pytest.mark.parametrize("seed", range(5))
def test_the_hull_knows_what_couples_layers(seed: int, kind: str) -> None:
    """Pairs that lose something together, and an assignment to differ from, without any budget."""
    rng = np.random.default_rng(seed)
    loss, cost = (rng.integers(0, 9, (3, 3)).astype(np.float64) for _ in range(2))
    joint = rng.integers(-9, 9, (3, 3)).astype(np.float64) if kind == "pairs" else np.zeros((3, 3))
    pairs = (PairwiseCost("l0", "l2", joint),) if kind == "pairs" else ()
    # The first corner of the hull without it.
    cut = np.lexsort((loss, cost))[:, 0]
    problem = Problem(replace(table("s", "nats", loss), pairs=pairs))
    problem = problem.differing(cut, 1) if kind == "cut" else problem
    points = {
        c: (sum(cost[range(3), c]), sum(loss[range(3), c]) + joint[c[0], c[2]])
        for c in product(range(3), repeat=3)
        if kind == "pairs" or c != tuple(cut.tolist())
    }

    assignments, _ = solve_hull(problem, table("size", "seconds", cost), ILP)

    found = [points[tuple(columns.tolist())] for columns in assignments]
    for multiplier in (0.01, 0.1, 0.3, 0.7, 1.3, 3.0, 10.0, 100.0):
        least = min(y + multiplier * x for x, y in points.values())
        assert min(y + multiplier * x for x, y in found) == pytest.approx(least)


def test_a_hull_needs_an_additive_loss() -> None:
    """And says so."""
    factor = np.ones((2, 4, 3))
    problem = Problem(table("sketch", "nats", LOSS), interactions=Interactions(factor))

    with pytest.raises(InputError, match="the convex hull is that of an additive loss"):
        solve_hull(problem, table("size", "bytes", SIZE), Lagrangian())


@pytest.mark.parametrize("num_points", [2, 5, 40])
def test_dynamic_programming_sweeps_the_frontier_at_once(num_points: int) -> None:
    """The points that one problem after the other gives."""
    problem, size = Problem(table("sketch", "nats", LOSS)), table("size", "bytes", SIZE)

    swept, _ = solve_frontier(problem, size, DynamicProgramming(), num_points)

    expected, _ = solve_frontier(problem, size, Lagrangian(), num_points)
    assert [size.total(c) for c in swept] == [size.total(c) for c in expected]
    assert [problem.loss_of(c) for c in swept] == pytest.approx(
        [problem.loss_of(c) for c in expected]
    )


def test_dynamic_programming_sweeps_within_no_other_budget() -> None:
    """One that can bind, beside the amounts of the frontier, is one too many."""
    time = Budget.of(table("time", "seconds", TIME), 9.0)
    problem = Problem(table("sketch", "nats", LOSS), Constraints((time,)))

    with pytest.raises(InputError, match="takes one budget, and 2 can bind here"):
        solve_frontier(problem, table("size", "bytes", SIZE), DynamicProgramming(), 5)


def frontier_through(*pairs: tuple[float, float]) -> Frontier:
    """A frontier of points (cost, loss)."""
    points = tuple(
        FrontierPoint("frontier", cost, loss, {"l0": PRECISIONS[0]}) for cost, loss in pairs
    )
    return Frontier("latency", "seconds", "nats", points)


def test_hypervolume_is_the_dominated_share() -> None:
    """Counted cell by cell on a grid; two ends dominate nothing of the rectangle between them."""
    pairs = [(0.0, 10.0), (2.0, 6.0), (3.0, 1.0), (10.0, 0.0)]
    cells = product(np.arange(0.5, 10), repeat=2)
    dominated = sum(any(c < x and v < y for c, v in pairs) for x, y in cells)

    assert frontier_through(*pairs).hypervolume == pytest.approx(dominated / 100)
    assert frontier_through(pairs[0], pairs[-1]).hypervolume == 0.0
    assert np.isnan(frontier_through(pairs[0]).hypervolume)


@pytest.mark.parametrize(
    ("pairs", "is_told"), [([(1.0, 3.0)], False), ([(0.0, 10.0), (9.0, 0.0)], True)]
)
def test_a_single_point_has_no_rectangle(
    pairs: list[tuple[float, float]], is_told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The terminal says nothing of one."""
    print_frontier(frontier_through(*pairs), Console())

    assert ("hypervolume" in capsys.readouterr().out) is is_told


def test_a_frontier_as_json_has_units_and_hypervolume() -> None:
    """Keys name what they count and in which unit."""
    data = json.loads(frontier_through((1.0, 3.0), (2.0, 2.0), (3.0, 1.0)).to_json())

    assert data["hypervolume_share"] == 0.25
    assert data["points"][0] == {
        "label": "frontier",
        "measured": None,
        "latency_seconds": 1.0,
        "predicted_loss_nats": 3.0,
        "status": None,
        "precisions": {"l0": "w2a8"},
    }
    assert json.loads(frontier_through((1.0, 3.0)).to_json())["hypervolume_share"] is None


def test_a_hull_within_another_budget_has_its_inner_corners() -> None:
    """Of two layers, by hand: from nothing to all that the other budget lets through."""
    names, other = ("l0", "l1"), table("time", "seconds", [[1, 1, 9], [1, 1, 1]])
    cost = table("size", "bytes", [[0, 1, 2], [0, 1, 2]])
    loss = CostTable("loss", "nats", names, PRECISIONS, np.array([[9.0, 2, 0], [5, 4, 1]]))
    problem = Problem(loss, Constraints((Budget.of(other, 5.0),)))

    assignments, statuses = solve_hull(problem, cost, ILP)

    # Without the budget (2, 2) would be the last one.
    assert [columns.tolist() for columns in assignments] == [[0, 0], [1, 0], [1, 2]]
    assert statuses == [Status.OPTIMAL] * 3
