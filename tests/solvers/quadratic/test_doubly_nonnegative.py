"""Steps of the relaxation by hand: penalties, rounds, projections, and what they prove."""

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mpq.solvers.quadratic.doubly_nonnegative import (
    Bounds,
    Lifting,
    _basis,
    _correction,
    reduced,
    tightened,
    without_iteration,
)
from mpq.solvers.quadratic.moves import Quadratic
from mpq.solvers.quadratic.subproblem import Iterate, Subproblem
from tests.solvers.quadratic.cases import random_case
from tests.solvers.quadratic.subproblems import made, points

ROOM = [[0.0, 0.5, 0.25, 0.0, 1.0, 0.5]]


def lifting() -> Lifting:
    """Three groups of two cells within one budget."""
    problem = made(ROOM, [1.25], (2, 2, 2))
    forbidden = problem.forbidden.copy()
    forbidden[1, 4] = forbidden[4, 1] = True
    return Lifting.of(replace(problem, forbidden=forbidden))


@pytest.mark.parametrize(
    ("apart", "moved", "factor"),
    [
        (5.0, 1.0, 1.0),
        (5.0 + 1e-9, 1.0, 1.5),
        (100.0, 1.0, 1.5),
        (1.0, 5.0, 1.0),
        (1.0, 5.0 + 1e-9, 1 / 1.5),
        (1.0, 100.0, 1 / 1.5),
        (1.0, 1.0, 1.0),
        (0.0, 0.0, 1.0),
    ],
)
def test_a_penalty_follows_the_larger_residual(apart: float, moved: float, factor: float) -> None:
    """Up or down by half where one is more than five times the other, else not at all."""
    assert _correction(apart, moved) == factor


def test_the_objective_is_the_loss_of_every_assignment() -> None:
    """As a form over ``(1, x, slack)``; forbidden pairs and rooms cap its entries."""
    lifted = lifting()
    problem = lifted.problem
    for y in points(problem):
        x = y[1:7]
        loss = problem.constant + problem.linear @ x + 0.5 * x @ problem.gram @ x
        assert y @ lifted.objective @ y == pytest.approx(loss)
        if not (x[1] and x[4]):
            assert (np.outer(y, y) <= lifted.cap).all()
    assert lifted.cap[0, 0] == 1
    assert lifted.cap[0, 7] == lifted.cap[1, 7] == 1.25
    assert lifted.cap[7, 7] == 1.25**2
    assert lifted.cap[2, 5] == lifted.cap[1, 2] == 0


def test_the_basis_spans_every_assignment() -> None:
    """Orthonormal, with one vector for the constant and one for each exchange within a group."""
    problem = made(ROOM, [1.25], (3, 2, 1))
    basis = _basis(problem)

    assert basis.shape == (8, 1 + 6 - 3)
    assert np.allclose(basis.T @ basis, np.eye(4))
    for y in points(problem):
        assert np.allclose(basis @ (basis.T @ y), y)


def test_the_first_iterate_is_the_mean_of_every_group() -> None:
    """Products of means, with the right corner, diagonal and zeros; nothing is proved yet."""
    lifted = lifting()

    first = lifted.first()

    assert first.penalty == 0.1
    assert not first.multiplier.any()
    assert first.lifted[0, 0] == 1
    # A mean's square is on the diagonal at first: the three are averaged.
    assert np.allclose(first.lifted[0, 1:7], (0.5 + 0.5 + 0.25) / 3)
    assert np.allclose(np.diag(first.lifted)[1:7], (0.5 + 0.5 + 0.25) / 3)
    # What is left on average: 1.25 less the mean costs 0.25, 0.125 and 0.75.
    assert first.lifted[0, 7] == pytest.approx(0.125)
    assert first.lifted[7, 7] == pytest.approx(0.125**2)
    assert first.lifted[1, 2] == first.lifted[2, 5] == 0
    assert first.lifted[1, 3] == pytest.approx(0.25)


def test_a_projection_has_the_mean_of_corner_and_diagonal() -> None:
    """Three entries are one number; it is from 0 to 1, and the rest is clipped to its cap."""
    lifted = lifting()
    matrix = np.full((8, 8), 3.0)
    matrix[0, 1], matrix[1, 0], matrix[1, 1] = 0.25, 0.5, 0.75
    matrix[0, 2] = matrix[2, 0] = matrix[2, 2] = -1.0

    near = lifted._projected(matrix)

    assert near[0, 0] == 1
    assert near[0, 1] == near[1, 0] == near[1, 1] == 0.5
    assert near[0, 2] == near[2, 0] == near[2, 2] == 0
    assert near[0, 3] == near[3, 3] == 1
    assert near[1, 2] == near[2, 5] == 0
    assert near[1, 3] == 1
    assert near[1, 7] == 1.25


