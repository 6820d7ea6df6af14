"""Integer programs with cuts, against exhaustive search and the other exact solver."""

from dataclasses import replace

import numpy as np
import pytest

import mpq
from mpq.errors import InputError
from mpq.problem.solution import Status
from mpq.solvers import BranchAndBound, OuterApproximation
from tests.solvers.additive.cases import conversions, interacting
from tests.solvers.quadratic.cases import KINDS, Case, of_kind, random_case


@pytest.mark.parametrize("backend", ["HiGHS", "CBC"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_is_within_the_gap_of_the_best(kind: str, backend: str) -> None:
    """Of 1,024 assignments; the bound is below the best, the answer close above it."""
    for seed in range(3):
        case = of_kind(random_case(seed, num_layers=6 if kind == "tied" else 5), kind)
        best = case.losses().min()

        found = OuterApproximation(gap=1e-3, backend=backend).solve(case.problem())

        assert found.columns is not None
        assert case.problem().is_feasible(found.columns)
        assert found.bound is not None
        assert found.bound <= best + 1e-6 * abs(best)
        assert found.loss <= best + 1.1e-3 * abs(best)
        assert found.status in (Status.OPTIMAL, Status.FEASIBLE)


@pytest.mark.parametrize("backend", ["HiGHS", "CBC"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gap_is_closed(kind: str, backend: str) -> None:
    """Also by CBC, whose bound PuLP does not tell before it has searched everything."""
    case = of_kind(random_case(0, num_layers=6 if kind == "tied" else 5), kind)

    found = OuterApproximation(gap=1e-3, backend=backend).solve(case.problem())

    assert found.bound is not None
    assert found.loss - found.bound <= 1e-3 * found.loss


@pytest.mark.parametrize("backend", ["HiGHS", "CBC"])
@pytest.mark.parametrize("seed", range(4))
def test_a_gap_that_is_closed_whole_is_called_so(seed: int, backend: str) -> None:
    """What the bound owes to the program's tolerances makes no optimum a mere answer."""
    case = random_case(seed, num_layers=5)

    found = OuterApproximation(gap=0.0, backend=backend).solve(case.problem())

    assert found.loss == pytest.approx(case.losses().min(), rel=1e-12)
    assert found.status is Status.OPTIMAL


@pytest.mark.parametrize("seed", range(3))
def test_two_exact_solvers_agree(seed: int) -> None:
    """Eight layers, two budgets: the relaxations share nothing but the problem."""
    problem = replace(random_case(seed, num_layers=8, num_rows=40), shrinkage=0.3).problem()

    found = OuterApproximation(gap=1e-4).solve(problem)

    expected = BranchAndBound().solve(problem)
    assert expected.status is Status.OPTIMAL
    assert found.bound is not None
    assert found.bound <= expected.loss * (1 + 1e-9)
    assert found.loss == pytest.approx(expected.loss, rel=1.1e-4)


def test_out_of_time_the_bound_still_holds() -> None:
    """The status says so, and the answer is the local search's or better."""
    problem = random_case(0, num_layers=20).problem()

    found = OuterApproximation(gap=0.0, time_limit_s=0.3).solve(problem)

    assert found.status is Status.TIME_LIMIT
    assert found.bound is not None
    assert found.bound <= BranchAndBound(time_limit_s=5).solve(problem).loss


@pytest.mark.parametrize("size", [0.0, 1e3, 1e7])
def test_what_the_relaxation_proves_is_said_without_time_for_more(size: float) -> None:
    """Also where it meets the loss to within the rounding of numbers that cancel."""
    factor = np.array([[[9.0, 4.0], [6.0, 3.0], [6.0, 1.0]]])
    loss = 0.5 * factor[0] ** 2
    case = Case(factor, loss + size * np.array([[1.0], [-1.0], [0.0]]))

    found = OuterApproximation(gap=0.0, time_limit_s=1e-9).solve(case.problem())

    assert found.loss == 0.5 * (4 + 3 + 1) ** 2
    assert found.bound is not None
    assert found.loss - found.bound <= 1e-6 * found.loss


def test_exact_solvers_of_interactions_take_as_long() -> None:
    """One may take the other's place: unless it is told, neither takes more than a minute."""
    assert OuterApproximation().time_limit_s == BranchAndBound().time_limit_s == 60.0


@pytest.mark.parametrize("shrinkage", [0.0, 1.0])
def test_what_is_additive_is_left_to_the_exact_solver(shrinkage: float) -> None:
    """No interactions, or none that are left."""
    problem = replace(random_case(0), shrinkage=shrinkage).problem()
    problem = problem if shrinkage else problem.additive()

    found = OuterApproximation().solve(problem)

    assert found.solver == "outer-approximation (lagrangian)"
    assert found.status is Status.OPTIMAL


def test_an_infeasible_problem_is_recognised() -> None:
    """With the shortfalls."""
    case = random_case(0)
    limits = (float(case.costs[0].min(axis=1).sum()) - 1, case.limits[1])

    found = OuterApproximation().solve(replace(case, limits=limits).problem())

    assert found.status is Status.INFEASIBLE
    assert [s.resource for s in found.shortfalls] == ["r0", "r1"]


def test_errors_that_cancel_lose_nothing() -> None:
    """A loss of 0 is proved as well."""
    factor = np.array([[[2.0, 1.0, 2.0], [-2.0, 1.0, 3.0]]])
    case = replace(random_case(0, 2), factor=factor, loss=0.5 * factor[0] ** 2, costs=(), limits=())

    found = OuterApproximation(gap=0.0).solve(case.problem())

    assert found.loss == 0.0
    assert found.bound == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("options", ["gap=1", "gap=-1", "time_limit_s=0", "time_limit_s=nan"])
def test_options_that_make_no_sense_are_refused(options: str) -> None:
    """As for the other exact solvers."""
    with pytest.raises(InputError, match="outer-approximation:"):
        mpq.SOLVERS.build(f"outer-approximation:{options}")


@pytest.mark.parametrize("seed", [3, 5, 10, 32])
def test_errors_of_any_size_are_taken(seed: int) -> None:
    """Over 14 decades, some far beyond all that an assignment would lose: the bound holds."""
    case = random_case(seed, num_layers=3)
    decades = np.random.default_rng(seed).integers(-7, 8, (1, *case.loss.shape))
    factor = case.factor * 10.0**decades
    wide = replace(case, factor=factor, loss=0.5 * (factor**2).mean(axis=0))

    found = OuterApproximation().solve(wide.problem())

    best = wide.losses().min()
    assert found.bound is not None
    assert found.bound <= best * (1 + 1e-6)
    assert found.loss <= best * (1 + 1.1e-3)


@pytest.mark.parametrize("seed", range(8))
def test_costs_and_losses_of_any_size_are_taken(seed: int) -> None:
    """Over 18 decades, a cell alone far beyond a limit: no row of the program is lost."""
    case = random_case(seed, num_layers=4)
    rng = np.random.default_rng(seed)
    spread = 10.0 ** rng.integers(-9, 9, case.loss.shape)
    costs = (case.costs[0] * spread, case.costs[1])
    limits = (float(costs[0].min(axis=1).sum()) * 1.5, case.limits[1])
    factor = case.factor * 10.0 ** rng.integers(-4, 5, (1, *case.loss.shape))
    wide = replace(
        case, factor=factor, loss=0.5 * (factor**2).mean(axis=0), costs=costs, limits=limits
    )
    best = wide.losses().min()

    found = OuterApproximation(time_limit_s=5.0).solve(wide.problem())

    if not np.isfinite(best):
        assert found.status is Status.INFEASIBLE
        return
    assert found.columns is not None
    assert wide.problem().is_feasible(found.columns)
    assert found.bound is not None
    assert found.bound <= best * (1 + 1e-5)
    assert found.loss >= best * (1 - 1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_costs_of_pairs_are_in_what_is_proved(seed: int) -> None:
    """The best of all within a limit that conversions break, called so: its bound has met it."""
    case = conversions(seed)
    problem = interacting(seed, case)
    best = min(problem.loss_of(np.array(columns)) for columns in case.feasible())

    found = OuterApproximation(gap=0.0).solve(problem)

    assert found.status is Status.OPTIMAL
    assert found.loss == pytest.approx(best)
    assert found.bound == pytest.approx(best, rel=1e-6)
