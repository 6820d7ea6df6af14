"""Amounts of a budget: which unit, how many, and what is read back from the table."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from mpq.errors import InputError
from mpq.problem.solution import Status
from mpq.solvers import DynamicProgramming
from mpq.solvers.additive import dynamic_programming as module_under_test
from mpq.solvers.additive.dynamic_programming import _Grid, _Table
from mpq.solvers.additive.presolve import Reduced
from tests.conftest import MakeProblem

LOSS = [[9.0, 5.0, 2.0], [7.0, 3.0, 1.0], [8.0, 4.0, 0.0]]
COST = [[0.0, 2.0, 4.0], [0.0, 2.0, 6.0], [2.0, 4.0, 6.0]]


def best_of(limit: float) -> float:
    """Least loss of all choices that cost at most so much."""
    every = product(range(3), repeat=3)
    return min(
        sum(LOSS[row][c] for row, c in enumerate(columns))
        for columns in every
        if sum(COST[row][c] for row, c in enumerate(columns)) <= limit
    )


def reduced_of(make_problem: MakeProblem, limit: float, scale: float = 1.0) -> Reduced:
    """The problem above in another unit."""
    costs = [np.array(COST) * scale]
    return Reduced.of(make_problem(LOSS, costs, [limit * scale]).grouped)


@pytest.mark.parametrize("limit", [2.0, 5.0, 6.0, 10.0, 13.0])
@pytest.mark.parametrize("retreat", [0, 1, 2])
def test_a_retreat_is_one_unit_less(make_problem: MakeProblem, limit: float, retreat: int) -> None:
    """Costs are even: a unit is 2, and the answer is the best of so many fewer."""
    if limit - 2 * retreat < 2:
        return
    reduced = reduced_of(make_problem, limit)

    answer = DynamicProgramming()._answer(reduced, retreat)

    assert answer.columns is not None
    loss = reduced.offset + reduced.loss(answer.columns)
    assert loss == best_of(limit - 2 * retreat)
    assert answer.bound == best_of(limit)
    assert (answer.status is Status.OPTIMAL) == (loss == best_of(limit))


@pytest.mark.parametrize("scale", [1.0, 0.5, 3.0, 1e-9, 0.1])
def test_whole_costs_are_counted_in_their_common_divisor(
    make_problem: MakeProblem, scale: float
) -> None:
    """Whatever the unit: of 8 that are free, steps of 2 make 4."""
    reduced = reduced_of(make_problem, 10.0, scale)

    grid = _Grid.of(reduced, 10_000)

    assert grid.is_exact
    assert (grid.capacity, grid.reach) == (4, 4)
    assert grid.room == pytest.approx(4.0)
    assert grid.units[reduced.usable].tolist() == [0, 1, 2, 0, 1, 3, 0, 1, 2]


@pytest.mark.parametrize(("most", "is_exact"), [(4, True), (3, False)])
def test_a_grid_that_is_too_coarse_is_a_share(
    make_problem: MakeProblem, most: int, is_exact: bool
) -> None:
    """Four units are free, and as many or one less may be counted."""
    reduced = reduced_of(make_problem, 10.0)

    grid = _Grid.of(reduced, most)

    assert grid.is_exact == is_exact
    assert (grid.capacity, grid.reach) == (most, most)
    assert grid.room == pytest.approx(most)
    assert grid.units[0] == pytest.approx(np.array([0, 1, 2]) * most / 4)


@pytest.mark.parametrize("off", [1e-10, 1e-8])
def test_costs_are_whole_up_to_a_thousand_millionth(make_problem: MakeProblem, off: float) -> None:
    """Of themselves: what rounding leaves."""
    cost = [[0.0, 3.0 * (1 + off)], [0.0, 2.0]]
    reduced = Reduced.of(make_problem([[1.0, 0.0]] * 2, [cost], [4.5]).grouped)

    assert _Grid.of(reduced, 100).is_exact == (off < 1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_on_a_grid_the_answer_is_between_its_bound_and_one_unit_each(
    make_problem: MakeProblem, seed: int
) -> None:
    """Costs that are not whole: rounded up for the answer, down for the bound."""
    rng = np.random.default_rng(seed)
    loss, cost = -np.sort(-rng.random((5, 3)), axis=1), np.sort(rng.random((5, 3)), axis=1)
    limit = 0.5 * (cost.min(axis=1).sum() + cost.max(axis=1).sum())
    problem = make_problem(loss, [cost], [limit])
    every = [np.array(c) for c in product(range(3), repeat=5)]
    best = min(problem.loss_of(c) for c in every if problem.is_feasible(c))
    free = limit - cost.min(axis=1).sum()
    for grid in (1, 7, 50, 2000):
        found = DynamicProgramming(grid).solve(problem)
        assert found.columns is not None
        assert found.bound is not None
        assert problem.is_feasible(found.columns)
        assert found.bound - 1e-12 <= best <= found.loss + 1e-12
        near = [c for c in every if cost[range(5), c].sum() <= limit - 5 * free / grid]
        assert found.loss <= min(map(problem.loss_of, near), default=np.inf) + 1e-12
    assert found.loss == pytest.approx(best)
    assert found.bound == pytest.approx(best, rel=1e-2)


def test_a_table_by_hand(make_problem: MakeProblem) -> None:
    """Least rise for every amount, and the choice that has it."""
    reduced = reduced_of(make_problem, 10.0)
    grid = _Grid.of(reduced, 100)

    table = _Table.of(reduced, grid.units, grid.capacity, keeps_choices=True)
    bare = _Table.of(reduced, grid.units, grid.capacity, keeps_choices=False)

    expected = [best_of(2.0 + 2 * amount) - reduced.offset for amount in range(5)]
    assert table.least.tolist() == bare.least.tolist() == expected
    assert table.column.shape == (3, 5)
    assert table.column.dtype == np.uint8
    assert len(bare.column) == 0
    for amount in range(5):
        assert reduced.loss(table.columns(amount)) == expected[amount]


def test_a_table_may_have_so_many_bytes(
    make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three rows of five amounts are fifteen, which may be all."""
    reduced = reduced_of(make_problem, 10.0)
    grid = _Grid.of(reduced, 100)
    monkeypatch.setattr(module_under_test, "_MAX_BYTES", 15)
    _Table.of(reduced, grid.units, grid.capacity, keeps_choices=True)
    monkeypatch.setattr(module_under_test, "_MAX_BYTES", 14)

    with pytest.raises(InputError, match="3 layers times 5 amounts are more than 14; take a small"):
        _Table.of(reduced, grid.units, grid.capacity, keeps_choices=True)