@pytest.mark.parametrize("sign", [1.0, -1.0, 0.25])
def test_the_nearest_semidefinite_matrix(sign: float) -> None:
    """By its definition: the rest is orthogonal to it, and negative in the basis."""
    lifted = lifting()
    random = np.random.default_rng(1).standard_normal((8, 8))
    matrix = random + random.T + sign * 4 * np.eye(8)
    inner = lifted.basis.T @ matrix @ lifted.basis

    near = lifted._semidefinite(matrix)

    kept = lifted.basis.T @ near @ lifted.basis
    assert np.allclose(lifted.basis @ kept @ lifted.basis.T, near)
    assert np.linalg.eigvalsh(kept).min() > -1e-9
    assert np.linalg.eigvalsh(kept - inner).min() > -1e-9
    assert np.sum(kept * (kept - inner)) == pytest.approx(0.0, abs=1e-9)


def test_an_iteration_by_hand() -> None:
    """Two projections and a step of 1.6 times the penalty along what they are apart."""
    lifted, start = lifting(), lifting().first()
    start = replace(start, penalty=0.5)

    iterate, apart, moved = lifted.iterated(start, 1, math.inf)

    inner = lifted._semidefinite(start.lifted)
    outer = lifted._projected(inner - lifted.objective / 0.5)
    assert np.allclose(iterate.lifted, outer)
    assert np.allclose(iterate.multiplier, 1.6 * 0.5 * (outer - inner))
    assert iterate.penalty == 0.5
    assert apart == pytest.approx(np.linalg.norm(outer - inner) / np.linalg.norm(outer))
    change = np.linalg.norm(outer - start.lifted)
    assert moved == pytest.approx(0.5 * change / np.linalg.norm(lifted.objective))


def test_iterations_stop_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that is under way is finished; as many as were asked for are made else."""
    lifted, start = lifting(), lifting().first()
    expected = [lifted.iterated(start, count, math.inf)[0].lifted for count in (1, 2, 3)]
    clock = iter([1.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))

    stopped = lifted.iterated(start, 4, 2.0)[0].lifted

    assert np.array_equal(stopped, expected[2])
    assert not np.array_equal(expected[0], expected[1])


@pytest.mark.parametrize("seed", range(10))
def test_any_multipliers_prove_a_bound(seed: int) -> None:
    """Of all, with each cell, and with each pair of cells; without any, of the form itself."""
    lifted = lifting()
    problem = lifted.problem
    random = np.random.default_rng(seed).standard_normal((8, 8)) * (seed > 0)
    every = [y for y in points(problem) if not (y[2] and y[5])]
    losses = np.array([y @ lifted.objective @ y for y in every])
    taken = np.array(every)[:, 1:7] > 0

    bounds = lifted.bounds(random + random.T)

    assert bounds.whole <= losses.min() + 1e-9
    assert np.isfinite(bounds.whole)
    for cell in range(6):
        assert bounds.whole - 1e-9 <= bounds.cells[cell]
        assert bounds.cells[cell] <= losses[taken[:, cell]].min(initial=np.inf) + 1e-9
        for other in range(6):
            both = taken[:, cell] & taken[:, other]
            if cell != other:
                assert bounds.pairs[cell, other] <= losses[both].min(initial=np.inf) + 1e-9
    assert bounds.pairs[0, 1] == bounds.pairs[1, 4] == np.inf


def test_without_multipliers_the_least_of_the_form_is_exact() -> None:
    """All that cells lose is in one row: groups are apart, and the bound is met."""
    problem = replace(made([], [], (2, 2, 2)), gram=np.zeros((6, 6)))
    lifted = Lifting.of(problem)

    bounds = lifted.bounds(np.zeros((7, 7)))

    assert bounds.whole == pytest.approx(0.5 + 1 + 4 + 16)
    assert bounds.cells == pytest.approx(21.5 + np.array([0, 1, 0, 4, 0, 16]))
    assert bounds.pairs[1, 3] == pytest.approx(21.5 + 1 + 4)
    assert bounds.pairs[1, 5] == pytest.approx(21.5 + 1 + 16)


@pytest.mark.parametrize("seed", range(5))
def test_the_least_of_slacks_is_at_most_what_slacks_make(seed: int) -> None:
    """Of a random form, over every assignment; of one with no negative entry it is 0."""
    lifted = lifting()
    random = np.random.default_rng(seed).standard_normal((8, 8))
    left = random + random.T
    left[7, 7] = abs(left[7, 7]) * (-1) ** seed

    least = lifted._least_of_slacks(left)

    for y in points(lifted.problem):
        slacks = 2 * left[7, :7] @ y[:7] * y[7] + left[7, 7] * y[7] ** 2
        assert least <= slacks + 1e-9
    assert lifted._least_of_slacks(np.abs(left)) == 0
    # By hand: alone, the least cell of each group, and its own square.
    row = np.minimum(2 * left[7], 0.0)
    cells = row[1:7].reshape(3, 2).min(axis=1).sum()
    assert least == pytest.approx(1.25 * (row[0] + cells) + 1.25**2 * row[7] / 2)


class Rounds:
    """Counts iterations, and notes the penalty that each round begins with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: list[int] = []
        self.penalties: list[float] = []
        self.found: list[Bounds] = []
        iterated, bounds = Lifting.iterated, Lifting.bounds

        def counted(lifted: Lifting, start: Iterate, count: int, deadline: float) -> Any:
            self.counts.append(count)
            self.penalties.append(start.penalty)
            return iterated(lifted, start, count, deadline)

        def noted(lifted: Lifting, multiplier: Any) -> Bounds:
            self.found.append(bounds(lifted, multiplier))
            return self.found[-1]

        monkeypatch.setattr(Lifting, "iterated", counted)
        monkeypatch.setattr(Lifting, "bounds", noted)


