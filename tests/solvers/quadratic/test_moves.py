"""The matrices of a problem with interactions, and what is left of them, against sums by hand."""

from itertools import product
from math import fsum

import numpy as np
import numpy.typing as npt
import pytest

from mpq.problem.tolerances import LIMIT
from mpq.solvers.quadratic.doubly_nonnegative import Lifting, tightened
from mpq.solvers.quadratic.moves import Quadratic
from mpq.solvers.quadratic.subproblem import Subproblem
from tests.solvers.quadratic.cases import KINDS, of_kind, random_case

Floats = npt.NDArray[np.float64]


def opened(seed: int, kind: str = "plain", unit: float = 100.0) -> tuple[Quadratic, Subproblem]:
    """The matrices of a random problem of 6 layers, and the whole of it as a subproblem."""
    problem = of_kind(random_case(seed, num_layers=6), kind).problem()
    quadratic = Quadratic.of(problem)
    whole = Subproblem.of(quadratic, unit)
    none = np.zeros(len(whole.group), dtype=np.bool_)
    left = whole.ruled_out(none, np.zeros_like(whole.forbidden))
    assert left is not None
    return quadratic, left


def least(problem: Subproblem) -> tuple[float, Floats, Floats]:
    """By trying all: the least loss, that with each cell ``[M]``, and that with each pair."""
    size = len(problem.group)
    cells = [np.flatnonzero(problem.group == g).tolist() for g in range(problem.group.max() + 1)]
    with_cell, with_pair = np.full(size, np.inf), np.full((size, size), np.inf)
    for taken in map(list, product(*cells)):
        if (problem.costs[:, taken].sum(axis=1) > problem.room).any():
            continue
        block = np.ix_(taken, taken)
        loss = problem.constant + problem.linear[taken].sum() + 0.5 * problem.gram[block].sum()
        with_cell[taken] = np.minimum(with_cell[taken], loss)
        with_pair[block] = np.minimum(with_pair[block], loss)
    return float(with_cell.min()), with_cell, with_pair


@pytest.mark.parametrize("kind", KINDS)
def test_the_matrices_give_the_loss_of_the_problem(kind: str) -> None:
    """For random choices, with ties, shrinkage and a table that is not the diagonal's."""
    problem = of_kind(random_case(1), kind).problem()
    quadratic, rng = Quadratic.of(problem), np.random.default_rng(0)

    for _ in range(50):
        columns = np.array([rng.choice(np.flatnonzero(row)) for row in problem.grouped.allowed])
        layers = problem.grouped.expand(columns)
        assert quadratic.loss(columns) == pytest.approx(problem.loss_of(layers), rel=1e-12)


def test_products_within_a_group_are_those_of_the_gram_matrix() -> None:
    """The shortcut for large problems that never form the whole matrix."""
    quadratic, _ = opened(0, "tied")

    same = quadratic.group[:, None] == quadratic.group[None, :]
    rows, columns = np.nonzero(same)

    np.testing.assert_allclose(
        quadratic.within[rows, quadratic.column[columns]], quadratic.gram[rows, columns]
    )
    np.testing.assert_allclose(quadratic.own, np.diag(quadratic.gram))


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_loses_what_the_whole_loses(kind: str) -> None:
    """Once some cells are ruled out and groups decided, each assignment left has its old loss."""
    quadratic, whole = opened(2, kind, unit=1.0)
    rng = np.random.default_rng(0)
    without = rng.random(len(whole.group)) < 0.4
    without[whole.starts] = False

    part = whole.ruled_out(without, np.zeros_like(whole.forbidden))

    assert part is not None
    assert len(part.group) < len(whole.group)
    losses, moves = part.enumerated()
    for loss, taken in zip(losses, moves, strict=True):
        columns = np.empty(len(quadratic.index), dtype=np.intp)
        columns[quadratic.group[taken]] = quadratic.column[taken]
        fits = (quadratic.costs[:, taken].sum(axis=1) <= quadratic.limits).all()
        assert loss == (pytest.approx(quadratic.loss(columns)) if fits else np.inf)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("iterations", [25, 200])
