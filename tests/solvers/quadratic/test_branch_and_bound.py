"""The exact solver for interactions, against exhaustive search."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpq.errors import InputError
from mpq.problem.solution import Status
from mpq.solvers import IntegerLinearProgram
from mpq.solvers.quadratic import bound as quadratic_bound
from mpq.solvers.quadratic import branch_and_bound as module_under_test
from mpq.solvers.quadratic.branch_and_bound import BranchAndBound
from tests.solvers.quadratic.cases import KINDS, Case, of_kind, random_case


@pytest.fixture
def nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small problems are relaxed and split too, instead of being tried in full."""
    monkeypatch.setattr(quadratic_bound, "MAX_ENUMERATED", 4)
    monkeypatch.setattr(module_under_test, "MAX_ENUMERATED", 4)


def require_optimum(case: Case, solver: BranchAndBound) -> None:
    """The answer is proved, and nothing that can be tried is better."""
    problem, best = case.problem(), case.losses().min()

    solution = solver.solve(problem)

    scale = max(abs(best), 1e-6 * np.abs(case.loss).max())
    assert solution.columns is not None
    assert problem.is_feasible(solution.columns)
    assert solution.loss == problem.loss_of(solution.columns)
    assert solution.loss == pytest.approx(best, abs=1e-6 * scale)
    assert solution.status is Status.OPTIMAL
    assert solution.bound is not None
    assert solution.loss - 1e-9 * scale <= solution.bound <= solution.loss


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("nothing_is_tried")
def test_the_best_assignment_is_found_and_proved(kind: str) -> None:
    """Without a good start, so that the tree must find it: 4,096 assignments."""
    for seed in range(6):
        case = of_kind(random_case(seed, num_layers=6), kind)
        require_optimum(case, BranchAndBound(num_restarts=0))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_layers=st.integers(1, 6),
    num_precisions=st.integers(1, 4),
    num_rows=st.integers(1, 8),
    shrinkage=st.sampled_from([0.0, 0.3, 0.99, 1.0]),
    slope=st.sampled_from([0.0, 1.0, 10.0]),
)
def test_random_problems_are_solved_exactly(
    seed: int, num_layers: int, num_precisions: int, num_rows: int, shrinkage: float, slope: float
) -> None:
    """One layer or precision, fewer rows than layers, negative cells, whatever the shrinkage."""
    case = random_case(seed, num_layers, num_rows)
    loss = case.loss + slope * np.random.default_rng(seed).standard_normal(case.loss.shape)
    columns = slice(num_precisions)
    require_optimum(
        replace(
            case,
            factor=case.factor[:, :, columns],
            loss=loss[:, columns],
            costs=tuple(cost[:, columns] for cost in case.costs),
            shrinkage=shrinkage,
        ),
        BranchAndBound(num_restarts=5),
    )


@pytest.mark.usefixtures("nothing_is_tried")
@pytest.mark.parametrize("change", ["zero", "no budget", "loose", "equal layers"])
def test_degenerate_problems_are_solved_exactly(change: str) -> None:
    """No factor at all, nothing that binds, and layers that may be exchanged."""
    case = random_case(3, num_layers=5)
    if change == "zero":
        case = replace(case, factor=np.zeros_like(case.factor), shrinkage=0.5)
    elif change == "no budget":
        case = replace(case, costs=(), limits=(), loss=case.loss * 0.2)
    elif change == "loose":
        case = replace(case, limits=(1e6, 1e9), loss=case.loss * 0.2)
    else:
        costs = tuple(np.tile(cost[:1], (5, 1)) for cost in case.costs)
        limits = tuple(float(cost.mean()) * 5 for cost in costs)
        factor, loss = np.repeat(case.factor[:, :1], 5, 1), np.repeat(case.loss[:1], 5, 0)
        case = Case(factor, loss, costs, limits)

    require_optimum(case, BranchAndBound())


@pytest.mark.parametrize("kind", KINDS)
def test_a_gap_is_kept_and_the_bound_holds(kind: str) -> None:
    """At 10 %, the answer may be another; it is never called optimal."""
    for seed in range(5):
        case = of_kind(random_case(seed, num_layers=6), kind)
        best = case.losses().min()

        solution = BranchAndBound(gap=0.1, num_restarts=0).solve(case.problem())

        assert solution.status is Status.FEASIBLE
        assert solution.bound is not None
        assert solution.gap is not None
        assert solution.gap <= 0.1 + 1e-9
        assert solution.bound <= best * (1 + 1e-9) <= solution.loss * (1 + 2e-6)


