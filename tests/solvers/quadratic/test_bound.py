"""Subproblems and their units, against plain numbers."""

from itertools import product

import numpy as np
import pytest

from mpq.problem.tolerances import EQUAL_LOSSES
from mpq.solvers.quadratic.bound import Scale, lower_bound, simple_bound
from mpq.solvers.quadratic.moves import Quadratic
from mpq.solvers.quadratic.subproblem import Subproblem
from tests.solvers.quadratic.cases import Case, random_case

UNIT = 0.25


def small(seed: int = 0) -> tuple[Case, Quadratic]:
    """Four layers at four precisions, two budgets."""
    case = random_case(seed, num_layers=4)
    return case, Quadratic.of(case.problem())


@pytest.mark.parametrize("seed", range(3))
def test_enumerated_losses_are_those_of_the_problem(seed: int) -> None:
    """All of them in the unit, and infinity where a budget is broken."""
    case, quadratic = small(seed)

    losses, moves = Subproblem.of(quadratic, UNIT).enumerated()

    every = {
        tuple(row): loss
        for row, loss in zip(product(range(4), repeat=4), case.losses(), strict=True)
    }
    assert len(losses) == 4**4
    assert np.isinf(losses).sum() == np.isinf(list(every.values())).sum() > 0
    for loss, row in zip(losses, moves, strict=True):
        columns = tuple(int(quadratic.column[move]) for move in row)
        assert loss * UNIT == pytest.approx(every[columns], rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_a_decided_group_leaves_the_losses_as_they_are(seed: int) -> None:
    """Its cell is in every assignment that is left, and its cost out of the room."""
    case, quadratic = small(seed)
    whole = Subproblem.of(quadratic, UNIT)
    keep = (whole.group != 1) | (quadratic.column[whole.move] == 2)

    left = whole.kept(keep)

    every = {
        tuple(row): loss
        for row, loss in zip(product(range(4), repeat=4), case.losses(), strict=True)
    }
    losses, moves = left.enumerated()
    assert left.num_assignments == len(losses) == 4**3
    assert len(left.decided) == 1
    np.testing.assert_allclose(
        left.room, whole.room - whole.costs[:, left.decided[0]], rtol=0, atol=1e-15
    )
    for loss, row in zip(losses, moves, strict=True):
        columns = [0] * 4
        for move in row:
            columns[quadratic.group[move]] = int(quadratic.column[move])
        assert columns[1] == 2
        assert loss * UNIT == pytest.approx(every[tuple(columns)], rel=1e-9)


def test_what_cannot_be_afforded_is_ruled_out() -> None:
    """No feasible assignment is lost, and pairs that break a budget alone are forbidden."""
    case, quadratic = small()
    whole = Subproblem.of(quadratic, UNIT)
    none = np.zeros(len(whole.group), dtype=np.bool_)

    left = whole.ruled_out(none, np.zeros_like(whole.forbidden))

    assert left is not None
    before, after = (np.sort(x.enumerated()[0]) for x in (whole, left))
    np.testing.assert_allclose(after[np.isfinite(after)], before[np.isfinite(before)], rtol=1e-9)
    assert len(after) <= len(before)
    assert case.limits


def test_the_unit_is_what_the_simple_bound_leaves_open() -> None:
    """A loss that is proved has its own last digits as a unit, and a loss of 0 the number 1."""
    assert Scale.of(3.0, 1.0) == Scale(2.0)
    assert Scale.of(3.0, 3.0) == Scale(EQUAL_LOSSES * 3.0)
    assert Scale.of(0.0, 0.0) == Scale(1.0)
    assert Scale.of(3.0, 1.0, 0.1).gap == 0.1


def test_the_cutoff_is_below_the_loss_by_the_gap_or_the_last_digits() -> None:
    """In units; a loss near 0 has the digits of the unit."""
    assert Scale(2.0, 0.25).cutoff(8.0) == (8.0 - 2.0) / 2.0
    assert Scale(2.0).cutoff(8.0) == (8.0 - EQUAL_LOSSES * 8.0) / 2.0
    assert Scale(2.0).cutoff(0.5) == (0.5 - EQUAL_LOSSES * 2.0) / 2.0
    assert Scale(2.0, 0.25).cutoff(-8.0) == (-8.0 - 2.0) / 2.0


@pytest.mark.parametrize("seed", range(4))
def test_bounds_are_below_the_least_loss_and_the_closer_one_is_it(seed: int) -> None:
    """The simple one without any work; that of the enumeration is the loss itself."""
    case, quadratic = small(seed)
    problem, least = case.problem(), float(case.losses().min())
    additive = float(
        min(
            sum(case.loss[i, c] for i, c in enumerate(row))
            for row in product(range(4), repeat=4)
            if all(
                sum(cost[i, c] for i, c in enumerate(row)) <= limit
                for cost, limit in zip(case.costs, case.limits, strict=True)
            )
        )
    )

    simple = simple_bound(problem, quadratic, additive)
    floor = simple_bound(problem, quadratic, None)

    assert floor <= simple <= least * (1 + 1e-12)
    assert lower_bound(problem, quadratic, least, additive, work=1e9) == pytest.approx(
        least, rel=1e-9
    )
    worse = lower_bound(problem, quadratic, 2 * least, additive, work=1e9)
    assert simple <= worse <= least * (1 + 1e-9)
