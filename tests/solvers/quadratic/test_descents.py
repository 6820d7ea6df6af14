"""How far the local search strays, and what it counts, against sums by hand."""

import math
import time
from itertools import product
from typing import Any

import numpy as np
import pytest

from mpq.solvers.quadratic import local_search as module_under_test
from mpq.solvers.quadratic.local_search import _best_single, _Pairs, _Search, improved
from mpq.solvers.quadratic.moves import Quadratic
from tests.solvers.additive.cases import conversions, interacting
from tests.solvers.quadratic.cases import Case, random_case


def search_of(case: Case, seed: int = 0) -> _Search:
    """Of a problem, with a generator of its own."""
    return _Search(Quadratic.of(case.problem()), np.random.default_rng(seed))


class Counting:
    """A generator that counts how often a position is drawn."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.positions = 0

    def integers(self, low: int, high: int | None = None) -> Any:
        """As numpy's; of one number it is a position."""
        self.positions += high is None
        return self.rng.integers(low, high)


def test_before_a_descent_3_to_12_layers_are_changed() -> None:
    """Each number of them is drawn; with fewer layers no more than there are."""
    case, small = random_case(0, num_layers=20), random_case(0, num_layers=4)
    counts, quadratic = set(), Quadratic.of(case.problem())
    for seed in range(100):
        rng = Counting(seed)
        _Search(quadratic, rng)._shaken(np.zeros(20, dtype=np.intp))  # type: ignore[arg-type]
        counts.add(rng.positions)
    few = Counting(0)
    _Search(Quadratic.of(small.problem()), few)._shaken(np.zeros(4, dtype=np.intp))  # type: ignore[arg-type]

    assert counts == set(range(3, 13))
    assert few.positions in (3, 4)


def test_what_is_shaken_stays_within_the_budgets() -> None:
    """From an assignment that is: after every draw, by the problem's own arithmetic."""
    case = random_case(2, num_layers=8)
    problem = case.problem()
    start = np.array(case.costs).sum(axis=0).argmin(axis=1)
    assert problem.is_feasible(start)

    shaken = [search_of(case, seed)._shaken(start) for seed in range(50)]

    assert all(problem.is_feasible(columns) for columns in shaken)
    assert len({tuple(columns) for columns in shaken}) > 40


class Script:
    """Descents that end where is written down, and notes where each began."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ends: list[int]) -> None:
        self.begun: list[int] = []
        left = iter(ends)

        def restarted(_: _Search, columns: Any) -> Any:
            self.begun.append(int(columns[0]))
            return np.array([next(left)])

        monkeypatch.setattr(_Search, "restarted", restarted)


def with_losses(*losses: float) -> tuple[Any, Quadratic]:
    """One layer without a budget that loses so much at each precision."""
    case = Case(np.zeros((1, 1, len(losses))), np.array([losses]))
    problem = case.problem()
    return problem, Quadratic.of(problem)


@pytest.mark.parametrize(
    ("losses", "ends", "begun"),
    [
        # Of two restarts the first may end 1 % worse and be resumed from, the second not at all.
        ((100.0, 100.9, 101.1), [1, 0], [0, 1]),
        ((100.0, 100.9, 101.1), [2, 0], [0, 0]),
        # Of four: 1.5 %, 1 %, 0.5 % and 0.
        ((100.0, 101.4, 101.6), [1, 1, 1, 1], [0, 1, 1, 1]),
        ((100.0, 101.4, 101.6), [2, 1, 1, 1], [0, 0, 0, 0]),
        ((100.0, 100.4, 100.6), [0, 0, 1, 0], [0, 0, 0, 1]),
        ((100.0, 100.4, 100.6), [0, 0, 2, 0], [0, 0, 0, 0]),
        # A share of the least loss, whatever its sign.
        ((-100.0, -99.1, -98.9), [1, 0], [0, 1]),
        ((-100.0, -99.1, -98.9), [2, 0], [0, 0]),
    ],
)
def test_a_descent_is_resumed_from_unless_it_is_too_bad(
    monkeypatch: pytest.MonkeyPatch, losses: tuple[float, ...], ends: list[int], begun: list[int]
) -> None:
    """By a share of the loss that falls evenly from 2 % to 0; the best is what is returned."""
    problem, quadratic = with_losses(*losses)
    script = Script(monkeypatch, ends)

    best = improved(problem, quadratic, np.array([0]), len(ends), 0)

    assert script.begun == begun
    assert best.tolist() == [0]


def test_the_best_descent_is_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the first nor the last one; what was given stays where nothing is better."""
    problem, quadratic = with_losses(5.0, 3.0, 4.0, 6.0)
    monkeypatch.setattr(_Search, "settled", lambda _, columns: columns)
    Script(monkeypatch, [3, 1, 2])

    assert improved(problem, quadratic, np.array([0]), 3, 0).tolist() == [1]
    Script(monkeypatch, [3, 3, 3])
    assert improved(problem, quadratic, np.array([0]), 3, 0).tolist() == [0]