def test_at_the_time_limit_the_status_is_honest() -> None:
    """Too little time for one iteration: the local search's answer, with a bound that holds."""
    problem = random_case(0, num_layers=16).problem()

    solution = BranchAndBound(time_limit_s=0.05).solve(problem)

    assert solution.status is Status.TIME_LIMIT
    assert solution.columns is not None
    assert problem.is_feasible(solution.columns)
    proved = BranchAndBound(gap=0.1).solve(problem)
    assert proved.bound is not None
    assert solution.bound is not None
    assert solution.bound <= proved.loss
    assert proved.loss <= solution.loss * (1 + 0.1)


def test_too_many_moves_are_not_relaxed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the additive problem proves remains."""
    monkeypatch.setattr(module_under_test, "MAX_MOVES", 20)
    case = replace(random_case(0), shrinkage=0.5)

    solution = BranchAndBound().solve(case.problem())

    assert solution.status is Status.FEASIBLE
    assert solution.bound is not None
    assert 0 < solution.bound <= case.losses().min()


@pytest.mark.parametrize("has_interactions", [True, False])
def test_additive_losses_are_left_to_the_exact_solver(has_interactions: bool) -> None:
    """Without interactions, and where they are shrunk away."""
    case = replace(random_case(0), shrinkage=1.0)
    problem = case.problem() if has_interactions else case.problem().additive()

    solution = BranchAndBound().solve(problem)

    expected = IntegerLinearProgram().solve(problem.additive())
    assert (solution.loss, solution.status) == (expected.loss, Status.OPTIMAL)
    assert solution.solver.startswith("branch-and-bound (lagrangian")


def test_an_infeasible_problem_is_recognised() -> None:
    """With the shortfalls, as from the ILP."""
    case = random_case(0)
    short = replace(case, limits=(case.costs[0].min(axis=1).sum() - 1, case.limits[1]))

    solution = BranchAndBound().solve(short.problem())

    assert (solution.status, solution.columns) == (Status.INFEASIBLE, None)
    assert [s.resource for s in solution.shortfalls] == ["r0", "r1"]


@pytest.mark.parametrize("scale", [1e-9, 0.1, 1e12])
def test_limits_that_are_just_met(scale: float) -> None:
    """Costs whose sums round, and a limit that is the sum of the best assignment's."""
    case = random_case(1, num_layers=5)
    cost = (np.arange(20.0).reshape(5, 4) + 1) * scale
    for columns in ([0, 0, 0, 0, 0], [1, 0, 2, 0, 1]):
        limit = float(sum(cost[range(5), columns]))
        require_optimum(replace(case, costs=(cost,), limits=(limit,)), BranchAndBound())


def test_the_same_answer_twice() -> None:
    """The global random state neither matters nor changes."""
    problem = random_case(2, num_layers=12).problem()
    np.random.seed(1)
    first = BranchAndBound().solve(problem)
    np.random.seed(2)
    expected = np.random.random(3)
    np.random.seed(2)

    second = BranchAndBound().solve(problem)

    assert (first.loss, first.bound, first.status) == (second.loss, second.bound, second.status)
    np.testing.assert_array_equal(first.columns, second.columns)
    np.testing.assert_array_equal(np.random.random(3), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gap": 1.0}, "gap is a share, at least 0 and below 1; got 1.0"),
        ({"time_limit_s": 0.0}, "time_limit_s is a positive number of seconds; got 0.0"),
        ({"num_restarts": -1}, "needs num_restarts >= 0 and seed >= 0; got -1 and 0"),
        ({"seed": -2}, "needs num_restarts >= 0 and seed >= 0; got 200 and -2"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    """What was expected, and what came."""
    with pytest.raises(InputError, match=message):
        BranchAndBound(**options)


def test_restarts_end_with_the_time() -> None:
    """Ten million of them are not even counted: seconds would go by after the limit."""
    problem, start = random_case(0, num_layers=4).problem(), time.process_time()

    BranchAndBound(num_restarts=10**7, time_limit_s=0.05).solve(problem)

    assert time.process_time() - start < 0.6