def whole(seed: int) -> tuple[Subproblem, float]:
    """A problem and its least loss, in units of 100."""
    case = random_case(seed, num_layers=5)
    return Subproblem.of(Quadratic.of(case.problem()), 100.0), float(case.losses().min()) / 100


def test_a_bound_is_looked_at_after_every_25_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last round has what is left; the best bound is what counts."""
    rounds = Rounds(monkeypatch)
    problem, least = whole(1)

    node = tightened(problem, 10 * least, 60)

    assert rounds.counts == [25, 25, 10]
    assert len(rounds.found) == 3
    assert node.bound == max(bounds.whole for bounds in rounds.found)
    ratios = np.array(rounds.penalties[1:]) / rounds.penalties[:-1]
    assert all(min(abs(ratio - f) for f in (1.5, 1.0, 1 / 1.5)) < 1e-12 for ratio in ratios)


def test_a_bound_at_the_cutoff_ends_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing is left; at the deadline what is left is as it was."""
    rounds = Rounds(monkeypatch)
    problem, least = whole(1)

    node = tightened(problem, 0.2 * least, 100)
    late = tightened(problem, 10 * least, 100, deadline=-math.inf)

    assert node.problem is None
    assert node.bound >= 0.2 * least
    assert len(rounds.counts) == 2
    assert late.problem is not None
    assert late.problem.start is not None


def test_a_round_goes_on_where_the_last_one_stopped() -> None:
    """Twice 25 iterations are 50, but for the penalty in between."""
    problem, least = whole(2)
    first = tightened(problem, 10 * least, 25)
    assert first.problem is not None

    second = tightened(first.problem, 10 * least, 25)

    assert first.bound < second.bound <= least + 1e-9


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_two_hundred_iterations_come_near_the_optimum(seed: int) -> None:
    """Within 2 % from below, where the relaxation is tight; nothing is ruled out that is best."""
    problem, least = whole(seed)

    free = tightened(problem, 1e9, 200)
    cut = tightened(problem, 1.001 * least, 200)

    assert 0.98 * least < free.bound <= least + 1e-9
    assert cut.problem is not None
    assert cut.problem.enumerated()[0].min() == pytest.approx(least)


def test_cells_and_pairs_at_the_cutoff_are_ruled_out() -> None:
    """Those below stay, with their bounds; a whole at the cutoff leaves nothing."""
    problem = made([], [], (2, 2, 2))
    pairs = np.zeros((6, 6))
    pairs[0, 4] = 7.0
    cells = np.array([1.0, 6.9, 1.0, 7.0, 1.0, 2.0])
    bounds = Bounds(6.5, cells, pairs)

    node = reduced(problem, None, bounds, 7.0)

    assert node.problem is not None
    assert node.problem.decided == (3, 12)
    assert node.problem.move.tolist() == [10, 11, 14, 15]
    assert node.cells.tolist() == [1.0, 6.9, 1.0, 2.0]
    assert node.problem.forbidden[0, 2]
    assert node.bound == 6.5
    assert reduced(problem, None, bounds, 6.5).problem is None
    assert reduced(problem, None, bounds, 6.5).bound == 6.5
    nothing = Bounds(6.5, np.array([9.0, 9.0, 1, 1, 1, 1]), pairs)
    assert reduced(problem, None, nothing, 7.0).problem is None
    assert reduced(problem, None, nothing, 7.0).bound == 7.0


def test_for_free_the_linear_part_rules_out() -> None:
    """Cells lose 1 and 2, 4 and 8, 16 and 32 beside a constant of 0.5: at least 21.5."""
    problem = made([], [], (2, 2, 2))

    node = without_iteration(problem, 26.5)

    assert node.bound == 21.5
    assert node.problem is not None
    # With 8 for 4 it is 25.5; with 2 for 1 as well it is at the cutoff; with 32 it is beyond.
    assert node.problem.decided == (3, 14)
    assert node.cells.tolist() == [21.5, 22.5, 21.5, 25.5]
    assert node.problem.forbidden[1, 3]
    assert not node.problem.forbidden[0, 3]