def test_no_descent_begins_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the deadline itself one still does."""
    problem, quadratic = with_losses(5.0, 6.0)
    script = Script(monkeypatch, [1] * 9)
    clock = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))

    improved(problem, quadratic, np.array([0]), 9, 0, deadline=2.0)

    assert len(script.begun) == 2
    assert improved(problem, quadratic, np.array([0]), 0, 0, math.inf).tolist() == [0]


@pytest.mark.parametrize("seed", range(3))
def test_changes_are_differences_of_losses_and_costs(seed: int) -> None:
    """Of every move alone, against the loss and the use of the assignment that it makes."""
    case = random_case(seed, num_layers=4)
    search = search_of(case)
    quadratic = search.quadratic
    columns = np.random.default_rng(seed).integers(0, 4, 4)
    held = quadratic.moves(columns)

    changes, (extra, room) = search.quadratic.changes(held), search._extra(held)

    for move in range(16):
        other = columns.copy()
        other[quadratic.group[move]] = quadratic.column[move]
        expected = quadratic.loss(other) - quadratic.loss(columns)
        assert changes[move] == pytest.approx(expected, abs=1e-9)
        for row, cost in enumerate(case.costs):
            more = cost[range(4), other].sum() - cost[range(4), columns].sum()
            assert extra[row, move] == pytest.approx(more)
    left = [
        limit - c[range(4), columns].sum() for c, limit in zip(case.costs, case.limits, strict=True)
    ]
    assert room == pytest.approx(np.maximum(left, 0.0))


@pytest.mark.parametrize("seed", range(3))
def test_costs_of_pairs_are_among_the_changes(seed: int) -> None:
    """Of one move, and of two at once, by the table's own totals."""
    case = conversions(seed)
    problem = interacting(seed, case)
    quadratic = Quadratic.of(problem)
    search = _Search(quadratic, np.random.default_rng(0))
    columns = np.array([0, 2, 1, 2])
    held = quadratic.moves(columns)
    total = problem.budgets[0].tables[0].total

    extra, room = search._extra(held)

    assert room == pytest.approx(max(case.limits[0] - total(columns), 0.0))
    old = held[quadratic.group]
    for one, two in product(range(12), repeat=2):
        first, second = quadratic.group[one], quadratic.group[two]
        other = columns.copy()
        other[first] = quadratic.column[one]
        if one == two:
            assert extra[0, one] == pytest.approx(total(other) - total(columns))
        if first == second:
            continue
        other[second] = quadratic.column[two]
        beside = quadratic.beside(np.array([one]), np.array([two]), old)[0, 0]
        both = extra[0, one] + extra[0, two] + beside
        assert both == pytest.approx(total(other) - total(columns))


@pytest.mark.parametrize("seed", range(5))
def test_the_best_pair_is_the_best_of_all_pairs(seed: int) -> None:
    """Within the budgets, and only if it lowers the loss: by trying each."""
    case = random_case(seed, num_layers=5)
    problem = case.problem()
    search = search_of(case)
    quadratic = search.quadratic
    columns = np.array(case.costs).sum(axis=0).argmin(axis=1)
    held = quadratic.moves(columns)
    single, (extra, room) = search.quadratic.changes(held), search._extra(held)
    losses = {}
    for one, two in product(range(20), repeat=2):
        if quadratic.group[one] < quadratic.group[two]:
            other = columns.copy()
            other[quadratic.group[[one, two]]] = quadratic.column[[one, two]]
            if problem.is_feasible(other):
                losses[one, two] = quadratic.loss(other) - quadratic.loss(columns)

    pairs = _Pairs.of(quadratic, np.arange(5))
    found = pairs.best(single, extra, room, held[quadratic.group], -1e-9)
    none = pairs.best(single, extra, room, held[quadratic.group], -1e9)

    assert tuple(sorted(found.tolist())) == min(losses, key=lambda pair: losses[pair])
    assert not len(none)
    # Some of the groups: the best of theirs.
    some = _Pairs.of(quadratic, np.array([1, 3])).best(
        single, extra, room, held[quadratic.group], math.inf
    )
    among = {p: x for p, x in losses.items() if p[0] // 4 == 1 and p[1] // 4 == 3}
    assert tuple(sorted(some.tolist())) == min(among, key=lambda pair: among[pair])


def test_the_best_single_move_is_within_every_budget() -> None:
    """What is free may be used up; what does not lower the loss by more than rounding is none."""
    single = np.array([-3.0, -2.0, -1.0, 0.0])
    extra = np.array([[2.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])

    assert _best_single(single, extra, np.array([1.0, 1.0]), -0.1).tolist() == [1]
    assert _best_single(single, extra, np.array([1.0, 0.5]), -0.1).tolist() == [2]
    assert _best_single(single, extra, np.array([2.0, 0.5]), -0.1).tolist() == [0]
    assert _best_single(single, extra, np.array([0.0, 0.0]), -1.0).tolist() == []


@pytest.mark.parametrize(("most", "num_shares"), [(40, 1), (39, 2), (20, 2), (12, 4), (1, 5)])
def test_shares_are_all_groups_once(
    monkeypatch: pytest.MonkeyPatch, most: int, num_shares: int
) -> None:
    """Of few enough moves, two groups at least; those asked for come first."""
    monkeypatch.setattr(module_under_test, "_MAX_PAIRED", most)
    search = search_of(random_case(0, num_layers=10))

    shares = search._shares(np.array([7, 4]))

    assert len(shares) == num_shares
    assert sorted(np.concatenate(shares).tolist()) == list(range(10))
    assert all(4 * len(share) <= max(most, 8) for share in shares)
    if num_shares > 1:
        assert shares[0][:2].tolist() == [7, 4]


@pytest.mark.parametrize("seed", range(4))
def test_few_restarts_find_the_known_optimum(seed: int) -> None:
    """On seven layers at four precisions, with two budgets that bind, from the cheapest choice."""
    case = random_case(seed)
    problem = case.problem()
    start = np.array(case.costs).sum(axis=0).argmin(axis=1)

    found = improved(problem, Quadratic.of(problem), start, 60, 0)

    assert problem.loss_of(found) == pytest.approx(case.losses().min())
