"""Where a search begins: hulls in whatever unit, uniform precisions, and what the user gave."""

from typing import Any

import numpy as np
import pytest

from mpq.errors import InputError
from mpq.problem.problem import Problem
from mpq.solvers.black_box.population import Space
from mpq.solvers.black_box.seeds import _multipliers, distinct, given, hull, solved, uniform
from tests.conftest import PRECISIONS, MakeProblem


def random_problem(
    make_problem: MakeProblem, seed: int, scale: tuple[float, float] = (1.0, 1.0)
) -> Problem:
    """Six layers at four precisions, two budgets that bind, each in some unit."""
    rng = np.random.default_rng(seed)
    loss = -np.sort(-rng.lognormal(0, 1, (6, 4)), axis=1)
    costs = np.sort(rng.lognormal(0, 1, (2, 6, 4)), axis=2)
    limits = costs.mean(axis=(1, 2)) * 6
    factor = np.array(scale)
    return make_problem(loss, costs * factor[:, None, None], limits * factor)


def swept(problem: Problem) -> set[tuple[int, ...]]:
    """Weighted sums with every cost as a share of its limit, for many multipliers; by hand."""
    grouped = problem.grouped
    found = set()
    for multiplier in np.r_[0.0, np.geomspace(1e-4, 1e4, 1000)]:
        chosen = []
        for group in range(len(grouped.loss)):
            sums = [
                grouped.loss[group, b]
                + multiplier
                * sum(
                    grouped.costs[r, group, b] / abs(limit)
                    for r, limit in enumerate(grouped.limits)
                )
                for b in range(grouped.loss.shape[1])
            ]
            chosen.append(int(np.argmin(sums)))
        found.add(tuple(chosen))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_a_hull_is_of_shares_of_the_limits(make_problem: MakeProblem, seed: int) -> None:
    """From the least loss to the least cost, each once, and nothing else."""
    problem = random_problem(make_problem, seed)

    found = [tuple(row) for row in hull(problem).tolist()]

    assert set(found) <= swept(problem)
    assert len(set(found)) == len(found) > 8
    assert found[0] == tuple(problem.grouped.loss.argmin(axis=1))
    limits = problem.grouped.limits[:, None, None]
    assert found[-1] == tuple((problem.grouped.costs / limits).sum(axis=0).argmin(axis=1))


@pytest.mark.parametrize("scale", [(1e3, 1.0), (1.0, 1e-6), (7.0, 0.1)])
def test_units_of_resources_change_no_hull(
    make_problem: MakeProblem, scale: tuple[float, float]
) -> None:
    """Bytes or megabytes beside seconds."""
    once, again = (hull(random_problem(make_problem, 1, s)) for s in ((1.0, 1.0), scale))

    assert once.tolist() == again.tolist()


@pytest.mark.parametrize("limit", [0.0, -2.0])
def test_a_limit_may_be_nothing_or_less(make_problem: MakeProblem, limit: float) -> None:
    """Costs then are shares of 1, or of its size; the cheapest is the last."""
    problem = make_problem([[2.0, 1.0, 0.0]] * 2, [[[-3.0, -2.0, 1.0]] * 2], [limit])

    assert hull(problem).tolist() == [[2, 2], [0, 0]] or hull(problem)[-1].tolist() == [0, 0]
    assert hull(problem)[0].tolist() == [2, 2]


def test_multipliers_go_beyond_both_ends() -> None:
    """From half of the flattest exchange of loss for cost to twice the steepest."""
    loss, cost = np.array([[4.0, 3.0], [9.0, 1.0]]), np.array([[0.0, 2.0], [0.0, 1.0]])
    every = np.ones((2, 2), dtype=np.bool_)

    found = _multipliers(loss, cost, every)

    assert len(found) == 64
    assert (found[0], found[-1]) == (pytest.approx(0.25), pytest.approx(16.0))
    assert np.diff(np.log(found)) == pytest.approx(np.log(64.0) / 63)
    # Of cells that are not allowed, and of those that are no exchange, none.
    one = _multipliers(loss, cost, np.array([[True, True], [True, False]]))
    assert (one[0], one[-1]) == (pytest.approx(0.25), pytest.approx(1.0))
    assert len(_multipliers(loss, np.zeros((2, 2)), every)) == 0
    assert len(_multipliers(np.ones((2, 2)), cost, every)) == 0


def test_seeds_are_the_exact_answer_the_hull_and_the_uniform_ones(
    make_problem: MakeProblem,
) -> None:
    """The answer first; each once; those that fit as they are, and the others repaired."""
    problem = random_problem(make_problem, 2)
    space = Space.of(problem)
    exact = np.array([1, 0, 0, 1, 0, 0])

    found = solved(space, exact, np.random.default_rng(0))

    rows = [tuple(row) for row in found.tolist()]
    assert rows[0] == tuple(exact)
    assert len(set(rows)) == len(rows)
    assert space.within(found[1:]).all()
    for given_row in np.concatenate([hull(problem), uniform(space)]):
        if problem.is_feasible(given_row):
            assert tuple(given_row) in rows


def test_uniform_is_one_precision_for_all(make_problem: MakeProblem) -> None:
    """Each that all layers may take."""
    problem = make_problem([[2.0, 1.0, 0.0]] * 3, candidates={"l1": list(PRECISIONS[1:3])})

    assert uniform(Space.of(problem)).tolist() == [[1, 1, 1], [2, 2, 2]]


@pytest.mark.parametrize(
    "start", [(0, 1), (0, 1, 0, 1), (0, -1, 0), (0, 3, 0), (0, 0, 0), (1, 0, 0)]
)
def test_a_start_is_an_assignment(make_problem: MakeProblem, start: tuple[int, ...]) -> None:
    """Of the right length, of columns that there are and are allowed, the same for tied layers."""
    problem = make_problem(
        [[2.0, 1.0, 0.0]] * 3, ties=(("l0", "l2"),), candidates={"l1": list(PRECISIONS[1:3])}
    )

    with pytest.raises(InputError, match="mine: a start has one column from 0 to 2 for each of t"):
        given(Space.of(problem), [(0, 2, 0), start], "mine")


def test_starts_that_fit_are_taken_in_their_order(make_problem: MakeProblem) -> None:
    """One column for each group; what breaks a budget is left out."""
    problem = make_problem(
        [[2.0, 1.0, 0.0]] * 3, [[[1.0, 2.0, 3.0]] * 3], [6.0], ties=(("l0", "l2"),)
    )

    found = given(Space.of(problem), [(1, 1, 1), (2, 2, 2), (0, 2, 0), (1, 2, 1)], "mine")

    assert found.tolist() == [[1, 1], [0, 2]]
    assert given(Space.of(problem), [], "mine").shape == (0, 2)


def test_distinct_rows_keep_their_order() -> None:
    """Of copies the first one stays."""
    rows: Any = np.array([[2, 1], [0, 5], [2, 1], [1, 1], [0, 5]])

    assert distinct(rows).tolist() == [[2, 1], [0, 5], [1, 1]]
