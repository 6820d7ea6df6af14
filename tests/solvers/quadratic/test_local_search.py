"""Local search with interactions, against exhaustive search."""

import tracemalloc
from dataclasses import replace
from itertools import product
from math import fsum
from typing import Any

import numpy as np
import pytest

import mpq
from mpq.errors import InputError
from mpq.problem.solution import Status
from mpq.solvers import IntegerLinearProgram, LocalSearch
from mpq.solvers.quadratic import local_search as module_under_test
from mpq.solvers.quadratic.moves import Quadratic
from tests.solvers.quadratic.cases import KINDS, Case, of_kind, random_case


def test_sums_in_another_order_leave_something_to_shake() -> None:
    """The only assignment within a limit that large numbers cancel to, and a hair beyond by sum."""
    base = np.array([[1e9 / 3], [0.1], [-1e9 / 3]])
    cost = np.hstack([base, base + 5.0])
    limit = fsum(cost[:, 0])
    assert cost[:, 0].sum() > limit * (1 + 1e-12)
    factor = np.ones((2, 3, 2))
    case = Case(factor, np.array([[1.0, 0.0]] * 3), (cost,), (limit,))

    found = LocalSearch(num_restarts=3).solve(case.problem())

    assert found.columns is not None
    assert found.columns.tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_assignment_is_nearly_always_found(kind: str) -> None:
    """In 20 problems with 4,096 assignments: 19 exactly, and none is missed by more than 10 %."""
    ratios = []
    for seed in range(20):
        case = of_kind(random_case(seed, num_layers=6), kind)
        solution = LocalSearch(num_restarts=40).solve(case.problem())
        best = case.losses().min()
        assert solution.loss >= best * (1 - 1e-5)
        assert solution.bound is not None
        assert solution.bound <= best * (1 + 1e-5)
        ratios.append(solution.loss / best)

    assert sum(ratio < 1 + 1e-5 for ratio in ratios) >= 19
    assert max(ratios) < 1.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_an_answer_is_feasible_and_no_worse_than_the_additive_one(kind: str, seed: int) -> None:
    """Budgets, ties and fixed layers hold; the loss is that of the problem."""
    case = of_kind(random_case(seed, num_layers=20), kind)
    problem = case.problem()
    start = IntegerLinearProgram().solve(problem.additive())
    assert start.columns is not None

    solution = LocalSearch(num_restarts=20).solve(problem)

    assert solution.columns is not None
    assert problem.is_feasible(solution.columns)
    assert solution.loss == problem.loss_of(solution.columns)
    assert solution.loss < problem.loss_of(start.columns)
    assert solution.solver == "local-search"
    assert solution.gap is not None
    assert (solution.status is Status.OPTIMAL) == (solution.gap == 0)


def test_no_exchange_of_two_layers_is_better() -> None:
    """Every single change and every pair of changes is tried, by the problem's own arithmetic."""
    problem = random_case(3, num_layers=8).problem()

    solution = LocalSearch(num_restarts=0).solve(problem)

    chosen = solution.columns
    assert chosen is not None
    for one, other in product(product(range(8), range(4)), repeat=2):
        changed = chosen.copy()
        changed[one[0]], changed[other[0]] = one[1], other[1]
        if problem.is_feasible(changed):
            assert problem.loss_of(changed) >= solution.loss * (1 - 1e-9)


def test_what_cancels_is_found_and_proved() -> None:
    """Two layers with opposite errors lose nothing together, and nothing is less than that."""
    factor = np.array([[[2.0, 1.0, 2.0], [-2.0, 1.0, 3.0]]])
    problem = Case(factor, 0.5 * factor[0] ** 2).problem()

    solution = LocalSearch().solve(problem)

    assert solution.columns is not None
    assert solution.columns.tolist() == [0, 0]
    assert (solution.loss, solution.bound, solution.status) == (0.0, 0.0, Status.OPTIMAL)


@pytest.mark.parametrize("has_interactions", [True, False])
def test_additive_losses_are_solved_exactly(has_interactions: bool) -> None:
    """Without interactions, and where they are shrunk away: the answer of the ILP, proved."""
    case = replace(random_case(0), shrinkage=1.0)
    problem = case.problem() if has_interactions else case.problem().additive()

    solution = LocalSearch().solve(problem)

    expected = IntegerLinearProgram().solve(problem.additive())
    assert solution.loss == pytest.approx(expected.loss, rel=1e-12)
    assert solution.bound == pytest.approx(expected.loss, rel=1e-9)
    assert has_interactions or solution.status is Status.OPTIMAL
    assert solution.solver.startswith("local-search")


def test_a_bound_holds_where_cells_are_negative() -> None:
    """As in a table around an incumbent, where some changes gain."""
    for seed in range(10):
        case = random_case(seed)
        slopes = np.random.default_rng(seed).standard_normal(case.loss.shape) * 3
        near = replace(case, loss=case.loss + slopes, shrinkage=0.3)

        solution = LocalSearch(num_restarts=20).solve(near.problem())

        assert near.loss.min() < 0
        assert solution.bound is not None
        assert solution.bound <= near.losses().min() + 1e-5 * abs(solution.bound)


