"""Choices that use exactly what a limit lets them, its slack included, and those just beyond."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from mpq._support.arrays import Columns
from mpq.problem.problem import Problem
from mpq.problem.tolerances import LIMIT
from mpq.solvers import SOLVERS
from mpq.solvers.additive.marginal_gain import raised
from mpq.solvers.additive.multipliers import maximised
from mpq.solvers.additive.presolve import Reduced
from mpq.solvers.baselines.bisection import _bisected
from mpq.solvers.baselines.greedy import _lowered
from tests.conftest import MakeProblem

FOUND = [
    *("greedy", "greedy:direction=down", "bisection", "water-filling", "lagrangian"),
    *("dynamic-programming", "ilp", "evolutionary:num_trials=8,population_size=2"),
]
SIGNS = [1.0, -1.0]


def two_of_three(make_problem: MakeProblem, sign: float, beyond: float = 0.0) -> Problem:
    """Three layers, of which two may be raised: they use the limit and its slack, or more.

    Where the limit is below 0, the third layer saves so much.
    """
    limit = 0.75 * sign
    allowance = (limit + LIMIT * abs(limit)) * (1 + sign * beyond)
    # Binary fractions: what two layers use is the allowance to its last digit.
    step = allowance / 2 if sign > 0 else 2.0**-4
    saved = allowance - 2 * step
    cost = [[0.0, step], [0.0, step], [saved, saved + step]]
    return make_problem([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0]], [cost], [limit])


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("solver", FOUND)
def test_what_is_at_the_slack_of_a_limit_is_taken(
    make_problem: MakeProblem, solver: str, sign: float
) -> None:
    """Two layers are raised, and not one: for limits above and below 0."""
    problem = two_of_three(make_problem, sign)
    assert problem.is_feasible(np.array([1, 1, 0]))

    found = SOLVERS.build(solver).solve(problem)

    assert found.columns is not None
    assert found.columns.tolist() == [1, 1, 0]


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("solver", FOUND)
def test_what_is_beyond_the_slack_is_not_taken(
    make_problem: MakeProblem, solver: str, sign: float
) -> None:
    """By ten times the slack: a single layer is raised."""
    problem = two_of_three(make_problem, sign, 10 * LIMIT)
    assert not problem.is_feasible(np.array([1, 1, 0]))

    found = SOLVERS.build(solver).solve(problem)

    assert found.columns is not None
    assert found.columns.sum() == 1


def exact_shares(make_problem: MakeProblem, share: float) -> Reduced:
    """Three layers that may be raised, each for so large a share of what is free."""
    allowance = 1.0 + LIMIT
    loss = [[3.0, 0.0], [2.0, 0.0], [1.0, 0.0]]
    return Reduced.of(make_problem(loss, [[[0.0, share * allowance]] * 3], [1.0]).grouped)


@pytest.mark.parametrize(("share", "num_raised"), [(0.5, 2), (0.5 + 1e-15, 1), (0.25, 3)])
@pytest.mark.parametrize("rule", [raised, _lowered, _bisected])
def test_all_that_is_free_may_be_used(
    make_problem: MakeProblem, rule: Callable[[Reduced], Columns], share: float, num_raised: int
) -> None:
    """The last digit of it included, and none more."""
    columns = rule(exact_shares(make_problem, share))

    assert columns.sum() == num_raised


def test_what_just_fits_at_no_price_is_the_answer(make_problem: MakeProblem) -> None:
    """Where the least loss of all uses the whole of what is free, a price would prove nothing."""
    reduced = exact_shares(make_problem, 0.5)
    one = replace(reduced, excess=np.array([[[0.0, 0.5], [0.0, 0.25], [0.0, 0.25]]]))

    dual, within = maximised(one)

    assert (dual.multipliers.tolist(), dual.used.tolist(), dual.bound) == ([0.0], [1.0], 0.0)
    assert within is dual.columns


def test_a_choice_that_is_met_at_the_limit_is_kept(make_problem: MakeProblem) -> None:
    """With one price or two: of what was met on the way, what uses all that is free is within."""
    alone = exact_shares(make_problem, 0.5)
    both = replace(
        alone, excess=np.repeat(alone.excess, 2, axis=0), free=np.repeat(alone.free, 2),
        edge=np.repeat(alone.edge, 2),
    )  # fmt: skip

    for reduced in (alone, both):
        _, within = maximised(reduced)

        assert within is not None
        assert within.tolist() == [1, 1, 0]
        assert (reduced.used(within) == 1).all()
