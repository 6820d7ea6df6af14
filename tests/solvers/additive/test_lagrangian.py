"""Lagrangian relaxation and what closes its gap, against solvers that share no code with it."""

from collections.abc import Callable
from itertools import pairwise, product
from math import fsum
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from mpq.errors import InputError
from mpq.problem.problem import Problem
from mpq.problem.solution import Status
from mpq.solvers import DynamicProgramming, IntegerLinearProgram, Lagrangian
from mpq.solvers.additive import lagrangian as module_under_test
from mpq.solvers.additive import multipliers as module_of_multipliers
from mpq.solvers.additive.hull import Hull
from mpq.solvers.additive.multipliers import Dual, maximised
from mpq.solvers.additive.presolve import Reduced

Make = Callable[..., Problem]
Floats = npt.NDArray[np.float64]


def numbers(
    seed: int, layers: int, precisions: int, resources: int
) -> tuple[Floats, Floats, list[float]]:
    """Losses that fall by four with every bit, layers of unlike sizes, limits that bind."""
    rng = np.random.default_rng(seed)
    bits = np.arange(2, 2 + precisions)
    size = rng.lognormal(8, 1.2, (resources, layers, 1)).round()
    noise = rng.integers(0, 9, (resources, layers, precisions)) if resources > 1 else 0
    costs = np.sort(size * bits + noise * size // 9, axis=2)
    loss = rng.lognormal(0, 1.5, (layers, 1)) * 4.0**-bits * rng.lognormal(0, 0.1, (layers, 1))
    loss = loss * rng.lognormal(0, 0.1, (layers, precisions))
    low, high = costs.min(axis=2).sum(axis=1), costs.max(axis=2).sum(axis=1)
    return loss, costs, (low + rng.uniform(0.2, 0.7, resources) * (high - low)).tolist()


@pytest.mark.parametrize("seed", range(10))
def test_agrees_with_dynamic_programming(make_problem: Make, seed: int) -> None:
    """One budget of whole bytes, 60 layers at 6 precisions: two proofs of the same loss."""
    loss, costs, limits = numbers(seed, 60, 6, 1)
    costs = np.ceil(costs / 2000)
    problem = make_problem(loss, costs, [round(limits[0] / 2000)])

    found = Lagrangian().solve(problem)

    expected = DynamicProgramming(grid=100_000).solve(problem)
    assert (found.status, expected.status) == (Status.OPTIMAL, Status.OPTIMAL)
    assert found.loss == pytest.approx(expected.loss, rel=1e-12)
    assert found.bound == pytest.approx(expected.loss, rel=1e-12)


@pytest.mark.parametrize("unit", [1e-30, 1e-12, 1e12, 1e30])
def test_several_budgets_in_any_unit_of_the_loss(make_problem: Make, unit: float) -> None:
    """Linear programs call numbers from 1e20 on infinite, and what is tiny none at all."""
    loss, costs, limits = numbers(0, 5, 3, 2)
    problem = make_problem(loss * unit, costs, limits)

    found = Lagrangian().solve(problem)

    best = min(
        fsum(loss[range(5), columns])
        for columns in product(range(3), repeat=5)
        if all(
            fsum(cost[range(5), columns]) <= limit
            for cost, limit in zip(costs, limits, strict=True)
        )
    )
    assert found.status is Status.OPTIMAL
    assert found.loss / unit == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("resources", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_integer_program(make_problem: Make, seed: int, resources: int) -> None:
    """Several budgets, 50 layers at 5 precisions: HiGHS on the whole model finds the same."""
    problem = make_problem(*numbers(seed, 50, 5, resources))

    found = Lagrangian().solve(problem)

    expected = IntegerLinearProgram("HiGHS").solve(problem)
    assert (found.status, expected.status) == (Status.OPTIMAL, Status.OPTIMAL)
    assert found.loss == pytest.approx(expected.loss, rel=1e-9)


def test_twenty_thousand_layers_are_proved(make_problem: Make) -> None:
    """The size of a mixture of experts: proved, within the budget, with the loss that is said."""
    problem = make_problem(*numbers(0, 20_000, 8, 1))

    found = Lagrangian().solve(problem)

    assert found.columns is not None
    assert found.status is Status.OPTIMAL
    assert problem.is_feasible(found.columns)
    assert found.loss == fsum(problem.loss.values[range(20_000), found.columns])


@pytest.mark.parametrize("seed", range(5))
def test_costs_that_follow_the_losses_are_solved(make_problem: Make, seed: int) -> None:
    """The hard kind of knapsack: every cell has nearly the same price."""
    rng = np.random.default_rng(seed)
    cost = rng.integers(1, 1000, (1, 40, 4)).astype(np.float64)
    loss = 1000 - cost[0] + rng.integers(0, 3, (40, 4))
    limit = round(fsum(cost[0].mean(axis=1)))
    problem = make_problem(loss, cost, [limit])

    found = Lagrangian().solve(problem)

    expected = DynamicProgramming(grid=limit).solve(problem)
    assert found.status is Status.OPTIMAL
    assert found.loss == expected.loss


@pytest.mark.parametrize("seed", range(60))
def test_losses_and_costs_in_no_order(make_problem: Make, seed: int) -> None:
    """Five layers at four precisions, more of which may lose more: against all assignments."""
    rng = np.random.default_rng(seed)
    loss, cost = rng.integers(0, 50, (2, 5, 4)).astype(np.float64)
    low, high = cost.min(axis=1).sum(), cost.max(axis=1).sum()
    limit = float(np.floor(low + rng.uniform(0.1, 0.9) * (high - low)))

    found = Lagrangian().solve(make_problem(loss, cost[None], [limit]))

    rows = range(5)
    every = (list(columns) for columns in product(range(4), repeat=5))
    best = min(loss[rows, c].sum() for c in every if cost[rows, c].sum() <= limit)
    assert (found.status, found.loss, found.bound) == (Status.OPTIMAL, best, best)


@pytest.mark.parametrize("seed", range(4))
def test_too_many_states_are_left_to_branch_and_bound(
    make_problem: Make, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Where dynamic programming gives up, the answer is the same and proved."""
    problem = make_problem(*numbers(seed, 30, 4, 1))
    expected = Lagrangian().solve(problem)

    monkeypatch.setattr(module_under_test, "_MAX_STATES", 1)
    found = Lagrangian().solve(problem)

    assert found.status is Status.OPTIMAL
    assert found.loss == pytest.approx(expected.loss, rel=1e-9)


@pytest.mark.parametrize("gap", [0.1, 1e-2, 1e-3])
def test_a_gap_is_kept(make_problem: Make, gap: float) -> None:
    """Stopped early, the bound says how far the answer may be from the best one."""
    problem = make_problem(*numbers(3, 200, 8, 3))
    floor = problem.loss.values.min(axis=1).sum()

    found = Lagrangian(gap=gap).solve(problem)

    assert found.bound is not None
    assert found.status in (Status.FEASIBLE, Status.OPTIMAL)
    assert found.loss - found.bound <= gap * (found.loss - floor) * (1 + 1e-9)
    assert found.bound <= Lagrangian(gap=1e-4).solve(problem).loss


@pytest.mark.parametrize("seed", range(3))
def test_the_first_answer_within_the_gap_has_a_bound(make_problem: Make, seed: int) -> None:
    """That of the multipliers: half of the loss may be open, a twentieth is."""
    problem = make_problem(*numbers(seed, 20, 5, 2))
    floor = problem.loss.values.min(axis=1).sum()

    found = Lagrangian(gap=0.5).solve(problem)

    assert found.status is Status.FEASIBLE
    assert found.bound is not None
    assert found.loss - found.bound <= 0.1 * (found.loss - floor)
    assert found.bound <= Lagrangian().solve(problem).loss


def test_what_only_whole_layers_cannot_meet_is_infeasible(make_problem: Make) -> None:
    """Half of each precision would meet both budgets; the multipliers alone cannot tell."""
    cost = np.array([[[0.0, 2.0]], [[2.0, 0.0]]])

    found = Lagrangian().solve(make_problem([[1.0, 2.0]], cost, [1.0, 1.0]))

    assert found.status is Status.INFEASIBLE
    assert found.conflict == ("r0", "r1")


@pytest.mark.parametrize("options", [{"gap": -0.1}, {"gap": 1.0}, {"gap": float("nan")}])
def test_a_gap_is_a_share(options: dict[str, Any]) -> None:
    """The message has the number."""
    with pytest.raises(InputError, match="lagrangian: gap is a share"):
        Lagrangian(**options)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("solver", [Lagrangian, IntegerLinearProgram])
def test_a_time_limit_is_a_positive_number(
    solver: type[Lagrangian | IntegerLinearProgram], seconds: float
) -> None:
    """Not a number of seconds that HiGHS would take for no limit."""
    with pytest.raises(InputError, match="time_limit_s is a positive number of seconds; got"):
        solver(time_limit_s=seconds)


@pytest.mark.parametrize("resources", [1, 2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_the_bound_is_that_of_the_linear_program(
    make_problem: Make, seed: int, resources: int
) -> None:
    """At the best multipliers, which no random ones surpass."""
    problem = make_problem(*numbers(seed, 30, 4, resources))
    reduced = Reduced.of(problem.grouped)
    rng = np.random.default_rng(seed)

    dual, _ = maximised(reduced)

    rows = np.kron(np.eye(30), np.ones(4))
    expected = linprog(
        reduced.rise.ravel(),
        A_ub=reduced.excess.reshape(len(reduced.excess), -1),
        b_ub=np.ones(len(reduced.excess)),
        A_eq=rows,
        b_eq=np.ones(30),
        bounds=[(0, float(cell)) for cell in reduced.usable.ravel()],
    )
    assert dual.bound == pytest.approx(expected.fun, rel=1e-7)
    for _ in range(50):
        other = dual.multipliers * rng.lognormal(0, 0.3, len(dual.multipliers))
        assert Dual.at(reduced, other).bound <= dual.bound + 1e-12 * reduced.worst


@pytest.mark.parametrize("seed", range(2))
def test_linear_programs_take_in_the_cells_that_they_lack(
    make_problem: Make, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """With few planes and few cells at first, the bound is the same in the end."""
    reduced = Reduced.of(make_problem(*numbers(seed, 50, 5, 8)).grouped)
    expected, _ = maximised(reduced)

    monkeypatch.setattr(module_of_multipliers, "_MAX_PLANES", 2)
    monkeypatch.setattr(module_of_multipliers, "_PROGRAM_CELLS", 20)
    dual, _ = maximised(reduced)

    assert dual.bound == pytest.approx(expected.bound, rel=1e-9)


@given(
    cells=st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 9), st.booleans()), min_size=1, max_size=6
    )
)
def test_the_hull_is_what_no_mixture_undercuts(cells: list[tuple[int, int, bool]]) -> None:
    """Corners by the definition: below every line between two others, none costing for nothing."""
    cost, loss, usable = (np.array([column]) for column in zip(*cells, strict=True))
    usable[0, 0] = True
    points = sorted({(c, v) for c, v, u in zip(cost[0], loss[0], usable[0], strict=True) if u})
    useful = [
        p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)
    ]
    corners = [
        p
        for p in useful
        if not any(
            (p[0] - a[0]) * (b[1] - a[1]) <= (p[1] - a[1]) * (b[0] - a[0])
            for a, b in product(useful, useful)
            if a[0] < p[0] < b[0]
        )
    ]

    hull = Hull.of(loss.astype(np.float64), cost.astype(np.float64), usable)

    path = [int(hull.start[0]), *hull.column.tolist()]
    assert [(cost[0, c], loss[0, c]) for c in path] == corners
    assert hull.cost.tolist() == [b[0] - a[0] for a, b in pairwise(corners)]
    assert hull.gain.tolist() == [a[1] - b[1] for a, b in pairwise(corners)]
