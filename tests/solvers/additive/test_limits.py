"""What a limit within the rounding of its own sum means: the same for every exact solver."""

from itertools import product
from math import fsum, inf, nextafter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.interactions import Interactions
from mpq.problem.problem import Problem
from mpq.problem.solution import Status
from mpq.problem.tolerances import LIMIT
from mpq.quantization.precision import Precision
from mpq.solvers import SOLVERS
from mpq.solvers.additive.milp import Effort, solve_cells
from mpq.solvers.additive.pulp_backend import Way

EXACT = ("lagrangian", "ilp:backend=HiGHS", "ilp:backend=CBC", "dynamic-programming")
PRECISIONS = (Precision.parse("w4a8"), Precision.parse("w8a8"))


def fixed_problem(costs: list[float], limit: float) -> Problem:
    """Layers without any choice, so that all depends on whether their sum is within the limit."""
    layers = tuple(f"l{i}" for i in range(len(costs)))
    table = CostTable("r", "bytes", layers, PRECISIONS, np.array([[c, 2 * c] for c in costs]))
    loss = CostTable("loss", "nats", layers, PRECISIONS, np.ones((len(costs), 2)))
    return Problem(
        loss, Constraints((Budget.of(table, limit),), fixed=dict.fromkeys(layers, PRECISIONS[0]))
    )


def limits_around(edge: float) -> list[float]:
    """An edge, its neighbours in float64, and both sides at a distance."""
    near = [nextafter(edge, -inf), edge, nextafter(edge, inf)]
    return [*near, edge * (1 - LIMIT / 2), edge * (1 - 3 * LIMIT), edge * (1 + 3 * LIMIT)]


@settings(max_examples=8)
@given(costs=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5))
@pytest.mark.parametrize("solver", EXACT)
def test_a_limit_at_the_sum_is_met_up_to_its_rounding(solver: str, costs: list[float]) -> None:
    """At the sum, a last digit off, and at the end of the slack: by one rule, stated once."""
    total = fsum(costs)
    for limit in limits_around(total) + limits_around(total / (1 + LIMIT)):
        is_met = total <= limit + LIMIT * abs(limit)

        found = SOLVERS.build(solver).solve(fixed_problem(costs, limit))

        assert found.status is (Status.OPTIMAL if is_met else Status.INFEASIBLE)


@pytest.mark.parametrize("seed", [15, 23, 28, 44, 88])
@pytest.mark.parametrize("solver", [*EXACT, "branch-and-bound", "outer-approximation:gap=0"])
def test_large_costs_that_a_constant_cancels(solver: str, seed: int) -> None:
    """The limit is met exactly, while sums in another order are off by more than it leaves free."""
    rng = np.random.default_rng(seed)
    losses = rng.random((4, 2))
    rng.standard_normal((3, 4, 2))
    base = rng.standard_normal(4) * 1e9
    costs = base[:, None] + rng.random((4, 2)) * 10.0 ** rng.choice([0, -3])
    constant, layers = -float(base.sum()), tuple("abcd")
    used = {c: fsum([constant, *costs[range(4), c]]) for c in product(range(2), repeat=4)}
    limit = sorted(used.values())[int(rng.integers(4))]
    best = min(fsum(losses[range(4), c]) for c in used if used[c] <= limit + LIMIT * abs(limit))
    table = CostTable("r", "bytes", layers, PRECISIONS, costs, constant)
    loss = CostTable("loss", "nats", layers, PRECISIONS, losses)
    nothing = Interactions(np.zeros((1, 4, 2))) if "-" in solver and solver not in EXACT else None

    found = SOLVERS.build(solver).solve(
        Problem(loss, Constraints((Budget.of(table, limit),)), nothing)
    )

    assert found.bound is not None
    assert found.bound <= best + 1e-6
    assert found.columns is not None
    assert used[tuple(found.columns.tolist())] <= limit + LIMIT * abs(limit)
    if found.status is Status.OPTIMAL:
        assert found.loss == pytest.approx(best)


def test_the_only_assignment_is_infeasible_once_it_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A program without variables has none to write a cut on: it must say so, not ``UNKNOWN``.

    What presolve does not see is played here by a problem that calls its last assignment
    infeasible.
    """
    problem = fixed_problem([1.0, 2.0], 4.0)
    monkeypatch.setattr(Problem, "is_feasible", lambda *_: False)

    found = solve_cells(problem, problem.grouped.allowed, Effort(Way("HiGHS")))

    assert found.status is Status.INFEASIBLE
    assert found.columns is None


@pytest.mark.parametrize("solver", [*EXACT[:3], "auto", "branch-and-bound"])
def test_the_best_assignment_may_use_the_slack_up(solver: str) -> None:
    """Its sum, taken in another order, is a last digit beyond: it is no worse an answer for that.

    Column 2 of the last layer uses up what the limit leaves, to the last digit of the slack.
    """
    costs = [
        [0.022489026243925892, 0.14922710126682928, 0.31966027830294413],
        [1.7719844310367798, 0.004738948545455045, 0.2764946954841767],
        [0.0010041628279438683, 29.260676189544487, 129.19790558383664],
    ]
    losses = np.array([[0.14, 0.7, 0.82], [0.98, 0.84, 0.42], [0.98, 0.97, 0.5]])
    layers = ("l0", "l1", "l2")
    precisions = (*PRECISIONS, Precision.parse("fp16"))
    table = CostTable("r", "bytes", layers, precisions, np.array(costs))
    budget = Budget.of(table, 129.2251335584968)
    problem = Problem(CostTable("loss", "nats", layers, precisions, losses), Constraints((budget,)))
    assert budget.is_met(np.array([0, 1, 2]))

    found = SOLVERS.build(solver).solve(problem)

    assert found.status is Status.OPTIMAL
    assert found.loss == pytest.approx(0.14 + 0.84 + 0.5)


@pytest.mark.parametrize("backend", ["HiGHS", "CBC"])
def test_an_answer_that_breaks_a_budget_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """It is not found again: the next one is the best of the others, and proved.

    An answer within the backend's tolerance is played by a problem that refuses the best one.
    """
    layers = ("l0", "l1")
    loss = CostTable("loss", "nats", layers, PRECISIONS, np.array([[5.0, 0.0], [7.0, 0.0]]))
    cost = CostTable("r", "bytes", layers, PRECISIONS, np.array([[1.0, 2.0], [1.0, 2.0]]))
    problem = Problem(loss, Constraints((Budget.of(cost, 3.0),)))
    refused = [1, 1], [0, 1]  # the second loses 5 and is the best within the budget
    monkeypatch.setattr(Problem, "is_feasible", lambda _, columns: columns.tolist() not in refused)

    found = solve_cells(problem, problem.grouped.allowed, Effort(Way(backend)))

    assert found.status is Status.OPTIMAL
    assert found.columns is not None
    assert found.columns.tolist() == [1, 0]
