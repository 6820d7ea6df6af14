"""Random assignments near a budget."""

import numpy as np
import pytest

from mpq.errors import InputError
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.quantization.precision import Precision
from mpq.workflows.random_assignments import random_assignments, structured_assignments

CHOICES = tuple(map(Precision.parse, ("w2", "w4", "w8")))
NAMES = tuple("abcdefgh")


def problem(limit: float, **options: object) -> Problem:
    """Eight layers of 10 to 17 weights, bytes as cost."""
    sizes = np.arange(10.0, 18.0)[:, None] * np.array([2.0, 4.0, 8.0]) / 8
    loss = CostTable("loss", "nats", NAMES, CHOICES, np.zeros((8, 3)))
    budget = Budget.of(CostTable("weight_bytes", "bytes", NAMES, CHOICES, sizes), limit)
    return Problem(loss, Constraints((budget,), **options))  # type: ignore[arg-type]


def test_budget_is_nearly_used_up() -> None:
    """Between 97 % and 100 %, every one of them."""
    asked = problem(54.0)

    found = random_assignments(asked, 50, seed=0)

    used = [asked.budgets[0].used(columns) for columns in found]
    assert all(0.97 * 54 <= amount <= 54 for amount in used)
    assert len({tuple(columns.tolist()) for columns in found}) > 25


def test_ties_fixed_layers_and_candidates_hold() -> None:
    """What a solver may not do, chance may not either."""
    asked = problem(
        54.0, ties=(("a", "b"),), fixed={"c": CHOICES[2]}, candidates={"d": CHOICES[:2]}
    )

    for columns in random_assignments(asked, 20, seed=0):
        assert asked.is_feasible(columns)
        assert columns[0] == columns[1]
        assert columns[2] == 2
        assert columns[3] < 2


def test_every_precision_occurs_everywhere() -> None:
    """No layer is stuck at one precision by the repair."""
    found = np.array(random_assignments(problem(54.0), 200, seed=0))

    for layer in range(8):
        assert set(found[:, layer]) == {0, 1, 2}


def test_same_seed_same_choices() -> None:
    """And another seed draws others."""
    first, again, other = (random_assignments(problem(54.0), 5, seed=s) for s in (1, 1, 2))

    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_limit_that_nothing_uses_up() -> None:
    """More than everything at 8 bits: there is nothing near."""
    with pytest.raises(InputError, match="97% to 100 % of weight_bytes = 1000"):
        random_assignments(problem(1000.0), 1, seed=0)


def test_structured_assignments_have_their_shapes() -> None:
    """Near the budget, and each as its name says."""
    asked = problem(54.0)

    found = structured_assignments(asked, seed=0)

    used = [asked.budgets[0].used(columns) for columns in found.values()]
    assert all(0.97 * 54 <= amount <= 54 for amount in used)
    rising, falling, ends = (found[name] for name in ("rising", "falling", "ends"))
    assert rising[:4].sum() < rising[4:].sum()
    assert falling[:4].sum() > falling[4:].sum()
    assert ends[[0, 1, 6, 7]].sum() > ends[2:6].sum()
    again = structured_assignments(asked, seed=0)
    assert {n: x.tolist() for n, x in again.items()} == {n: x.tolist() for n, x in found.items()}


def test_shapes_that_cannot_be_had_are_left_out() -> None:
    """All layers but one are fixed: there is one assignment, whatever its shape."""
    fixed = dict.fromkeys(NAMES[1:], CHOICES[1])

    found = structured_assignments(problem(55.0, fixed=fixed), seed=0)

    assert [columns.tolist() for columns in found.values()] == [[1, *[1] * 7]]
