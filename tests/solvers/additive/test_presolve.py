"""What presolve leaves of a problem."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import pytest

from mpq.problem.problem import Problem
from mpq.problem.solution import Status
from mpq.solvers import SOLVERS
from mpq.solvers.additive.presolve import Reduced
from tests.solvers.additive.cases import Case, Cost, conversions

Make: TypeAlias = Callable[..., Problem]
EXACT = ("ilp:backend=HiGHS", "ilp:backend=CBC", "lagrangian", "dynamic-programming")


def test_of_equal_cells_the_first_stays(make_problem: Make) -> None:
    """They better each other: one is as good as all, and none would be worse."""
    problem = make_problem([[5.0, 1.0, 1.0, 1.0]], [[[1.0, 2.0, 2.0, 3.0]]], [2.5])

    usable = Reduced.of(problem.grouped).usable

    assert usable.tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("solver", EXACT)
def test_two_equal_precisions_are_no_reason_to_take_another(
    make_problem: Make, solver: str
) -> None:
    """The best precision is there twice, beside one that is cheaper and loses more."""
    row = [[5.0, 1.0, 1.0]] * 2, [[1.0, 2.0, 2.0]] * 2
    problem = make_problem(row[0], [row[1]], [3.0])

    found = SOLVERS.build(solver).solve(problem)

    assert (found.status, found.loss) == (Status.OPTIMAL, 6.0)


def shares(case: Case) -> tuple[Problem, Reduced]:
    """A problem, and what is left of it."""
    problem = case.problem()
    return problem, Reduced.of(problem.grouped)


@pytest.mark.parametrize("seed", range(6))
def test_what_is_left_adds_up_to_the_same_losses_and_costs(seed: int) -> None:
    """Of every choice that is left, with costs of pairs in both: by exact sums of the tables."""
    case = conversions(seed, num_layers=3)
    joint = np.random.default_rng(seed).random((3, 3))
    case = replace(case, loss=replace(case.loss, constant=0.75, pairs=((0, 2, joint),)))
    _, reduced = shares(case)
    left = [c for c in case.allowed() if reduced.usable[range(3), c].all()]
    assert len(left) > 3
    rest = []
    for columns in left:
        chosen = np.array(columns)
        loss = reduced.offset + reduced.loss(chosen)
        assert loss == pytest.approx(float(case.loss.of(columns)))
        # Beyond the limit a pair is just beyond, and no longer as large as it is.
        if reduced.used(chosen)[0] <= 1:
            used = float(case.costs[0].of(columns)) - case.limits[0]
            rest.append(reduced.free[0] * (1 - reduced.used(chosen)[0]) + used)
    assert rest == pytest.approx([0.0] * len(rest), abs=1e-9)
    assert rest


def test_floors_shares_and_units_by_hand(make_problem: Make) -> None:
    """Two budgets, of which one binds; a cell that alone overruns is gone."""
    loss = [[5.0, 2.0, 1.0], [7.0, 4.0, 3.0]]
    tight = [[1.0, 3.0, 9.0], [2.0, 4.0, 5.0]]
    loose = [[1.0, 1.0, 1.0], [2.0, 3.0, 4.0]]

    reduced = Reduced.of(make_problem(loss, [loose, tight], [50.0, 7.0]).grouped)

    assert reduced.usable.tolist() == [[True, True, False], [True, True, True]]
    assert reduced.rise.tolist() == [[3.0, 0.0, 0.0], [4.0, 1.0, 0.0]]
    assert reduced.excess == pytest.approx(np.array([[[0, 0.5, 0], [0, 0.5, 0.75]]]))
    assert reduced.free == pytest.approx([4.0])
    assert (reduced.offset, reduced.worst, reduced.highest) == (5.0, 7.0, 4.0)
    assert reduced.unlimited.tolist() == [1, 2]
    assert not reduced.overrun
    assert reduced.loss(np.array([0, 1])) == 4.0
    assert reduced.used(np.array([1, 2])) == pytest.approx([1.25])
    # Of sums of sizes up to 10 and what two rows add, four last digits.
    assert reduced.edge == pytest.approx([4 * 2.0**-52 * (7 + 3 + 2 * 4) / 4])


def test_a_share_is_never_more_than_all(make_problem: Make) -> None:
    """Where last digits alone are free, a cell may cost many times that: it is all there is."""
    allowance = 1.0 + 1e-12
    below, above = np.nextafter(allowance, 0), allowance + 2 * 2.0**-52

    reduced = Reduced.of(make_problem([[2.0, 1.0]], [[[below, above]]], [1.0]).grouped)

    assert 0 < reduced.free[0] < 1e-15
    assert reduced.usable.all()
    assert reduced.excess.tolist() == [[[0.0, 1.0]]]


def test_a_budget_binds_from_what_is_free_on(make_problem: Make) -> None:
    """One that all together just meet is left out only if rounding could not matter."""
    loss, cost = [[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 2.0]]

    found = [len(Reduced.of(make_problem(loss, [cost], [top]).grouped).free) for top in (2.9, 3.1)]

    assert found == [1, 0]


@pytest.mark.parametrize(("limit", "is_over"), [(3.0, False), (3.0 - 1e-11, True), (2.0, True)])
def test_the_least_of_all_may_be_too_much(make_problem: Make, limit: float, is_over: bool) -> None:
    """Costs of 1 and 2 at least."""
    problem = make_problem([[1.0, 0.0]] * 2, [[[1.0, 5.0], [2.0, 5.0]]], [limit])

    assert Reduced.of(problem.grouped).overrun == is_over


def test_a_row_of_which_every_cell_overruns_is_an_overrun(make_problem: Make) -> None:
    """Each by another budget, of which every one alone could be met."""
    costs = [[[0.0, 9.0]], [[9.0, 0.0]]]

    reduced = Reduced.of(make_problem([[1.0, 0.0]], costs, [1.0, 1.0]).grouped)

    assert reduced.overrun


@pytest.mark.parametrize("seed", range(20))
def test_what_is_bettered_in_everything_goes(make_problem: Make, seed: int) -> None:
    """By the definition, cell by cell; of equal ones the first stays."""
    rng = np.random.default_rng(seed)
    loss, cost = rng.integers(0, 4, (3, 5)).astype(float), rng.integers(0, 4, (2, 3, 5))
    problem = make_problem(loss, cost, [100.0, 100.0])

    usable = Reduced.of(problem.grouped).usable

    for row in range(3):
        cells = [(loss[row, b], *cost[:, row, b]) for b in range(5)]
        for cell in range(5):
            betters = [
                other
                for other in range(5)
                if all(x <= y for x, y in zip(cells[other], cells[cell], strict=True))
                and (cells[other] != cells[cell] or other < cell)
            ]
            assert usable[row, cell] == (not betters)


def test_beside_a_pair_a_cell_has_to_be_better_whatever_the_other_takes() -> None:
    """A conversion of 2 may be worth what is cheaper by 1, one of a half is not."""
    for cost, is_kept in ((2.0, True), (0.5, False)):
        joint = np.array([[0.0, cost], [cost, 0.0]])
        loss = Cost(np.array([[0.0, 1.0], [0.0, -9.0]]), 0.0, ((0, 1, joint),))
        latency = Cost(np.array([[1.0, 1.0], [1.0, 1.0]]))
        _, reduced = shares(Case(loss, (latency,), (10.0,)))
        assert reduced.usable[0].sum() == 1
        assert reduced.usable[0, 1] == is_kept


@pytest.mark.parametrize("seed", range(4))
def test_at_worst_a_pair_costs_its_first_row_the_most(seed: int) -> None:
    """What holds then holds whatever the second row takes."""
    case = conversions(seed)
    _, reduced = shares(case)
    worst = reduced.at_worst

    assert not len(worst.pairwise)
    for columns in case.allowed():
        chosen = np.array(columns)
        if reduced.usable[range(4), columns].all():
            assert worst.loss(chosen) >= reduced.loss(chosen) - 1e-12
            assert (worst.used(chosen) >= reduced.used(chosen) - 1e-12).all()
    values = reduced.pairwise.values
    assert len(values)
    assert (worst.rise == reduced.rise).all()
    for row in range(4):
        mine = values[reduced.pairwise.first == row]
        more = worst.excess[:, row] - reduced.excess[:, row]
        assert more == pytest.approx(mine[:, 1:].max(axis=3).sum(axis=0))


def test_the_largest_rise_may_be_a_pair_s() -> None:
    """Of a cell otherwise."""
    joint = np.array([[0.0, 7.0], [7.0, 0.0]])
    loss = Cost(np.array([[0.0, 1.0], [1.0, 0.0]]), 0.0, ((0, 1, joint),))
    costs = Cost(np.array([[2.0, 1.0], [1.0, 2.0]]))

    _, reduced = shares(Case(loss, (costs,), (3.0,)))

    assert reduced.highest == 7.0


@pytest.mark.parametrize("solver", ["ilp:backend=HiGHS", "ilp:backend=CBC"])
def test_a_budget_may_bind_by_pairs_alone(solver: str) -> None:
    """Cells cost nothing: without what they cost beside each other nothing would be counted."""
    joint = np.array([[0.0, 2.0], [2.0, 0.0]])
    loss = Cost(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    latency = Cost(np.zeros((3, 2)), 0.0, ((0, 1, joint), (1, 2, joint)))
    for limit, binds, least in ((4.5, 0, 0.0), (3.5, 1, 1.0), (1.5, 1, 1.0)):
        problem, reduced = shares(Case(loss, (latency,), (limit,)))

        assert len(reduced.free) == len(reduced.edge) == len(reduced.excess) == binds
        assert reduced.pairwise.values.shape[1] == 1 + binds
        assert SOLVERS.build(solver).solve(problem).loss == least


def test_at_the_last_digit_a_cell_is_no_worse_and_one_more_is() -> None:
    """Dominated is what loses and costs at least as much, by the last digit of either."""
    up, down = np.nextafter(1.0, 2.0), np.nextafter(1.0, 0.0)
    for other, is_kept in ((1.0, False), (up, False), (down, True)):
        for row in (([[1.0, 1.0]], [[0.5, 0.5]]), ([[0.5, 0.5]], [[1.0, 1.0]])):
            loss, cost = np.array(row[0]), np.array(row[1])
            (loss if loss[0, 1] == 1.0 else cost)[0, 1] = other
            _, reduced = shares(Case(Cost(loss), (Cost(cost),), (10.0,)))
            # Of two of which one is better in one thing alone, only that one stays.
            assert reduced.usable.tolist() == [[not is_kept, is_kept]]
