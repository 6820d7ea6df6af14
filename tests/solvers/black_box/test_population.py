"""Genetic operators by hand: units, repairs, orders, steps, and how often each is drawn."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mpq.problem.problem import Problem
from mpq.solvers.black_box import population as module_under_test
from mpq.solvers.black_box.population import Space, crowding, survivors
from tests.conftest import PRECISIONS, MakeProblem
from tests.solvers.additive.cases import Case, Cost, conversions


@pytest.mark.parametrize("seed", range(3))
def test_what_a_space_counts_is_what_tables_count(seed: int) -> None:
    """In units of what single layers use at most; the loss of pairs keeps its own unit."""
    case = conversions(seed)
    joint = np.random.default_rng(seed).random((3, 3))
    second = Cost(case.costs[0].values * 7, 2.0, ((0, 3, joint),))
    case = Case(
        Cost(case.loss.values, 0.0, ((1, 2, joint),)), (*case.costs, second), (*case.limits, 40.0)
    )
    problem = case.problem()
    grouped = problem.grouped
    largest = np.abs(grouped.costs).max(axis=2).sum(axis=1)

    space = Space.of(problem)

    assert np.abs(space.costs).max(axis=2).sum(axis=1) == pytest.approx([1.0, 1.0])
    assert space.limits * largest == pytest.approx(grouped.limits)
    assert np.array_equal(space.pairwise.values[:, 0], grouped.pairwise.values[:, 0])
    chosen = np.array(case.allowed())
    used = space.used(chosen) * largest
    for columns, amounts in zip(chosen, used, strict=True):
        for cost, amount, limit, top in zip(
            case.costs, amounts, grouped.limits, case.limits, strict=True
        ):
            assert amount - limit == pytest.approx(float(cost.of(tuple(columns))) - top)


def test_a_resource_of_nothing_has_a_unit(make_problem: MakeProblem) -> None:
    """It is not divided by."""
    space = Space.of(make_problem([[1.0, 0.0]], [[[0.0, 0.0]]], [5.0]))

    assert (space.costs.tolist(), space.limits.tolist()) == ([[[0.0, 0.0]]], [5.0])


def three(make_problem: MakeProblem, limit: float, **rules: Any) -> Space:
    """Three layers at three precisions that cost 1, 2 and 4."""
    loss = [[9.0, 3.0, 0.0], [9.0, 8.0, 0.0], [1.0, 0.5, 0.0]]
    return Space.of(make_problem(loss, [[[1.0, 2.0, 4.0]] * 3], [limit], **rules))


def test_a_step_down_saves_what_it_loses(make_problem: MakeProblem) -> None:
    """Per unit of cost; of the cheapest, and of what is not allowed, without end."""
    space = three(make_problem, 9.0, candidates={"l2": list(PRECISIONS[:2])})

    # Costs are in units of 12, less what only one layer may use: 4 + 4 + 2.
    assert space._regret == pytest.approx(
        np.array([[np.inf, 60, 15], [np.inf, 10, 40], [np.inf, 5, np.inf]])
    )
    assert space._by_cost.tolist() == [[0, 1, 2]] * 3


def test_columns_are_ordered_by_cost(make_problem: MakeProblem) -> None:
    """Whatever their order in the table; those that are not allowed are last."""
    problem = make_problem(
        [[1.0, 2.0, 3.0]] * 2, [[[4.0, 1.0, 2.0], [2.0, 4.0, 1.0]]], [9.0],
        candidates={"l1": list(PRECISIONS[:2])},
    )  # fmt: skip

    assert Space.of(problem)._by_cost.tolist() == [[1, 2, 0], [0, 1, 2]]


def test_of_lighter_columns_the_most_expensive(make_problem: MakeProblem) -> None:
    """One that breaks the budget less; where none does, what is held stays."""
    space = three(make_problem, 8.0)
    assignments = np.array([[2, 2, 2], [0, 2, 2], [0, 0, 2]])

    found = space._lighter(assignments, np.array([1, 0, 2]))

    # The last is within the budget already, and nothing breaks it less.
    assert found.tolist() == [1, 0, 2]


def test_columns_beside_pairs_are_weighed_with_them() -> None:
    """Of two conversions the one that is saved counts."""
    cost = np.array([[0.0, 5.0], [5.0, 0.0]])
    latency = Cost(np.array([[1.0, 2.0], [1.0, 2.0]]), 0.0, ((0, 1, cost),))
    problem = Case(Cost(np.ones((2, 2))), (latency,), (4.0,)).problem()
    space = Space.of(problem)

    # Held: 1 + 2 + 5. Up costs one more and saves the conversion.
    assert space._lighter(np.array([[0, 1]]), np.array([0])).tolist() == [1]
    assert space._lighter(np.array([[0, 1]]), np.array([1])).tolist() == [0]
    assert space.repaired(np.array([[0, 1]] * 8), np.random.default_rng(0))[:, 0].max() <= 1


@pytest.mark.parametrize(("is_informed", "low", "high"), [(True, 0.55, 0.67), (False, 0.3, 0.37)])
def test_half_of_the_repairs_begin_where_little_is_lost(
    make_problem: MakeProblem, is_informed: bool, low: float, high: float
) -> None:
    """The others anywhere: the layer that loses least comes first in as many of them."""
    loss = [[9.0, 3.0, 0.0], [9.0, 8.0, 0.0], [1.0, 0.5, 0.0]]
    problem = make_problem(loss, [[[1.0, 2.0, 4.0]] * 3], [9.0])
    space = replace(Space.of(problem), is_informed=is_informed)

    order = space._order(np.full((4000, 3), 2), np.random.default_rng(0))

    assert (np.sort(order, axis=1) == [0, 1, 2]).all()
    share = (order[:, 0] == 2).mean()
    assert low < share < high
    last = (order[:, 2] == 1).mean()
    assert low < last < high


def big(make_problem: MakeProblem, layers: int = 20, limit: float = 1e9) -> Space:
    """Many layers at four precisions, without a budget that binds."""
    loss = np.tile([4.0, 3.0, 2.0, 1.0], (layers, 1))
    return Space.of(make_problem(loss, [np.tile([1.0, 2.0, 3.0, 4.0], (layers, 1))], [limit]))


def test_children_have_two_parents_mostly(make_problem: MakeProblem) -> None:
    """Nine in ten; then half of the layers come from the other one."""
    space = big(make_problem, layers=40)
    parents = np.zeros((2, 40), dtype=np.intp)
    parents[1] = 3

    children = space.children(parents, 4000, np.random.default_rng(1))

    # Three in four have the better one first, drawn twice; a copy is crossed with itself.
    share = (children >= 2).mean(axis=1)
    mixed = ((share > 0.2) & (share < 0.8)).mean()
    # Both orders of two different parents: 2 times 3/4 times 1/4.
    assert mixed == pytest.approx(0.9 * 2 * 0.75 * 0.25, abs=0.03)
    assert ((share < 0.2).mean()) > 3 * ((share > 0.8).mean())


def test_of_two_drawn_parents_the_better_one(make_problem: MakeProblem) -> None:
    """The first of ten is the better of two in 19 of 100 draws, the last in 1."""
    space = big(make_problem, layers=60)
    parents = np.zeros((3, 60), dtype=np.intp)
    parents[1], parents[2] = 1, 2

    children = space.children(parents, 3000, np.random.default_rng(1))

    share = np.array([(children == column).mean() for column in range(3)])
    assert share == pytest.approx([5 / 9, 3 / 9, 1 / 9], abs=0.03)


def test_one_layer_at_least_is_mutated(make_problem: MakeProblem) -> None:
    """One more on average; mostly to the next precision, which is up as often as down."""
    space = big(make_problem)
    parent = np.ones((1, 20), dtype=np.intp)

    children = space.children(parent, 4000, np.random.default_rng(2))

    changed = children != 1
    # A draw among all four hits the one that is held in one of four: 0.2 / 4.
    assert changed.sum(axis=1).mean() == pytest.approx((1 + 19 / 20) * 0.95, abs=0.08)
    counts = [int((children == column).sum()) for column in (0, 2, 3)]
    total = sum(counts)
    assert counts[2] / total == pytest.approx(0.05 / 0.95, abs=0.01)
    assert counts[0] / total == pytest.approx(0.45 / 0.95, abs=0.02)


def test_a_step_ends_at_the_last_column_that_is_allowed(make_problem: MakeProblem) -> None:
    """Down from the cheapest, and up from the dearest, is where it was."""
    loss, cost = [[3.0, 2.0, 1.0]] * 2, [[[1.0, 2.0, 3.0]] * 2]
    problem = make_problem(loss, cost, [99.0], candidates={"l1": list(PRECISIONS[:2])})
    space = Space.of(problem)
    rng = np.random.default_rng(0)

    found = [
        set(map(tuple, space._stepped(np.tile(held, (50, 1)), rng).tolist()))
        for held in ([0, 0], [1, 1], [2, 1])
    ]

    assert found[0] == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert found[1] == {(0, 0), (0, 1), (2, 0), (2, 1)}
    assert found[2] == {(1, 0), (1, 1), (2, 0), (2, 1)}


def test_columns_are_drawn_evenly_among_the_allowed(make_problem: MakeProblem) -> None:
    """However many a layer has."""
    problem = make_problem([[1.0, 2.0, 3.0]] * 2, candidates={"l1": list(PRECISIONS[1:3])})

    drawn = Space.of(problem).drawn(6000, np.random.default_rng(0))

    shares = [[(drawn[:, group] == c).mean() for c in range(3)] for group in range(2)]
    assert shares[0] == pytest.approx([1 / 3] * 3, abs=0.02)
    assert shares[1] == pytest.approx([0, 0.5, 0.5], abs=0.02)


def test_repairs_end_though_nothing_fits(make_problem: MakeProblem) -> None:
    """After as many steps as there are columns of all layers, at the cheapest."""
    space = three(make_problem, 2.5)

    found = space.repaired(np.full((5, 3), 2), np.random.default_rng(0))

    assert found.tolist() == [[0, 0, 0]] * 5
    assert len(space.random(10, np.random.default_rng(0))) == 0


def counted(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the problem itself is asked."""
    asked: list[int] = []
    is_feasible = Problem.is_feasible

    def noting(one: Problem, columns: Any) -> bool:
        asked.append(1)
        return is_feasible(one, columns)

    monkeypatch.setattr(Problem, "is_feasible", noting)
    return asked


