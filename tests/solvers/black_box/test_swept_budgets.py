"""Budgets of groups that add up: every ratio against brute force, and what is kept."""

from itertools import product
from math import ceil
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

import mpq
from mpq.errors import InputError, SolverError
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.problem.solution import Status
from mpq.quantization.precision import Precision
from mpq.solvers import SweptBudgets
from mpq.solvers.additive.default import solve_additive

NAMES = ("ff.0", "stem", "ff.1", "head", "attn2")
GROUPS = "*ff*|*attn2*=ssim;*=decibels"
FIRST = [0, 2, 4]
SIZES = np.array([3.0, 5.0, 2.0, 4.0, 6.0])
BITS = (2, 4, 8)
RATIOS = np.linspace(0.46, 1.36, 10)


def asked(limit: float, seed: int = 0, names: Any = ("w2a8", "w4a8", "w8a8")) -> Problem:
    """Losses of two metrics, the second a thousand times the first."""
    rng = np.random.default_rng(seed)
    loss = -np.sort(-rng.random((5, len(names))), axis=1)
    loss[[1, 3]] *= 1000
    precisions = tuple(map(Precision.parse, names))
    bits = np.array([p.weight.number.bits for p in precisions])
    cost = CostTable("weight_bytes", "bytes", NAMES, precisions, SIZES[:, None] * bits)
    table = CostTable("loss", "relative", NAMES, precisions, loss)
    return Problem(table, Constraints((Budget.of(cost, limit),)))


def best_in(loss: Any, rows: list[int], limit: float) -> tuple[int, ...] | None:
    """The least loss of some layers within a limit, by trying all."""
    bits = np.array(BITS)
    every = map(list, product(range(3), repeat=len(rows)))
    within = [c for c in every if SIZES[rows] @ bits[c] <= limit + 1e-9]
    best = min(within, key=lambda c: float(loss[rows, c].sum()), default=None)
    return None if best is None else tuple(best)


@pytest.mark.parametrize("limit", [52.0, 80.0, 110.0, 150.0])
def test_every_ratio_is_tried_and_the_best_measured_is_taken(limit: float) -> None:
    """Where both groups can use their share, as MixDQ has it: mean bits in a given ratio."""
    problem = asked(limit)
    seen: list[tuple[int, ...]] = []

    def losses(columns: Any) -> Any:
        seen.extend(map(tuple, columns.tolist()))
        return np.array([abs(float(row @ [7, 5, 3, 2, 1]) - 17) for row in columns])

    found = SweptBudgets(GROUPS).bind(losses).solve(problem)

    others, expected = [1, 3], set()
    sizes = [SIZES[FIRST].sum(), SIZES[others].sum()]
    for k in RATIOS:
        mean = limit / (k * sizes[0] + sizes[1])
        if not (2 <= k * mean <= 8 and 2 <= mean <= 8):
            continue
        of_both = zip((FIRST, others), sizes, (k, 1), strict=True)
        parts = [best_in(problem.loss.values, rows, mean * s * ratio) for rows, s, ratio in of_both]
        both = dict(zip(FIRST, parts[0] or (), strict=True)) | dict(
            zip(others, parts[1] or (), strict=True)
        )
        expected.add(tuple(both[i] for i in range(5)))
    assert expected <= set(seen)
    assert len(seen) == len(set(seen)) <= 10
    assert found.columns is not None
    assert found.loss == min(losses(np.array(seen)))
    assert problem.is_feasible(found.columns)


def test_an_answer_at_the_ends_and_none_below() -> None:
    """A share that a group cannot use is the other's: at the least cost there is one answer."""
    least, most = 2 * SIZES.sum(), 8 * SIZES.sum()

    lowest = SweptBudgets(GROUPS).solve(asked(least))
    highest = SweptBudgets(GROUPS).solve(asked(most))

    assert lowest.columns is not None
    assert lowest.columns.tolist() == [0] * 5
    assert highest.columns is not None
    assert highest.columns.tolist() == [2] * 5
    assert SweptBudgets(GROUPS).solve(asked(least - 1)).status is Status.INFEASIBLE


