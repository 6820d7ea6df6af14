"""The convex relaxation against exhaustive search, and against a solver that knows no structure."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import LinearConstraint, minimize

from mpq.solvers.quadratic.convex_relaxation import relaxed
from mpq.solvers.quadratic.moves import Quadratic
from mpq.solvers.quadratic.relaxed_start import core, rounded
from tests.solvers.quadratic.cases import KINDS, Case, of_kind, random_case


def least_with_each(case: Case) -> tuple[Quadratic, float, np.ndarray]:
    """The least loss of all assignments, and that of those with each move ``[M]``."""
    quadratic = Quadratic.of(case.problem())
    losses = case.losses()
    shape = case.loss.shape
    every = np.array(np.unravel_index(np.arange(len(losses)), (shape[1],) * shape[0])).T
    members = [rows[0] for rows in case.problem().grouped.members]
    taken = every[:, members]  # [A, G]
    found = [
        losses[taken[:, group] == column].min()
        for group, column in zip(quadratic.group, quadratic.column, strict=True)
    ]
    return quadratic, float(losses.min()), np.array(found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(6))
def test_no_assignment_loses_less_than_the_bounds(kind: str, seed: int) -> None:
    """Neither the best of all, nor the best with each single move; the bounds are worth much."""
    quadratic, best, with_move = least_with_each(of_kind(random_case(seed, num_layers=6), kind))

    found = relaxed(quadratic)

    assert found.bound <= best
    assert (found.reduced_cost >= 0).all()
    assert (found.bound + found.reduced_cost <= with_move * (1 + 1e-9)).all()
    # Nothing at all is what the quadratic form's being at least 0 proves.
    floor = float(np.minimum.reduceat(quadratic.linear, quadratic.starts).sum())
    assert best - found.bound < 0.9 * (best - floor)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_rows", [3, 40])
def test_the_bound_is_the_relaxations_optimum(kind: str, num_rows: int) -> None:
    """As a solver of any smooth program finds it, with fewer and more examples than moves."""
    case = of_kind(random_case(2, num_layers=6, num_rows=num_rows), kind)
    quadratic = Quadratic.of(case.problem())
    size = len(quadratic.group)
    sums = (quadratic.group == np.arange(quadratic.group[-1] + 1)[:, None]).astype(np.float64)

    found = relaxed(quadratic)

    other = minimize(
        lambda x: quadratic.linear @ x + 0.5 * x @ quadratic.gram @ x,
        1 / np.bincount(quadratic.group)[quadratic.group],
        jac=lambda x: quadratic.linear + quadratic.gram @ x,
        hess=lambda _: quadratic.gram,
        method="trust-constr",
        bounds=[(0, 1)] * size,
        constraints=[
            LinearConstraint(sums, 1, 1),
            LinearConstraint(quadratic.costs, -np.inf, quadratic.limits),
        ],
        options={"gtol": 1e-10, "xtol": 1e-12, "maxiter": 3000},
    )
    assert found.bound == pytest.approx(other.fun, rel=1e-4)
    assert found.bound <= other.fun * (1 + 1e-6)
    together = found.share @ quadratic.rows
    loss = quadratic.linear @ found.share + 0.5 * together @ together
    assert loss == pytest.approx(found.bound, rel=1e-4)
    assert sums @ found.share == pytest.approx(1.0, abs=1e-6)
    assert (quadratic.costs @ found.share <= quadratic.limits * (1 + 1e-6)).all()


def test_two_moves_that_cancel_by_hand() -> None:
    """Half of an error of 2 and half of one of -2 lose nothing: alone each loses 2."""
    case = Case(np.array([[[2.0, -2.0]]]), np.array([[2.0, 2.0]]))

    found = relaxed(Quadratic.of(case.problem()))

    assert found.bound == pytest.approx(0.0, abs=1e-6)
    assert found.share == pytest.approx([0.5, 0.5], abs=1e-4)


def test_a_multiplier_is_loss_for_a_unit_of_the_budget() -> None:
    """Errors too small to matter beside the table: 3 nats less for 6 bytes more."""
    case = Case(np.full((1, 1, 2), 1e-9), np.array([[4.0, 1.0]]), (np.array([[2.0, 8.0]]),), (5.0,))

    found = relaxed(Quadratic.of(case.problem()))

    assert found.multiplier == pytest.approx([0.5], rel=1e-4)
    assert found.bound == pytest.approx(2.5, rel=1e-5)
    assert found.share == pytest.approx([0.5, 0.5], abs=1e-4)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_units_change_nothing(scale: float) -> None:
    """Of the loss and of the costs."""
    case = random_case(4, num_layers=6)
    other = replace(
        case,
        factor=case.factor * math.sqrt(scale),
        loss=case.loss * scale,
        costs=tuple(cost / scale for cost in case.costs),
        limits=tuple(limit / scale for limit in case.limits),
    )

    one, same = relaxed(Quadratic.of(case.problem())), relaxed(Quadratic.of(other.problem()))

    assert same.bound == pytest.approx(scale * one.bound, rel=1e-5)


@pytest.mark.parametrize("deadline", [-math.inf, 0.0])
def test_out_of_time_a_bound_still_holds(deadline: float) -> None:
    """What was known before the first iteration."""
    case = random_case(1, num_layers=6)

    found = relaxed(Quadratic.of(case.problem()), deadline)

    assert found.bound <= case.losses().min()


def test_a_limit_that_leaves_nothing_free_is_met() -> None:
    """There is a single assignment: the bound is at most its loss."""
    case = random_case(0, num_layers=4)
    tight = replace(case, costs=(case.costs[0],), limits=(float(case.costs[0].min(axis=1).sum()),))

    found = relaxed(Quadratic.of(tight.problem()))

    assert math.isfinite(found.bound)
    assert found.bound <= tight.losses().min() * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_a_decade_more_or_less_for_every_number(seed: int) -> None:
    """Over eight decades, some cells beyond all limits: the bound holds."""
    case = random_case(seed, num_layers=4)
    rng = np.random.default_rng(seed)
    factor = case.factor * 10.0 ** rng.integers(-4, 5, (1, *case.loss.shape))
    wide = replace(case, factor=factor, loss=0.5 * (factor**2).mean(axis=0))
    best = wide.losses().min()

    found = relaxed(Quadratic.of(wide.problem()))

    assert found.bound <= best * (1 + 1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_rounded_shares_are_within_the_budgets(kind: str, seed: int) -> None:
    """And among the moves that a bound leaves are those of the best of all assignments."""
    case = of_kind(random_case(seed, num_layers=6), kind)
    problem, quadratic = case.problem(), Quadratic.of(case.problem())
    relaxation = relaxed(quadratic)

    columns = rounded(quadratic, relaxation.share)

    assert columns is not None
    assert problem.is_feasible(problem.grouped.expand(columns))
    left = core(quadratic, relaxation, quadratic.loss(columns), columns)
    losses = case.losses()
    best = np.array(np.unravel_index(losses.argmin(), (4,) * 6))
    members = [rows[0] for rows in problem.grouped.members]
    assert left[quadratic.moves(best[members])].all()
    assert left[quadratic.moves(columns)].all()
    # What is left has the same losses and costs.
    few = quadratic.among(left)
    assert few.loss(columns) == pytest.approx(quadratic.loss(columns))
    assert (few.group == quadratic.group[left]).all()


def test_what_no_single_change_repairs_is_not_rounded() -> None:
    """Two budgets that pull a single layer both ways."""
    costs = (np.array([[0.0, 2.0]]), np.array([[2.0, 0.0]]))
    case = Case(np.ones((1, 1, 2)), np.ones((1, 2)), costs, (1.0, 1.0))
    quadratic = Quadratic.of(case.problem())

    assert rounded(quadratic, relaxed(quadratic).share) is None
