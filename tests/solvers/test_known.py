"""What is known without solving, and how much of a claim is only rounding."""

from itertools import product
from math import fsum, inf, nextafter
from typing import Any

import numpy as np
import pytest

from mpq.errors import SolverError
from mpq.problem.interactions import Interactions
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.problem.tolerances import LAST_DIGITS, PROVED_BOUND
from mpq.solvers.proofs import best_known, checked, contradiction, rounding
from tests.conftest import MakeProblem
from tests.solvers.additive.cases import Case, Cost, conversions, interacting
from tests.solvers.quadratic.cases import KINDS, of_kind, random_case


def columns(*chosen: int) -> Any:
    """``[L]``."""
    return np.array(chosen, dtype=np.intp)


@pytest.mark.parametrize("over", [0.0, 0.9e-12, 1.1e-12])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_uniform_precision_at_its_limit_is_known(
    make_problem: MakeProblem, over: float, sign: float
) -> None:
    """As the budget itself counts: up to its slack, whatever the sign of the cost."""
    limit = sign - over * abs(sign)
    problem = make_problem([[1.0]], [[[sign]]], [limit])

    known = best_known(problem)

    assert (known is not None) == problem.is_feasible(columns(0)) == (over < 1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_the_best_uniform_precision_is_known(seed: int, kind: str) -> None:
    """By trying all; layers that may not take it take the first that they may."""
    case = of_kind(random_case(seed, num_layers=6), kind)
    problem = case.problem()
    tried = []
    for column in range(4):
        chosen = np.full(6, column)
        for layer, fixed in case.fixed.items():
            chosen[layer] = fixed
        if problem.is_feasible(chosen):
            tried.append(problem.loss_of(chosen))

    known = best_known(problem)

    assert (None if known is None else problem.loss_of(known)) == min(tried, default=None)


@pytest.mark.parametrize("seed", range(6))
def test_costs_of_pairs_count_in_what_is_known(seed: int) -> None:
    """In the loss as in the budget."""
    case = conversions(seed)
    joint = np.array([[0.0, 9.0, 9.0], [9.0, 9.0, 9.0], [9.0, 9.0, 0.0]])
    case = Case(
        Cost(case.loss.values, 0.0, ((0, 1, joint), (1, 3, joint))), case.costs, case.limits
    )
    problem = case.problem()
    feasible = set(case.feasible())
    tried = [problem.loss_of(columns(*[c] * 4)) for c in range(3) if (c,) * 4 in feasible]

    known = best_known(problem)

    assert (None if known is None else problem.loss_of(known)) == min(tried, default=None)


def test_what_is_given_is_known_if_it_is_feasible(make_problem: MakeProblem) -> None:
    """The best of it and of the uniform ones."""
    problem = make_problem([[3.0, 0.0], [3.0, 0.0]], [[[0.0, 2.0]] * 2], [3.0])

    assert best_known(problem).tolist() == [0, 0]  # type: ignore[union-attr]
    found = best_known(problem, columns(1, 1), columns(0, 1))
    assert found is not None
    assert found.tolist() == [0, 1]


def slack_of(problem: Problem, chosen: Any) -> float:
    """The documented sum, cell by cell."""
    table = problem.loss
    sizes = [abs(table.constant)]
    for row, column in enumerate(chosen):
        cells = [v for v, ok in zip(table.values[row], problem.allowed[row], strict=True) if ok]
        sizes += [abs(min(cells)), abs(table.values[row, column])]
        if problem.interactions is not None:
            factor = problem.interactions.factor[:, row, column].astype(np.float64)
            sizes.append(abs(0.5 * float((factor**2).mean())))
    if table.pairs:
        sizes.append(abs(table.total_between(chosen)))
    pairs = sum(float(np.abs(pair.values).max()) for pair in table.pairs)
    return PROVED_BOUND * fsum(sizes) + LAST_DIGITS * pairs


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("has_interactions", [False, True])
def test_rounding_is_relative_to_what_is_added_up(seed: int, has_interactions: bool) -> None:
    """Not to cells that nobody takes."""
    case = conversions(seed)
    values = case.loss.values.copy()
    values[1, 0], values[2, 1] = 1e9, -3.0
    joint = np.random.default_rng(seed).standard_normal((3, 3)) * 1e7
    pairs = () if has_interactions else ((0, 2, joint),)  # a loss has either
    case = Case(Cost(values, -2.5, pairs), (), (), fixed={2: 0})
    problem = interacting(seed, case) if has_interactions else case.problem()
    for chosen in product(range(1, 3), range(1, 3), [0], range(3)):
        found = rounding(problem, columns(*chosen))
        assert found == pytest.approx(slack_of(problem, columns(*chosen)), rel=1e-12)


@pytest.mark.parametrize("loss", [5.0, -5.0])
def test_a_bound_may_owe_rounding_and_no_more(make_problem: MakeProblem, loss: float) -> None:
    """To the last digit of what is known, whichever way it ended."""
    problem = make_problem([[loss, loss + 1]])
    known = columns(0)
    most = loss + rounding(problem, known)
    for status in (Status.FEASIBLE, Status.OPTIMAL, Status.TIME_LIMIT):
        claim = problem, status, known
        assert contradiction(*claim, most, known) == ""
        assert "it proved" in contradiction(*claim, nextafter(most, inf), known)
        assert contradiction(*claim, nextafter(most, inf), None) == ""


def test_an_optimum_may_lose_rounding_more_than_what_is_known(make_problem: MakeProblem) -> None:
    """By more, it is none; who claims no optimum may lose what he likes."""
    slack = 4 * PROVED_BOUND
    problem = make_problem([[2.0, 2.0 + 0.9 * slack, 2.0 + 1.1 * slack]])
    known = columns(0)

    assert contradiction(problem, Status.OPTIMAL, columns(1), None, known) == ""
    assert "calls a loss" in contradiction(problem, Status.OPTIMAL, columns(2), None, known)
    assert contradiction(problem, Status.FEASIBLE, columns(2), 1.0, known) == ""
    assert contradiction(problem, Status.OPTIMAL, None, None, known) == ""


def test_infeasible_contradicts_whatever_is_feasible(make_problem: MakeProblem) -> None:
    """And nothing, where nothing is known."""
    problem = make_problem([[2.0, 1.0]], [[[1.0, 2.0]]], [1.5])
    claim = Solution(Status.INFEASIBLE, None, float("nan"), None, "liar", 0.0)
    nothing = make_problem([[2.0, 1.0]], [[[1.0, 2.0]]], [0.5])

    with pytest.raises(SolverError, match="liar is wrong, use another solver: it calls the budg"):
        checked(problem, claim)
    assert checked(nothing, claim) is claim


def test_with_interactions_another_uniform_precision_may_be_the_best(
    make_problem: MakeProblem,
) -> None:
    """Of a sum the first by loss is; here the errors of the second cancel, and it is."""
    factor = np.zeros((1, 2, 2))
    factor[0, :, 0], factor[0, :, 1] = 2.0, [3.0, -3.0]
    loss = 0.5 * factor[0] ** 2
    problem = make_problem(loss, interactions=Interactions(factor))

    known = best_known(problem)

    assert known is not None
    assert known.tolist() == [1, 1]
    assert problem.loss_of(known) == 0.0
    assert best_known(problem.additive()).tolist() == [0, 0]  # type: ignore[union-attr]
