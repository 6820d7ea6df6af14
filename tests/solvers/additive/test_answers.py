"""From what was proved to a checked solution: rounding is told from a contradiction."""

from fractions import Fraction
from itertools import product
from math import inf, nextafter

import numpy as np
import numpy.typing as npt
import pytest

from mpq.errors import InputError, SolverError
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable, PairwiseCost
from mpq.problem.problem import Problem
from mpq.problem.solution import Shortfall, Status
from mpq.quantization.precision import Precision
from mpq.solvers import IntegerLinearProgram
from mpq.solvers.additive.answers import check_effort, solution_of
from mpq.solvers.additive.milp import Answer

PRECISIONS = tuple(map(Precision.parse, ("w2a8", "w4a8", "w8a8")))
LAYERS = ("l0", "l1", "l2")
NEIGHBOURS = (("l0", "l1"), ("l1", "l2"))
Floats = npt.NDArray[np.float64]
Columns = tuple[int, ...]


def only_pairs(name: str, unit: str, joint: Floats, constant: float = 0.0) -> CostTable:
    """Costs of neighbours ``[2, B, B]`` and no others, as those of a conversion table are."""
    pairs = tuple(
        PairwiseCost(*ends, values) for ends, values in zip(NEIGHBOURS, joint, strict=True)
    )
    return CostTable(name, unit, LAYERS, PRECISIONS, np.zeros((3, 3)), constant, pairs)


def totals(joint: Floats, constant: float = 0.0) -> dict[Columns, Fraction]:
    """What every assignment costs, exactly."""
    return {
        (a, b, c): Fraction(constant) + Fraction(joint[0, a, b]) + Fraction(joint[1, b, c])
        for a, b, c in product(range(3), repeat=3)
    }


TABLES = {
    "pairs": only_pairs("loss", "nats", np.full((2, 3, 3), 0.1)),
    "constant": only_pairs("loss", "nats", np.zeros((2, 3, 3)), constant=-0.3),
    "cells": CostTable("loss", "nats", LAYERS, PRECISIONS, np.full((3, 3), 0.1)),
}


@pytest.mark.parametrize("table", TABLES)
def test_a_bound_above_the_loss_by_rounding_is_the_loss(table: str) -> None:
    """Whatever the loss is made of; by more than rounding, it is a contradiction."""
    problem = Problem(TABLES[table])
    loss = problem.loss_of(np.zeros(3, dtype=np.intp))
    columns = np.zeros(3, dtype=np.intp)

    found = solution_of(problem, Answer(Status.OPTIMAL, columns, nextafter(loss, inf)), "ilp", 0.0)

    assert found.bound == found.loss == loss
    with pytest.raises(SolverError, match="ilp is wrong, .*: it proved .* is known that loses"):
        solution_of(problem, Answer(Status.OPTIMAL, columns, loss + 1e-6), "ilp", 0.0)


@pytest.mark.parametrize("seed", range(20))
def test_losses_of_pairs_alone_are_proved(seed: int) -> None:
    """A program that adds up in another order proves a last digit more than the loss."""
    rng = np.random.default_rng(seed)
    joint, constant = rng.random((2, 3, 3)), float(rng.standard_normal())
    problem = Problem(only_pairs("loss", "nats", joint, constant))

    found = IntegerLinearProgram("HiGHS").solve(problem)

    best = min(totals(joint, constant).values())
    assert found.status is Status.OPTIMAL
    assert found.loss == pytest.approx(float(best), rel=1e-12, abs=1e-12)
    assert found.bound is not None
    assert found.bound <= found.loss


@pytest.mark.parametrize("seed", range(20))
def test_a_resource_of_pairs_alone_says_what_is_missing(seed: int) -> None:
    """Its cost is then what is minimised: alone, and within another budget."""
    rng = np.random.default_rng(seed)
    first, second = (rng.random((2, 3, 3)) for _ in range(2))
    tables = only_pairs("conversion", "seconds", first), only_pairs("energy", "joules", second)
    limits = float(min(totals(first).values())) / 2, float(np.median([*totals(second).values()]))
    budgets = tuple(Budget.of(t, limit) for t, limit in zip(tables, limits, strict=True))
    loss = CostTable("loss", "nats", LAYERS, PRECISIONS, rng.random((3, 3)))

    found = IntegerLinearProgram("HiGHS").solve(Problem(loss, Constraints(budgets)))

    assert found.status is Status.INFEASIBLE
    shortfall = found.shortfalls[0]
    within = [c for c, energy in totals(second).items() if energy <= limits[1]]
    assert shortfall.smallest == pytest.approx(float(min(totals(first).values())))
    assert shortfall.smallest_within_others == pytest.approx(
        float(min(totals(first)[columns] for columns in within))
    )


