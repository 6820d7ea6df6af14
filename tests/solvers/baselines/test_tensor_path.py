"""Weights and inputs lowered apart: the order, its steps, and what is bisected over them."""

from itertools import product
from typing import Any

import numpy as np
import pytest

import mpq
from mpq.errors import InfeasibleError, InputError
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.problem.solution import Status
from mpq.quantization.precision import Precision
from mpq.solvers import Bisection
from mpq.solvers.queries.least_cost import least_cost_measured

BITS = (8, 4, 2)
PAIRS = list(product(BITS, BITS))
NAMES = ("a", "b", "c")
OF_WEIGHTS = np.array([3.0, 1.0, 7.0])
OF_INPUTS = np.array([2.0, 9.0, 0.5])
SIZES = np.array([10.0, 20.0, 5.0])
ORDER = [("c", 1), ("b", 0), ("a", 1), ("a", 0), ("c", 0), ("b", 1)]
"""Layer and 0 for its weights, 1 for its inputs; by the losses above, the least first."""


def asked(limit: float, pairs: Any = PAIRS, **rules: Any) -> Problem:
    """Three layers whose losses are sums of what weights and inputs lose."""
    precisions = tuple(Precision.parse(f"w{w}a{a}") for w, a in pairs)
    loss = [[w * 2.0**-x + i * 2.0**-y for x, y in pairs]
            for w, i in zip(OF_WEIGHTS, OF_INPUTS, strict=True)]  # fmt: skip
    cost = np.array([[size * x * y for x, y in pairs] for size in SIZES])
    table = CostTable("bit_operations", "bitops", NAMES, precisions, cost)
    losses = CostTable("loss", "nats", NAMES, precisions, np.array(loss))
    return Problem(losses, Constraints((Budget.of(table, limit),), **rules))


def steps() -> list[list[tuple[int, int]]]:
    """Bits of weights and inputs, all 13 steps of the order."""
    found = [[[8, 8] for _ in NAMES]]
    for bits in BITS[1:]:
        for name, side in ORDER:
            found.append([list(pair) for pair in found[-1]])
            found[-1][NAMES.index(name)][side] = bits
    return [[(w, a) for w, a in step] for step in found]


@pytest.mark.parametrize("limit", [150.0, 400.0, 700.0, 1500.0, 2240.0])
def test_the_first_step_within_the_budget(limit: float) -> None:
    """Of an order over six tensors, each lowered by itself."""
    problem = asked(limit)
    costs = [sum(s * w * a for s, (w, a) in zip(SIZES, step, strict=True)) for step in steps()]

    found = Bisection(tensors=True).solve(problem)

    assert found.columns is not None
    expected = next(step for step, cost in zip(steps(), costs, strict=True) if cost <= limit)
    assert [PAIRS[c] for c in found.columns.tolist()] == expected
    assert found.bound is not None
    assert found.bound <= found.loss


@pytest.mark.parametrize("most", range(13))
def test_a_measured_criterion_is_bisected_over_the_steps(most: int) -> None:
    """The farthest acceptable step is found, by four or five measurements of thirteen."""
    problem, every = asked(1e9), steps()
    tried = []

    def is_acceptable(columns: Any) -> bool:
        step = every.index([PAIRS[c] for c in columns.tolist()])
        tried.append(step)
        return step <= most

    table = problem.budgets[0].tables[0]
    found = least_cost_measured(problem, table, Bisection(tensors=True), is_acceptable, 64)

    assert found.solution.columns is not None
    assert [PAIRS[c] for c in found.solution.columns.tolist()] == every[most]
    assert found.problem.is_feasible(found.solution.columns)
    assert len(tried) <= 5


def test_ties_fixed_layers_and_what_cannot_be() -> None:
    """Tied layers are lowered together; a layer without a choice stays; budgets may be too low."""
    tied = asked(900.0, ties=(("a", "b"),), fixed={"c": Precision.parse("w8a8")})

    found = Bisection(tensors=True).solve(tied)

    assert found.columns is not None
    assert found.columns[0] == found.columns[1]
    assert PAIRS[found.columns[2]] == (8, 8)
    assert Bisection(tensors=True).solve(asked(1.0)).status is Status.INFEASIBLE
    none, table, solver = asked(1.0), tied.budgets[0].tables[0], Bisection(tensors=True)
    with pytest.raises(InfeasibleError, match="no step that bisection goes"):
        least_cost_measured(none, table, solver, lambda _: True, 64)


def test_pairs_that_are_missing_are_named() -> None:
    """Weights and inputs cannot be lowered apart, where only both together may be."""
    problem = asked(900.0, pairs=[(8, 8), (4, 4)])

    with pytest.raises(InputError, match="layer 'a' may not take w8a4"):
        mpq.SOLVERS.build("bisection:tensors=true").solve(problem)
    assert Bisection().solve(problem).columns is not None
