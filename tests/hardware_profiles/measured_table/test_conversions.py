"""What users ask of budgets with costs of pairs: limits, frontiers, least costs, files."""

import json
from dataclasses import replace
from math import fsum
from pathlib import Path

import numpy as np
import pytest

from mpq.cli.problem_file import load_problem
from mpq.errors import InfeasibleError, InputError
from mpq.problem.limits import Limit, uniform_cost
from mpq.problem.problem import Problem
from mpq.problem.solution import Status
from mpq.solvers import (
    Auto,
    BranchAndBound,
)
from mpq.solvers.queries.alternatives import alternatives
from mpq.solvers.queries.frontier import solve_frontier, solve_hull
from mpq.solvers.queries.least_cost import least_cost
from tests.solvers.additive.cases import (
    PRECISIONS,
    Case,
    Cost,
    conversions,
    interacting,
)


def test_relative_limits_count_constant_and_pairs() -> None:
    """Half of what the whole network takes at one precision; uniform networks convert nothing."""
    case = conversions(0)
    cost = case.costs[0]
    table = cost.table("latency", "seconds")

    for column, precision in enumerate(table.precisions):
        expected = fsum([0.5, *cost.values[:, column]])
        assert uniform_cost(table, precision) == expected
        assert Limit.parse(f"latency=0.5x:{precision}").resolve(table) == 0.5 * expected
    odd = replace(cost, pairs=((0, 2, np.full((3, 3), 0.25)),))
    assert uniform_cost(odd.table("latency", "seconds"), PRECISIONS[0]) == fsum(
        [0.5, 0.25, *cost.values[:, 0]]
    )


def front_of(case: Case, cost: Cost) -> list[tuple[float, float]]:
    """Every Pareto-optimal (cost, loss) of the feasible assignments."""
    points = {(float(cost.of(c)), float(case.loss.of(c))) for c in case.feasible()}
    return sorted(
        (x, y)
        for x, y in points
        if not any((u <= x and v < y) or (u < x and v <= y) for u, v in points)
    )


@pytest.mark.parametrize("has_other", [False, True])
def test_the_frontier_of_a_resource_with_pairs(has_other: bool) -> None:
    """Both ends and points between them, all on the exhaustive frontier; beside such a budget."""
    case = conversions(2)
    cost = replace(case.costs[0], values=case.costs[0].values[::-1].copy())
    case = case if has_other else replace(case, costs=(), limits=())
    table = cost.table("energy", "joules")
    expected = front_of(case, cost)

    candidates, statuses = solve_frontier(case.problem(), table, Auto(), 12)

    found = [
        (table.total(candidate), float(case.loss.of(tuple(candidate)))) for candidate in candidates
    ]
    assert [found[0], found[-1]] == [pytest.approx(expected[0]), pytest.approx(expected[-1])]
    assert set(statuses) == {Status.OPTIMAL}
    for cost_used, loss in found:
        assert any(cost_used == pytest.approx(x) and loss == pytest.approx(y) for x, y in expected)


def test_the_hull_of_a_resource_with_pairs_is_refused() -> None:
    """Its corners are no steps of single layers."""
    case = conversions(2)
    table = case.costs[0].table("latency", "seconds")

    with pytest.raises(InputError, match="latency has costs of pairs of layers: ask for points"):
        solve_hull(replace(case, costs=(), limits=()).problem(), table, Auto())


@pytest.mark.parametrize("seed", range(3))
def test_the_hull_of_another_resource_holds_budgets_with_pairs(seed: int) -> None:
    """Every corner is a point of the exhaustive frontier, both ends included."""
    case = conversions(seed)
    cost = Cost(np.random.default_rng(seed).random((4, 3)), constant=3.0)
    table = cost.table("energy", "joules")
    expected = front_of(case, cost)

    candidates, _ = solve_hull(case.problem(), table, Auto())

    found = [
        (table.total(candidate), float(case.loss.of(tuple(candidate)))) for candidate in candidates
    ]
    assert [found[0], found[-1]] == [pytest.approx(expected[0]), pytest.approx(expected[-1])]
    for point in found:
        assert any(point == pytest.approx(other) for other in expected)