def test_a_sweep_is_the_best_of_every_limit(make_problem: MakeProblem) -> None:
    """All from one table; between two amounts it is that of the smaller one."""
    problem = make_problem(LOSS)
    table = make_problem(LOSS, [COST], [99.0]).budgets[0].tables[0]
    limits = [2.0, 3.9, 4.0, 7.0, 10.0, 15.0]

    found = DynamicProgramming().frontier(problem, table, limits)

    assert [solution.loss for solution in found] == [best_of(limit) for limit in limits]
    assert {solution.status for solution in found} == {Status.FEASIBLE}
    assert len({solution.seconds for solution in found}) == 1


def test_a_grid_has_a_unit() -> None:
    """One is enough."""
    assert DynamicProgramming(grid=1).grid == 1
    with pytest.raises(InputError, match="a grid of at least 1; got 0"):
        DynamicProgramming(grid=0)


def test_a_bound_takes_no_memory_for_choices(make_problem: MakeProblem) -> None:
    """Of rounded costs two tables are made, and one alone is what a choice is read from."""
    made: list[tuple[bool, tuple[int, ...]]] = []
    of = _Table.of

    def noting(reduced: Reduced, units: Any, capacity: int, keeps_choices: bool) -> _Table:
        table = of(reduced, units, capacity, keeps_choices)
        made.append((keeps_choices, table.column.shape))
        return table

    rng = np.random.default_rng(0)
    problem = make_problem(rng.random((5, 3)), [rng.random((5, 3))], [2.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module_under_test._Table, "of", noting)
        found = DynamicProgramming(100).solve(problem)

    assert found.bound is not None
    assert made[0] == (True, (5, 101))
    assert made[1][0] is False
    assert made[1][1][0] == 0


def test_equal_losses_are_taken_at_the_first_precision(make_problem: MakeProblem) -> None:
    """Of precisions that cost nothing more and lose nothing less than another, the first one."""
    problem = make_problem([[1.0, 1.0, 0.0, 0.0]] * 2, [[[1.0, 1.0, 2.0, 2.0]] * 2], [3.0])

    found = DynamicProgramming().solve(problem)

    assert found.columns is not None
    assert sorted(found.columns.tolist()) == [0, 2]
