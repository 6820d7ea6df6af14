"""What is left of a quadratic problem: hair's breadths at limits, and what follows from what."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from mpq.solvers.quadratic.doubly_nonnegative import Lifting
from mpq.solvers.quadratic.moves import Quadratic
from mpq.solvers.quadratic.subproblem import Subproblem
from tests.solvers.quadratic.cases import Case, random_case
from tests.solvers.quadratic.subproblems import made, points

NONE = np.zeros(0, dtype=np.intp)


@pytest.mark.parametrize(
    ("beyond", "fits"), [(-1e-6, True), (0.0, True), (5e-10, True), (2e-9, False)]
)
def test_what_is_tried_may_break_a_limit_by_a_hair(beyond: float, fits: bool) -> None:
    """The problem itself decides about those; what is further beyond is infinite."""
    problem = made([[0.0, 0.5, 0.0, 0.5 + beyond]], [1.0])

    losses, moves = problem.enumerated()

    assert moves.tolist() == [[3, 10, 12], [3, 10, 13], [3, 11, 12], [3, 11, 13]]
    # Two cells: half of a form of four products of 8.
    expected = [0.5 + 16 + alone for alone in (1 + 4, 1 + 8, 2 + 4, 2 + 8)]
    assert losses[:3].tolist() == expected[:3]
    assert losses[3] == (expected[3] if fits else np.inf)


@pytest.mark.parametrize("beyond", [0.0, 5e-10, 2e-9])
def test_a_cell_goes_once_nothing_beside_it_fits(beyond: float) -> None:
    """Alone it takes all the room; the other group has to take something as well."""
    problem = made([[0.0, 1.0, 0.25 + beyond, 0.5]], [1.25])

    left = problem.ruled_out(np.zeros(4, dtype=np.bool_), np.zeros((4, 4), dtype=np.bool_))

    assert left is not None
    if beyond > 1e-9:
        assert left.decided == (3, 10)
        assert left.move.tolist() == [12, 13]
    else:
        assert left.move.tolist() == [10, 11, 12, 13]
        # Both that are dear do not fit together.
        assert np.argwhere(left.forbidden & (left.group[:, None] < left.group)).tolist() == [[1, 3]]


@pytest.mark.parametrize(("over", "is_left"), [(0.0, True), (5e-10, True), (2e-9, False)])
def test_decided_groups_may_overrun_by_a_hair(over: float, is_left: bool) -> None:
    """With all of them decided there is no cell to rule out: the room is what tells."""
    problem = replace(made([[0.0, 0.5, 0.0, 0.5]], [1.0]), room=np.array([1.0 - over]))
    alone = np.array([True, False, True, False])

    left = problem.ruled_out(alone, np.zeros((4, 4), dtype=np.bool_))
    decided = problem.kept(~alone).ruled_out(np.zeros(0, np.bool_), np.zeros((0, 0), np.bool_))

    assert (left is not None) == (decided is not None) == is_left
    if left is not None:
        assert left.decided == (3, 11, 13)
        assert left.constant == 0.5 + 2 + 8 + 16
        assert left.room.tolist() == pytest.approx([0.0 - over])


def test_a_pair_that_is_ruled_out_may_decide_the_rest() -> None:
    """A cell beside which a group has nothing left is in no assignment; either order counts."""
    problem = made([], [], (2, 2, 2))
    for pairs in ([(0, 2), (0, 3)], [(2, 0), (3, 0)]):
        chosen = np.zeros((6, 6), dtype=np.bool_)
        for one, other in pairs:
            chosen[one, other] = True

        left = problem.ruled_out(np.zeros(6, dtype=np.bool_), chosen)

        assert left is not None
        assert left.decided == (3, 11)
        assert left.move.tolist() == [12, 13, 14, 15]
        assert left.group.tolist() == [0, 0, 1, 1]
        # What is decided is lost anyway, and with everything that is left.
        assert left.constant == 0.5 + 2 + 4
        assert left.linear.tolist() == [4 + 8, 8 + 8, 16 + 8, 32 + 8]


def test_without_a_cell_of_some_group_nothing_is_left() -> None:
    """Both cells of one group ruled out, or every pair with another group."""
    problem, no_pair = made([], [], (2, 2)), np.zeros((4, 4), dtype=np.bool_)
    every_pair = np.ones((4, 4), dtype=np.bool_)

    assert problem.ruled_out(np.array([True, True, False, False]), no_pair) is None
    assert problem.ruled_out(np.zeros(4, dtype=np.bool_), every_pair) is None


def test_assignments_are_counted_in_whole_numbers() -> None:
    """Seventy groups of four are beyond 64 bits."""
    assert made([], [], (4,) * 70).num_assignments == 4**70
    assert made([], [], (2, 3)).num_assignments == 6


def exact(case: Case, unit: float) -> list[float]:
    """Loss of every assignment in a unit, by rising columns."""
    found: list[float] = (case.losses() / unit).tolist()
    return found


@pytest.mark.parametrize("seed", range(3))
def test_the_whole_problem_loses_what_its_assignments_lose(seed: int) -> None:
    """In the unit; each limit is what it leaves free, and cells beyond it only just beyond."""
    case = random_case(seed, num_layers=3)
    quadratic = Quadratic.of(case.problem())

    whole = Subproblem.of(quadratic, 4.0)
    losses, moves = whole.enumerated()

    assert whole.constant == 0
    assert np.allclose(losses, exact(case, 4.0))
    assert moves.tolist() == [
        [4 * layer + column for layer, column in enumerate(columns)]
        for columns in product(range(4), repeat=3)
    ]
    costs = np.array(case.costs).reshape(2, -1)
    floors = np.array(case.costs).min(axis=2)
    free = np.array(case.limits) - floors.sum(axis=1)
    shares = (costs - np.repeat(floors, 4, axis=1)) / free[:, None]
    assert np.allclose(whole.room, 1.0, atol=1e-11)
    assert np.allclose(whole.costs, np.where(shares > 1 + 1e-9, 3.0, shares))


def test_a_limit_that_leaves_nothing_leaves_the_cheapest() -> None:
    """A hair too little, even: there is no unit, and what costs more at all is beyond."""
    costs = np.array([[1.0, 2.0], [5.0, 3.0]])
    case = Case(np.ones((1, 2, 2)), np.ones((2, 2)), (costs,), (4 - 1e-11,))

    whole = Subproblem.of(Quadratic.of(case.problem()), 1.0)
    left = whole.ruled_out(np.zeros(4, dtype=np.bool_), np.zeros((4, 4), dtype=np.bool_))

    assert whole.room[0] < 1e-9
    assert (whole.costs[0] > whole.room[0]).tolist() == [False, True, True, False]
    assert left is not None
    assert left.decided == (0, 3)


def test_a_decided_cell_proves_what_it_proved() -> None:
    """Folded into the constant's row, multipliers weigh every assignment that is left the same."""
    problem = made([[0.0, 0.25, 0.0, 0.125, 0.0, 0.375]], [1.0], (2, 2, 2))
    start = Lifting.of(problem).first()
    size = len(start.lifted)
    random = np.random.default_rng(0).standard_normal((size, size))
    start = replace(start, multiplier=random + random.T)
    keep = np.array([False, True, True, True, True, True])

    part = replace(problem, start=start).kept(keep)

    assert part.start is not None
    whole = {tuple(y[1:7][keep][1:]): y for y in points(problem) if y[2] == 1}
    for y in points(part):
        before = whole[tuple(y[1:5])]
        assert y @ part.start.multiplier @ y == pytest.approx(before @ start.multiplier @ before)
        assert part.start.lifted.shape == part.start.multiplier.shape == (6, 6)
