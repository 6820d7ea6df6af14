"""Assignments from the lifted relaxation: within the budgets, and better than what was known."""

import math

import numpy as np
import pytest

from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.interactions import Interactions
from mpq.problem.problem import Problem
from mpq.solvers.quadratic import branch_and_bound
from mpq.solvers.quadratic.bound import Scale, opened
from mpq.solvers.quadratic.branch_and_bound import BranchAndBound
from mpq.solvers.quadratic.doubly_nonnegative import tightened
from mpq.solvers.quadratic.lifted_start import lowered
from mpq.solvers.quadratic.local_search import LocalSearch
from mpq.solvers.quadratic.moves import Quadratic
from mpq.solvers.quadratic.subproblem import Subproblem
from tests.solvers.quadratic.cases import KINDS, PRECISIONS, of_kind, random_case


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(6))
def test_it_is_feasible_and_no_worse_than_what_is_known(kind: str, seed: int) -> None:
    """From the worst of all assignments, against all of them."""
    case = of_kind(random_case(seed, num_layers=6), kind)
    problem, losses = case.problem(), case.losses()
    quadratic = Quadratic.of(problem)
    worst = int(np.where(np.isfinite(losses), losses, -np.inf).argmax())
    known = np.array(np.unravel_index(worst, (4,) * 6), dtype=np.intp)
    part = iterated(quadratic, float(losses[worst]))

    found = lowered(problem, quadratic, part, known, seed)

    best = losses.min()
    assert problem.is_feasible(found)
    assert best * (1 - 1e-9) <= problem.loss_of(found) <= 1.02 * best


def iterated(quadratic: Quadratic, most: float) -> Subproblem:
    """What is left after some iterations below a loss."""
    scale = Scale(most)
    node = opened(quadratic, scale, scale.cutoff(2 * most))
    assert node.problem is not None
    found = tightened(node.problem, scale.cutoff(2 * most), 50).problem
    assert found is not None
    return found


def test_what_is_known_stays_where_nothing_is_better() -> None:
    """The best of all comes back as it is."""
    case = random_case(3, num_layers=6)
    problem, losses = case.problem(), case.losses()
    known = np.array(np.unravel_index(int(losses.argmin()), (4,) * 6), dtype=np.intp)
    quadratic = Quadratic.of(problem)

    found = lowered(problem, quadratic, iterated(quadratic, 2 * float(losses.min())), known, 0)

    np.testing.assert_array_equal(found, known)


def many_rows() -> Problem:
    """80 layers at four precisions, 200 examples: the convex relaxation leaves most of it open."""
    rng = np.random.default_rng(1)
    bits = np.array([2.0, 4.0, 6.0, 8.0])
    factor = rng.standard_normal((200, 80, 4)) + 0.1 * rng.standard_normal((200, 1, 1))
    factor *= 2.0 ** (2 - bits) * np.exp(rng.normal(0, 0.5, (80, 1)))
    names = tuple(f"layer{i}" for i in range(80))
    size = np.floor(100 * rng.lognormal(0, 0.7, (80, 1))) * bits
    low, high = size.min(axis=1).sum(), size.max(axis=1).sum()
    cost = CostTable("size", "bits", names, PRECISIONS, size)
    loss = CostTable("loss", "nats", names, PRECISIONS, 0.5 * (factor**2).mean(axis=0))
    budget = Budget.of(cost, float(low + 0.3 * (high - low)))
    return Problem(loss, Constraints((budget,)), interactions=Interactions(factor, 0.0))


def test_a_poor_first_assignment_is_replaced_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Branch and bound ends at the local search's best, though it began at a single descent."""
    problem = many_rows()
    asked: list[float] = []

    def noted(*given: object) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
        found = lowered(*given)  # type: ignore[arg-type]
        asked.append(problem.loss_of(found))
        return found

    monkeypatch.setattr(branch_and_bound, "lowered", noted)
    first = LocalSearch(num_restarts=0, time_limit_s=None).solve(problem)

    found = BranchAndBound(gap=1e-3, time_limit_s=None, num_restarts=0).solve(problem)

    assert asked == sorted(asked, reverse=True)
    assert asked[-1] < first.loss
    assert found.loss <= asked[-1]
    assert found.gap is not None
    assert found.gap <= 1e-3 * (1 + 1e-9)
    assert math.isclose(found.loss, problem.loss_of(found.columns))  # type: ignore[arg-type]
