"""Bits that fall along an order: against all assignments, and what is in no order."""

from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest

import mpq
from mpq.errors import FileFormatError, InputError
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import INPUTS, WEIGHTS, CostTable
from mpq.problem.problem import Problem
from mpq.problem.solution import Status
from mpq.quantization.precision import Precision
from mpq.solvers import Ordered

PAIRS = [(2, 4), (2, 8), (4, 4), (4, 8), (8, 8)]
PRECISIONS = tuple(Precision.parse(f"w{w}a{a}") for w, a in PAIRS)
NAMES = ("a", "b", "c", "d", "e")


def problem(seed: int, limit: float, scores: Any = None, **rules: Any) -> Problem:
    """Five layers at five precisions, one budget; losses do not fall evenly."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, 5)
    cost = np.array([[float(size * w * a) for w, a in PAIRS] for size in sizes])
    loss = rng.lognormal(0, 1, (5, 1)) * np.array([[4.0**-w + 4.0**-a for w, a in PAIRS]])
    loss *= rng.lognormal(0, 0.3, loss.shape)
    table = CostTable("loss", "nats", NAMES, PRECISIONS, loss, scores=scores or {})
    operations = CostTable("bit_operations", "bitops", NAMES, PRECISIONS, cost)
    least, most = cost.min(axis=1).sum(), cost.max(axis=1).sum()
    budget = Budget.of(operations, float(least + limit * (most - least)))
    return Problem(table, Constraints((budget,), **rules))


def expected(asked: Problem, weights: Any, inputs: Any = None) -> float:
    """The least loss of all assignments in order, by trying each."""
    losses = []
    for columns in product(range(5), repeat=5):
        bits = [PAIRS[c] for c in columns]
        rows = [(np.argsort(-np.array(s)), i) for i, s in enumerate((weights, inputs)) if s]
        is_ordered = all(
            bits[k][i] >= bits[j][i] for order, i in rows for k, j in pairwise(order.tolist())
        )
        if is_ordered and asked.budgets[0].is_met(np.array(columns)):
            losses.append(asked.loss.values[range(5), columns].sum())
    return float(min(losses))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("limit", [0.1, 0.4, 0.8])
def test_the_least_loss_in_order(seed: int, limit: float) -> None:
    """Of weights and inputs, each by scores of its own, as trying everything finds it."""
    rng = np.random.default_rng(100 + seed)
    weights, inputs = (tuple(rng.permutation(5).astype(float).tolist()) for _ in range(2))
    both = problem(seed, limit, {WEIGHTS: weights, INPUTS: inputs})
    one = problem(seed, limit, {WEIGHTS: weights})

    found = [Ordered().solve(both), Ordered().solve(one)]

    assert found[0].loss == pytest.approx(expected(both, weights, inputs), rel=1e-9)
    assert found[1].loss == pytest.approx(expected(one, weights), rel=1e-9)
    assert found[1].bound is not None
    assert found[1].bound <= found[1].loss


def test_two_levels_are_the_first_layers() -> None:
    """As many of the highest scores as the budget holds, and no later one that would fit."""
    two = tuple(map(Precision.parse, ("w4a16", "w8a16")))
    sizes = np.array([1.0, 5.0, 1.0, 2.0])
    names, loss = NAMES[:4], np.array([[2.0, 1.0]] * 4)
    cost = CostTable("weight_bytes", "bytes", names, two, sizes[:, None] * np.array([4.0, 8.0]))
    table = CostTable("loss", "nats", names, two, loss, scores={WEIGHTS: (3.0, 1.0, 2.0, 0.0)})

    found = Ordered().solve(Problem(table, Constraints((Budget.of(cost, 36.0 + 4 + 4 + 8),))))

    assert found.columns is not None
    assert found.columns.tolist() == [1, 0, 1, 0]


def test_without_scores_by_the_loss_at_the_fewest_bits() -> None:
    """A table that somebody made has none."""
    asked = problem(7, 0.4)
    fewest = tuple(asked.loss.values[:, 0].tolist())

    found = Ordered().solve(asked)

    assert found.loss == pytest.approx(expected(asked, fewest), rel=1e-9)


def test_ties_and_given_precisions() -> None:
    """Tied layers count by the highest score; a layer without a choice holds nobody back."""
    scores = {WEIGHTS: (5.0, 1.0, 2.0, 4.0, 3.0)}
    given = {"a": PRECISIONS[0]}
    asked = problem(3, 0.6, scores, ties=(("b", "d"),), fixed=given)

    found = Ordered().solve(asked)

    chosen = found.precisions(asked)
    bits = {name: precision.weight.number.bits for name, precision in chosen.items()}
    assert bits["b"] == bits["d"] >= bits["e"] >= bits["c"]
    assert bits["a"] == 2
    assert bits["d"] > 2


def test_no_assignment_in_order() -> None:
    """What is within the budgets need not be in order, and what is impossible is proved."""
    scores = {WEIGHTS: (9.0, 8.0, 1.0, 1.0, 1.0)}
    own = {"a": (PRECISIONS[0], PRECISIONS[2]), "b": (PRECISIONS[2], PRECISIONS[4])}
    asked = problem(1, 0.0, scores, candidates=own)
    (budget,) = asked.budgets
    cheapest = np.where(asked.allowed, budget.tables[0].values, np.inf).min(axis=1).sum()
    tight = Constraints((replace(budget, limit=float(cheapest)),), candidates=own)

    unordered = Ordered().solve(Problem(asked.loss, tight))
    impossible = Ordered().solve(problem(1, -0.1, scores))

    assert unordered.status is Status.UNKNOWN
    assert "fall along the order" in unordered.why
    assert impossible.status is Status.INFEASIBLE


def test_scores_are_kept_in_the_file() -> None:
    """A problem that is read again is solved alike."""
    asked = problem(2, 0.4, {WEIGHTS: (1.0, 5.0, 2.0, 4.0, 3.0)})

    again = mpq.Problem.from_json(asked.to_json())

    assert again.loss.scores == asked.loss.scores
    assert Ordered().solve(again).loss == Ordered().solve(asked).loss
    assert '"scores"' not in problem(2, 0.4).to_json()


@pytest.mark.parametrize(
    "scores", [{"outputs": (1.0,) * 5}, {WEIGHTS: (1.0,) * 4}, {WEIGHTS: (1.0,) * 4 + (np.inf,)}]
)
def test_scores_that_are_none(scores: Any) -> None:
    """Of something else, too few, or infinite."""
    with pytest.raises(InputError, match="one finite number for each of 5 layers"):
        problem(0, 0.5, scores)


def test_scores_in_a_file_are_of_weights_or_inputs() -> None:
    """Anything else is refused where it is read."""
    text = problem(2, 0.4, {WEIGHTS: (1.0,) * 5}).loss.to_json().replace("weights", "outputs")

    with pytest.raises(FileFormatError, match="scores"):
        CostTable.from_json(text)


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e12])
def test_a_limit_of_the_cheapest_is_met(unit: float) -> None:
    """Whatever the unit, and where the sum of the cheapest is above it by rounding."""
    two = tuple(map(Precision.parse, ("w4a16", "w8a16")))
    loss = CostTable("loss", "nats", NAMES[:3], two, np.array([[2.0, 1.0]] * 3))
    cost = np.array([[0.2, 0.4], [0.4, 0.8], [0.2, 0.4]]) * unit
    limit = 0.8 * unit
    seconds = CostTable("latency", "seconds", NAMES[:3], two, cost)

    found = Ordered().solve(Problem(loss, Constraints((Budget.of(seconds, limit),))))

    assert found.columns is not None
    assert found.columns.tolist() == [0, 0, 0]