def test_an_infeasible_problem_is_recognised() -> None:
    """With the shortfalls, as from the exact solver."""
    case = random_case(0)
    short = replace(case, limits=(case.costs[0].min(axis=1).sum() - 1, case.limits[1]))

    solution = LocalSearch().solve(short.problem())

    assert solution.status is Status.INFEASIBLE
    assert solution.columns is None
    assert [s.resource for s in solution.shortfalls] == ["r0", "r1"]


@pytest.mark.parametrize("scale", [1e-9, 0.1, 1e12])
def test_a_limit_at_the_smallest_cost_can_be_met(scale: float) -> None:
    """Exactly one assignment is left, whatever the rounding of sums says."""
    cost = (np.arange(20.0).reshape(5, 4) + 1) * scale
    case = random_case(0, num_layers=5)
    limit = float(sum(cost[:, 0]))

    solution = LocalSearch().solve(replace(case, costs=(cost,), limits=(limit,)).problem())

    assert solution.columns is not None
    assert solution.columns.tolist() == [0] * 5


def test_rounding_errors_do_not_go_round_in_circles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Around an incumbent its own loss is a constant, that is 0; equal layers may be exchanged."""
    descents = [0]
    changes = Quadratic.changes

    def counted(*args: Any) -> Any:
        descents[0] += 1
        assert descents[0] < 20_000
        return changes(*args)

    monkeypatch.setattr(Quadratic, "changes", counted)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        shape = (int(rng.integers(3, 20)), 3, 4)
        rows = rng.standard_normal(shape)[:, rng.integers(0, 3, 9)]  # [S, L, B]
        incumbent = rng.integers(0, 4, 9)
        factor = rows - rows[:, range(9), incumbent][:, :, None]
        residual = rng.standard_normal(len(rows)) * 10.0 ** rng.uniform(-3, 1)
        loss = 0.5 * (factor**2).mean(axis=0) + (residual[:, None, None] * factor).mean(axis=0)
        cost = np.tile(np.arange(4.0) + 1, (9, 1))
        limit = float(cost[range(9), incumbent].sum())

        solution = LocalSearch(num_restarts=1).solve(
            Case(factor, loss, (cost,), (limit,)).problem()
        )

        assert solution.columns is not None


def test_where_there_are_too_many_pairs_a_share_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the budgets, and nearly as good: all groups have their turn, a few at a time."""
    problem = random_case(1, num_layers=20).problem()
    every = LocalSearch(num_restarts=20).solve(problem)
    start = IntegerLinearProgram().solve(problem.additive())
    assert start.columns is not None

    monkeypatch.setattr(module_under_test, "_MAX_PAIRED", 20)
    some = LocalSearch(num_restarts=60).solve(problem)

    assert some.columns is not None
    assert problem.is_feasible(some.columns)
    assert some.loss < 1.1 * every.loss
    assert some.loss < problem.loss_of(start.columns)


def test_hundreds_of_layers_are_searched_without_a_matrix_of_all_moves() -> None:
    """Nothing of the size of all pairs of 2,400 moves is kept: 46 MB."""
    problem = random_case(0, num_layers=600, num_rows=6).problem()
    start = IntegerLinearProgram().solve(problem.additive())
    assert start.columns is not None
    tracemalloc.start()

    solution = LocalSearch(num_restarts=1).solve(problem)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert solution.loss < problem.loss_of(start.columns)
    assert peak < 40e6


def test_restarts_never_hurt() -> None:
    """Each begins at the best answer so far, and over several problems they help."""
    problems = [random_case(seed, num_layers=12).problem() for seed in range(6)]

    none, many = (
        np.array([LocalSearch(num_restarts=count).solve(p).loss for p in problems])
        for count in (0, 10)
    )

    assert (many <= none).all()
    assert (many < none).any()


def test_the_same_seed_gives_the_same_answer() -> None:
    """The global random state neither matters nor changes."""
    problem = random_case(2, num_layers=15).problem()
    np.random.seed(1)
    first = LocalSearch(20, seed=4).solve(problem)
    np.random.seed(2)
    expected = np.random.random(3)
    np.random.seed(2)

    second = LocalSearch(20, seed=4).solve(problem)

    assert (first.loss, first.bound) == (second.loss, second.bound)
    np.testing.assert_array_equal(first.columns, second.columns)
    np.testing.assert_array_equal(np.random.random(3), expected)


def test_the_unit_of_the_loss_changes_no_assignment() -> None:
    """Nats or millionths of them."""
    case = replace(random_case(4), shrinkage=0.3)

    once = LocalSearch().solve(case.problem())
    smaller = replace(case, factor=case.factor * 2.0**-10, loss=case.loss * 2.0**-20)
    found = LocalSearch().solve(smaller.problem())

    np.testing.assert_array_equal(found.columns, once.columns)
    assert found.loss == pytest.approx(once.loss * 2.0**-20)


@pytest.mark.parametrize("options", [{"num_restarts": -1}, {"seed": -1}])
def test_options_that_make_no_sense_are_refused(options: dict[str, int]) -> None:
    """The message has both numbers."""
    with pytest.raises(InputError, match="needs num_restarts >= 0 and seed >= 0; got"):
        LocalSearch(**options)


def test_local_search_is_found_by_name_with_options() -> None:
    """What ``--solver`` takes."""
    assert mpq.SOLVERS.build("local-search:num_restarts=5", seed=7) == LocalSearch(5, 7)