@pytest.mark.parametrize("size", [1.0, -1.0])
def test_two_amounts_that_differ_by_rounding_are_one(size: float) -> None:
    """Whatever their sign: savings of pairs lead below 0."""
    same, more = nextafter(size, inf), size + 0.5

    one = str(Shortfall("latency", "seconds", size - 1, size, same))
    two = str(Shortfall("latency", "seconds", size - 1, size, more))

    assert one == f"latency: limit {size - 1:g} seconds, smallest reachable {size:g}" + (
        ": 1 seconds too much"
    )
    assert two.endswith("while the other budgets hold): 1.5 seconds too much")


@pytest.mark.parametrize("limit", [0.3, -0.3])
def test_what_is_met_up_to_rounding_can_be_met_alone(limit: float) -> None:
    """As the budget itself is: not too much by 5e-17."""
    shortfall = Shortfall("latency", "seconds", limit, nextafter(limit, inf), None)

    assert str(shortfall).endswith("can be met alone")


def test_the_step_that_needs_most_may_need_nothing() -> None:
    """Within the other budget one step uses exactly 0: an amount, and not a missing one.

    The other budget leaves only the second precision, at which ``early`` uses 0 and ``late`` -0.5.
    """
    layers, precisions = ("l0",), PRECISIONS[:2]
    steps = tuple(
        CostTable(name, "bytes", layers, precisions, np.array([values]))
        for name, values in (("early", [-1.0, 0.0]), ("late", [-0.9, -0.5]))
    )
    other = CostTable("latency", "seconds", layers, precisions, np.array([[2.0, 1.0]]))
    budgets = Budget("peak_ram", steps, -2.0), Budget.of(other, 1.0)
    loss = CostTable("loss", "nats", layers, precisions, np.zeros((1, 2)))

    found = IntegerLinearProgram("HiGHS").solve(Problem(loss, Constraints(budgets)))

    assert found.shortfalls[0].step == "early"
    assert found.shortfalls[0].smallest_within_others == 0.0


def test_a_bound_above_the_loss_by_its_last_digits_is_the_loss() -> None:
    """A bound below it stays; one that is the loss says that it is proved."""
    problem = small()
    columns = np.array([0, 0])
    loss = problem.loss_of(columns)

    def bound_of(bound: float | None) -> float | None:
        return solution_of(problem, Answer(Status.FEASIBLE, columns, bound), "any", 0.5).bound

    assert bound_of(None) is None
    assert bound_of(loss * (1 - 1e-6)) == loss * (1 - 1e-6)
    assert bound_of(loss) == loss
    assert bound_of(loss * (1 + 1e-12)) == loss
    with pytest.raises(SolverError, match="any is wrong"):
        bound_of(loss * (1 + 1e-6))


@pytest.mark.parametrize("gap", [-1e-9, 1.0, float("nan")])
def test_a_gap_is_a_share(gap: float) -> None:
    """From 0, and below 1."""
    with pytest.raises(InputError, match="gap is a share"):
        check_effort("any", gap, None)
    check_effort("any", 0.0, None)
    check_effort("any", 1 - 1e-9, 1e-9)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_a_time_limit_is_a_positive_number(seconds: float) -> None:
    """Of seconds."""
    with pytest.raises(InputError, match="a positive number of seconds"):
        check_effort("any", 0.0, seconds)


def small() -> Problem:
    """Two layers, without budgets, that lose 9 and 6 at least."""
    layers, precisions = ("a", "b"), tuple(map(Precision.parse, ("w2a8", "w4a8")))
    values = np.array([[9.0, 9.5], [6.0, 8.0]])
    return Problem(CostTable("loss", "nats", layers, precisions, values), Constraints())