@pytest.mark.parametrize("keep", [0.2, 0.5])
def test_the_most_sensitive_inputs_are_kept(keep: float) -> None:
    """Of each group, by what the input loses at its fewest bits; all others have fewer."""
    names = ("w2a8", "w4a8", "w8a8", "w2a16", "w4a16", "w8a16")
    problem = asked(100.0, 3, names)
    losses = problem.loss.values[:, 2] - problem.loss.values[:, 5]

    found = SweptBudgets(GROUPS, keep=keep).solve(problem)

    assert found.columns is not None
    chosen = {i for i in range(5) if names[found.columns[i]].endswith("a16")}
    expected = set()
    for rows in (FIRST, [1, 3]):
        order = sorted(rows, key=lambda i: -losses[i])
        expected |= set(order[: ceil(keep * len(rows))])
    assert chosen == expected


def test_what_it_refuses() -> None:
    """Groups that do not fit, numbers that mean nothing, and losses that are none."""
    with pytest.raises(InputError, match="has no layer of this network"):
        SweptBudgets("*conv*;*").solve(asked(80.0))
    with pytest.raises(InputError, match="layer 'stem' is in no group"):
        SweptBudgets("*ff*").solve(asked(80.0))
    with pytest.raises(InputError, match="are written like"):
        mpq.SOLVERS.build("swept-budgets:groups=;*")
    with pytest.raises(InputError, match="0 < low <= high"):
        SweptBudgets(low=0.0)
    with pytest.raises(InputError, match="num_ratios >= 1"):
        SweptBudgets(num_ratios=0)
    with pytest.raises(InputError, match="needs a network"):
        SweptBudgets(is_measured=True).solve(asked(80.0))
    with pytest.raises(SolverError, match=r"swept-budgets: the loss of the assignment \[.* is nan"):
        SweptBudgets().bind(lambda columns: np.full(len(columns), np.nan)).solve(asked(80.0))


@pytest.mark.parametrize("shape", [(4, 1), (2,), ()])
def test_an_objective_gives_one_loss_for_each_assignment(shape: tuple[int, ...]) -> None:
    """A column would be a list as the loss; too few would be those of other assignments."""
    solver = SweptBudgets(GROUPS, batch_size=4).bind(lambda _: np.ones(shape))

    with pytest.raises(InputError, match=r"swept-budgets: .* 4 assignments .* got the shape \("):
        solver.solve(asked(80.0))


def test_a_bound_is_of_the_predicted_sum_alone() -> None:
    """Without an objective it is there, and not above the loss; with one it says nothing."""
    predicted = SweptBudgets(GROUPS).solve(asked(80.0))
    measured = SweptBudgets(GROUPS).bind(lambda columns: np.ones(len(columns))).solve(asked(80.0))

    assert predicted.bound is not None
    assert 0 < predicted.bound <= predicted.loss
    assert measured.bound is None


def test_ratios_of_many_groups_are_counted_before_anything_runs() -> None:
    """Ten ratios of six groups are too many: how many, and how many would do."""
    six = ";".join([*(f"layer{i}" for i in range(5)), "*"])

    with pytest.raises(InputError, match=r"10 \*\* 5 = 100,000 .* or num_ratios=6"):
        SweptBudgets(six)
    with pytest.raises(InputError, match=r"6 groups .* above 10,000: take fewer groups"):
        mpq.SOLVERS.build(f"swept-budgets:groups={six},num_ratios=7")
    assert SweptBudgets(six, num_ratios=6).measuring_s(1.0) == 6**5


def test_answers_are_measured_as_they_are_found() -> None:
    """No more than a batch is there at once: the first is measured before the second is solved."""
    solved: list[int] = []
    seen: list[int] = []

    def counted(problem: Problem) -> Any:
        solved.append(len(seen))
        return solve_additive(problem)

    def losses(columns: Any) -> Any:
        seen.extend(range(len(columns)))
        return np.arange(len(columns), dtype=float)

    with patch("mpq.solvers.black_box.swept_budgets.solve_additive", counted):
        SweptBudgets(GROUPS, batch_size=2).bind(losses).solve(asked(80.0))

    assert len(seen) > 2
    assert {x for x in solved if x} > {2}, "between two problems a batch was measured"