@pytest.mark.parametrize(("room", "is_asked"), [(2e-9, False), (0.5e-9, True), (-0.5e-9, True)])
def test_near_a_limit_the_problem_decides(
    make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch, room: float, is_asked: bool
) -> None:
    """Within a thousand-millionth of what all may use; farther off, sums are trusted."""
    problem = make_problem([[1.0]], [[[1.0]]], [1.0 + room])
    asked = counted(problem, monkeypatch)

    assert Space.of(problem).within(np.array([[0]])).tolist() == [room > 0]
    assert bool(asked) == is_asked


def test_without_budgets_everything_is_within(make_problem: MakeProblem) -> None:
    """There is nothing to break."""
    space = Space.of(make_problem([[1.0, 0.0]]))

    assert space.within(np.array([[0], [1]])).tolist() == [True, True]
    assert module_under_test._HAIR == 1e-9


def test_the_least_crowded_of_a_front_survive() -> None:
    """Ends first, then by the distance of both neighbours; of one value the smallest."""
    values = np.array([[0.0, 10.0], [1.0, 9.0], [2.0, 8.0], [7.0, 3.0], [10.0, 0.0], [11.0, 11.0]])

    assert crowding(values[:5]).tolist() == pytest.approx([np.inf, 0.4, 1.2, 1.6, np.inf])
    assert survivors(values, 4).tolist() == [0, 4, 3, 2]
    assert survivors(values, 9).tolist() == [0, 4, 3, 2, 1, 5]
    assert survivors(values[:, :1], 3).tolist() == [0, 1, 2]
    assert survivors(values, 0).tolist() == []
    same = np.array([[1.0, 3.0], [1.0, 2.0], [1.0, 1.0]])
    assert crowding(same).tolist() == [np.inf, 1.0, np.inf]