@pytest.mark.parametrize("share", [0.2, 0.6])
def test_the_least_cost_counts_constant_and_pairs(share: float) -> None:
    """The cheapest of all assignments that lose so little; its bound says so."""
    case = conversions(3)
    free = replace(case, costs=(), limits=())
    losses = sorted(float(case.loss.of(candidate)) for candidate in free.allowed())
    max_loss = losses[0] + share * (losses[-1] - losses[0])
    expected = min(
        float(case.costs[0].of(c)) for c in free.allowed() if float(case.loss.of(c)) <= max_loss
    )

    found = least_cost(free.problem(), case.costs[0].table("latency", "seconds"), Auto(), max_loss)

    assert found.cost == pytest.approx(expected)
    assert found.bound == pytest.approx(expected)
    assert found.solution.loss <= max_loss


def test_the_least_cost_with_interactions() -> None:
    """Halving reaches the cheapest assignment whose quadratic loss is acceptable."""
    case = conversions(4)
    free = replace(case, costs=(), limits=())
    problem = interacting(4, free)
    table = case.costs[0].table("latency", "seconds")
    losses = {candidate: problem.loss_of(np.array(candidate)) for candidate in free.allowed()}
    max_loss = float(np.quantile(list(losses.values()), 0.4))
    expected = min(float(case.costs[0].of(c)) for c, loss in losses.items() if loss <= max_loss)

    found = least_cost(problem, table, BranchAndBound(num_restarts=10), max_loss)

    assert found.cost == pytest.approx(expected)


def test_alternatives_within_a_budget_with_pairs() -> None:
    """The five best of all."""
    case = conversions(6)
    expected = sorted(float(case.loss.of(candidate)) for candidate in case.feasible())[:5]

    found = alternatives(case.problem(), Auto(), 5)

    assert [solution.loss for solution in found] == pytest.approx(expected)


def test_a_problem_is_read_and_solved_again(tmp_path: Path) -> None:
    """JSON keeps constants and pairs bit by bit; limits on what it reads count them."""
    case = conversions(7)
    problem = case.problem()
    path = tmp_path / "problem.json"
    path.write_text(problem.to_json(), encoding="utf-8")

    again, tables = load_problem(path)
    narrow, _ = load_problem(path, ["r0=0.9x:w2a8"])

    assert again.to_json() == problem.to_json()
    assert tables["r0"].constant == 0.5
    np.testing.assert_array_equal(Auto().solve(again).columns, Auto().solve(problem).columns)
    assert narrow.budgets[0].limit == 0.9 * fsum([0.5, *case.costs[0].values[:, 0]])
    assert Auto().solve(narrow).status is Status.INFEASIBLE


def test_json_of_before_there_were_pairs_is_read() -> None:
    """Files without the two keys have no constant and no pairs."""
    case = conversions(7)
    data = json.loads(case.problem().to_json())
    for table in (data["loss"], data["budgets"][0]["tables"][0]):
        del table["constant"], table["pairs"]

    read = Problem.from_json(json.dumps(data))

    assert (read.budgets[0].tables[0].constant, read.budgets[0].tables[0].pairs) == (0.0, ())
    np.testing.assert_array_equal(read.budgets[0].tables[0].values, case.costs[0].values)


def test_a_loss_with_interactions_has_no_pairs() -> None:
    """Interactions are what pairs of layers lose."""
    case = conversions(0)
    loss = replace(case.loss, pairs=case.costs[0].pairs)

    with pytest.raises(InputError, match="loss: a loss with interactions has no costs of pairs"):
        interacting(0, replace(case, loss=loss))


def test_no_assignment_is_an_error_with_the_least_latency() -> None:
    """In the user's unit, conversions and constant counted."""
    case = replace(conversions(0), limits=(0.6,))
    least = min(float(case.costs[0].of(candidate)) for candidate in case.allowed())

    with pytest.raises(InfeasibleError, match=f"smallest reachable {least:.6g}"):
        solve_frontier(case.problem(), Cost(np.ones((4, 3))).table("size", "bytes"), Auto(), 3)