def test_what_is_proved_of_cells_and_pairs_holds(kind: str, iterations: int) -> None:
    """However early the iteration stops, and for any symmetric multipliers at all."""
    for seed in range(2):
        _, problem = opened(seed, kind)
        whole, with_cell, with_pair = least(problem)
        lifting = Lifting.of(problem)
        iterate, _, _ = lifting.iterated(lifting.first(), iterations, np.inf)
        noise = np.random.default_rng(seed).standard_normal(iterate.multiplier.shape)
        for multiplier in (iterate.multiplier, iterate.multiplier + noise + noise.T):
            found = lifting.bounds(multiplier)

            assert found.whole <= whole + 1e-9
            assert (found.cells <= with_cell + 1e-9).all()
            off = ~np.eye(len(problem.group), dtype=np.bool_)
            assert (found.pairs[off] <= with_pair[off] + 1e-9).all()


def test_the_relaxation_is_nearly_tight() -> None:
    """Of six optima of 6 layers, over 85 % is proved on average, and never less than 70 %."""
    shares = []
    for seed in range(6):
        _, problem = opened(seed)
        best, _, _ = least(problem)
        lifting = Lifting.of(problem)
        iterate, _, _ = lifting.iterated(lifting.first(), 500, np.inf)
        shares.append(lifting.bounds(iterate.multiplier).whole / best)

    assert np.mean(shares) > 0.85
    assert min(shares) > 0.7


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_below_the_cutoff_is_ruled_out(kind: str) -> None:
    """The optimum stays, round after round, for a cutoff just above it; below, it may go."""
    for seed in range(2):
        _, problem = opened(seed, kind)
        best, _, _ = least(problem)
        part = problem
        for _ in range(4):
            found = tightened(part, best + 1e-6 * abs(best), iterations=50)
            assert found.problem is not None
            assert found.bound <= best + 1e-9
            assert found.problem.enumerated()[0].min() == pytest.approx(best)
            if not len(found.problem.group):
                break
            part = found.problem


def test_a_decided_cell_keeps_what_was_proved() -> None:
    """The multipliers of a part prove at least what those of the whole proved."""
    _, problem = opened(4)
    first = tightened(problem, np.inf, iterations=100)
    assert first.problem is not None
    assert first.problem.start is not None
    group = first.problem.group == 0
    group[0] = False

    part = first.problem.ruled_out(group, np.zeros_like(first.problem.forbidden))

    assert part is not None
    assert part.start is not None
    proved = Lifting.of(part).bounds(part.start.multiplier).whole
    assert proved >= Lifting.of(first.problem).bounds(first.problem.start.multiplier).whole - 1e-9


def test_the_slack_of_a_limit_counts_once() -> None:
    """What is free is the unit of costs: the limit with its slack, less the floors."""
    problem = random_case(0, num_layers=6).problem()
    quadratic = Quadratic.of(problem)

    whole = Subproblem.of(quadratic, 1.0)

    grouped = problem.grouped
    floors = grouped.costs.min(axis=2)
    for row, limit in enumerate(grouped.limits.tolist()):
        free = limit + LIMIT * abs(limit) - fsum(floors[row].tolist())
        extra = (grouped.costs[row] - floors[row][:, None])[grouped.allowed]
        expected = np.where(extra > free, 2.0, extra / free)
        # A third of the slack is more than rounding and less than the slack itself.
        np.testing.assert_allclose(whole.costs[row], expected, rtol=LIMIT / 3, atol=0)


def test_what_no_budget_allows_is_nothing() -> None:
    """No cell left in a group, or pairs that exclude each other."""
    _, problem = opened(0)
    none = np.zeros(len(problem.group), dtype=np.bool_)

    assert problem.ruled_out(problem.group == 1, np.zeros_like(problem.forbidden)) is None
    clash = np.outer(problem.group == 0, problem.group == 1)
    assert problem.ruled_out(none, clash) is None