@pytest.mark.parametrize("num_values", [2, 3])
def test_both_ends_of_every_value_are_never_crowded(num_values: int) -> None:
    """The least and the most of each: a front keeps its extent however few survive."""
    values = np.random.default_rng(0).random((12, num_values))

    found = crowding(values)

    ends = {*values.argmin(axis=0).tolist(), *values.argmax(axis=0).tolist()}
    assert set(np.flatnonzero(np.isinf(found)).tolist()) == ends
    assert (found > 0).all()


def test_two_or_one_are_all_ends() -> None:
    """There is nothing between them."""
    assert crowding(np.array([[1.0, 2.0], [2.0, 1.0]])).tolist() == [np.inf, np.inf]
    assert crowding(np.array([[1.0, 2.0]])).tolist() == [np.inf]


def test_pairs_in_the_unit_of_their_resource_weigh_as_much_in_any(
    make_problem: MakeProblem,
) -> None:
    """Losses keep their own unit, also beside costs of another size."""
    case = conversions(1)
    joint = np.random.default_rng(0).random((3, 3))
    for unit in (1.0, 1e6):
        latency = Cost(
            case.costs[0].values * unit, 0.0,
            tuple((i, j, v * unit) for i, j, v in case.costs[0].pairs),
        )  # fmt: skip
        loss = Cost(case.loss.values, 0.0, ((0, 2, joint),))
        space = Space.of(Case(loss, (latency,), (case.limits[0] * unit,)).problem())
        chosen = np.array(case.allowed())
        assert space.pairwise.cost(chosen)[:, 0] == pytest.approx(
            space.problem.grouped.pairwise.cost(chosen)[:, 0], rel=1e-15
        )
        assert space.used(chosen).max() < 3
