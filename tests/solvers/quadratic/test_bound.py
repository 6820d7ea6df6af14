"""The scale of a subproblem, what may be spent on its bound, and where rounds end."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mpq.problem.tolerances import EQUAL_LOSSES
from mpq.solvers.quadratic import bound as module_under_test
from mpq.solvers.quadratic.bound import Scale, lower_bound, opened, pursued, simple_bound
from mpq.solvers.quadratic.doubly_nonnegative import Tightened
from mpq.solvers.quadratic.moves import Quadratic
from mpq.solvers.quadratic.subproblem import Subproblem
from tests.solvers.quadratic.cases import Case, of_kind, random_case


@pytest.mark.parametrize(
    ("loss", "simple", "unit"),
    [
        (5.0, 3.0, 2.0),
        (-3.0, -7.0, 4.0),
        (4.0, 4.0, 4 * EQUAL_LOSSES),
        (-4.0, -4.0, 4 * EQUAL_LOSSES),
        (2.0, 3.0, 2 * EQUAL_LOSSES),
        (0.0, 0.0, 1.0),
        (0.0, -0.25, 0.25),
    ],
)
def test_a_unit_is_what_the_simple_bound_leaves_open(
    loss: float, simple: float, unit: float
) -> None:
    """Never 0: rounding of the loss at least, or 1 where that is 0 too."""
    scale = Scale.of(loss, simple, 0.125)

    assert scale.unit == unit
    assert scale.gap == 0.125
    assert Scale.of(loss, simple).gap == 0


def test_a_cutoff_is_below_the_loss_by_the_gap_or_by_rounding() -> None:
    """In units; rounding is relative to the loss or to the unit, whichever is larger."""
    assert Scale(2.0).cutoff(8.0) == (8 - 8 * EQUAL_LOSSES) / 2
    assert Scale(2.0).cutoff(-8.0) == (-8 - 8 * EQUAL_LOSSES) / 2
    assert Scale(2.0).cutoff(0.0) == -EQUAL_LOSSES
    assert Scale(2.0).cutoff(1.0) == (1 - 2 * EQUAL_LOSSES) / 2
    assert Scale(2.0, gap=0.25).cutoff(8.0) == 3.0
    assert Scale(2.0, gap=0.25).cutoff(-8.0) == -5.0


@pytest.mark.parametrize("kind", ["plain", "shrunk", "sloped", "tied"])
def test_the_simple_bound_is_a_share_of_the_additive_one(kind: str) -> None:
    """By hand over groups: at most the least loss, and never less than without that share."""
    case = of_kind(random_case(4, num_layers=6), kind)
    problem = case.problem()
    quadratic, grouped = Quadratic.of(problem), problem.grouped
    own = [quadratic.linear[quadratic.group == g] for g in range(len(grouped.members))]
    floor = sum(cells.min() for cells in own)
    additive = problem.additive().loss_of(np.zeros(6, dtype=np.intp)) / 4
    beside = sum(
        (cells - case.shrinkage * grouped.loss[g][grouped.allowed[g]]).min()
        for g, cells in enumerate(own)
    )

    assert simple_bound(problem, quadratic, None) == pytest.approx(floor)
    assert simple_bound(problem, quadratic, additive) == pytest.approx(
        max(floor, case.shrinkage * additive + beside)
    )
    assert simple_bound(problem, quadratic, -1e9) == pytest.approx(floor)
    assert floor <= case.losses().min()


def test_what_is_opened_is_bounded_before_any_iteration() -> None:
    """The form is never below 0: the cells' own least adds up to a bound of the whole."""
    quadratic = Quadratic.of(random_case(3).problem())
    floor = np.minimum.reduceat(quadratic.linear, quadratic.starts).sum()

    node = opened(quadratic, Scale(10.0), 1e6)

    assert node.problem is not None
    assert len(node.problem.group) == len(node.cells) > 0
    assert node.bound <= floor / 10
    # Cells that no assignment can take are gone, which may only lift it; here none is the least.
    assert node.bound == pytest.approx(floor / 10)


def test_what_is_decided_at_once_is_its_own_bound() -> None:
    """One choice for every layer: what is opened has no group left, and its loss is known."""
    case = Case(np.array([[[1.0], [2.0]]]), np.array([[3.0], [4.0]]))
    problem = case.problem()

    node = opened(Quadratic.of(problem), Scale(2.0), 100.0)

    assert node.problem is not None
    assert not len(node.problem.group)
    assert node.bound == pytest.approx(case.losses()[0] / 2)


def test_what_is_above_the_cutoff_is_ruled_out_at_once() -> None:
    """With the bound that did it."""
    quadratic = Quadratic.of(random_case(3).problem())
    floor = np.minimum.reduceat(quadratic.linear, quadratic.starts).sum()

    node = opened(quadratic, Scale(1.0), floor - 1.0)

    assert node.problem is None
    assert node.bound == pytest.approx(floor)


class Rounds:
    """Rounds that prove what is written down beforehand."""

    def __init__(self, bounds: list[float], sizes: list[int] | None = None) -> None:
        self.bounds, self.sizes = bounds, sizes or []
        self.asked: list[tuple[float, int, float]] = []

    def __call__(
        self, problem: Subproblem, cutoff: float, iterations: int, deadline: float
    ) -> Tightened:
        """As ``tightened``."""
        self.asked.append((cutoff, iterations, deadline))
        done = len(self.asked) - 1
        left = self.sizes[done] if self.sizes else len(problem.group)
        problem = replace(problem, group=problem.group[:left])
        return Tightened(problem, self.bounds[done], np.empty(0))


def node_of(bound: float = 0.0) -> Tightened:
    """A subproblem of 20 layers at 4 precisions, of which nothing is proved but a number."""
    case = replace(random_case(1, num_layers=20), costs=(), limits=())
    problem = Subproblem.of(Quadratic.of(case.problem()), 1.0)
    return Tightened(problem, bound, np.empty(0))


def run_rounds(
    monkeypatch: pytest.MonkeyPatch, rounds: Rounds, bound: float = 0.0, **options: Any
) -> Tightened:
    """``pursued`` with those rounds, up to a cutoff of 10."""
    monkeypatch.setattr(module_under_test, "tightened", rounds)
    return pursued(node_of(bound), 10.0, **options)


def test_rounds_end_once_two_in_a_row_change_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of what was open is much: here from 10 to below 9, then two rounds of less."""
    rounds = Rounds([1.01, 1.5, 1.6, 9.0])

    node = run_rounds(monkeypatch, rounds)

    assert [iterations for _, iterations, _ in rounds.asked] == [50, 50, 50]
    assert node.bound == 1.6


def test_one_round_of_little_is_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience begins anew with a round that closes a tenth."""
    rounds = Rounds([0.5, 2.0, 2.1, 4.0, 4.1, 4.2, 9.9])

    node = run_rounds(monkeypatch, rounds)

    assert len(rounds.asked) == 6
    assert node.bound == 4.2


def test_fewer_cells_are_a_change_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """By more than a twentieth: from 80 to 75 is, from 80 to 76 is not."""
    many = Rounds([0.0] * 9, [75, 75, 75])
    few = Rounds([0.0] * 9, [76, 76])

    run_rounds(monkeypatch, many)
    run_rounds(monkeypatch, few)

    assert (len(many.asked), len(few.asked)) == (3, 2)


def test_a_bound_does_not_fall(monkeypatch: pytest.MonkeyPatch) -> None:
    """What held for more assignments holds for fewer."""
    assert run_rounds(monkeypatch, Rounds([3.0, 2.0, 1.0]), bound=4.0).bound == 4.0


def test_work_is_iterations_times_the_cubed_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds of 50 on 80 cells: exactly so much is enough, one less is for one."""
    enough, short = Rounds([2.0, 4.0, 6.0]), Rounds([2.0, 4.0, 6.0])
    work = 2 * 50 * 80.0**3

    run_rounds(monkeypatch, enough, work=work)
    run_rounds(monkeypatch, short, work=work - 1)

    assert (len(enough.asked), len(short.asked)) == (2, 1)


def test_no_round_begins_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the deadline itself one still does; it is told how long it has."""
    clock = iter([1.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    rounds = Rounds([2.0, 4.0, 6.0, 8.0])

    node = run_rounds(monkeypatch, rounds, deadline=2.0)

    assert rounds.asked == [(10.0, 50, 2.0)] * 2
    assert node.bound == 4.0


def test_what_can_be_tried_is_not_relaxed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to 20,000 assignments; above, they are."""
    rounds = Rounds([1.0] * 5)
    monkeypatch.setattr(module_under_test, "tightened", rounds)
    problem = node_of().problem
    assert problem is not None

    for count, expected in ((20_000, 0), (20_001, 2)):
        rounds.asked.clear()
        monkeypatch.setattr(Subproblem, "num_assignments", count)
        pursued(Tightened(problem, 5.0, np.empty(0)), 10.0)
        assert len(rounds.asked) == expected


@pytest.mark.parametrize("seed", range(3))
def test_the_bound_of_a_small_problem_is_the_optimum(seed: int) -> None:
    """All of it is tried; of a worse answer the bound is no more than the optimum."""
    case = random_case(seed, num_layers=5)
    problem, best = case.problem(), float(case.losses().min())
    quadratic = Quadratic.of(problem)

    assert lower_bound(problem, quadratic, best, None, 1e9) == best
    assert lower_bound(problem, quadratic, 1.5 * best, None, 1e9) == pytest.approx(best, rel=1e-8)


def test_a_bound_that_nothing_is_spent_on_is_the_simple_one() -> None:
    """Where no round is paid for; with rounds it comes nearer, and never above."""
    case = random_case(2, num_layers=9)
    problem = case.problem()
    quadratic = Quadratic.of(problem)
    best = float(case.losses().min())
    simple = simple_bound(problem, quadratic, None)

    none, some = (lower_bound(problem, quadratic, best, None, w) for w in (0.0, 1e8))

    assert simple == pytest.approx(none)
    assert simple < some <= best
    assert best - some < 0.5 * (best - simple)


def test_too_many_moves_are_not_relaxed(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the most that are, they are; one more, and the simple bound is all."""
    case = random_case(2, num_layers=5)
    problem, best = case.problem(), float(case.losses().min())
    quadratic = Quadratic.of(problem)

    found = []
    for most in (20, 19):
        monkeypatch.setattr(module_under_test, "MAX_MOVES", most)
        found.append(lower_bound(problem, quadratic, best, None, 1e9))

    assert found == [best, simple_bound(problem, quadratic, None)]


def test_a_simple_bound_that_reaches_the_loss_proves_it() -> None:
    """Above it by more than rounding it is handed on, for who asked to see the contradiction."""
    problem = random_case(2, num_layers=5).problem()
    quadratic = Quadratic.of(problem)
    simple = simple_bound(problem, quadratic, None)

    assert lower_bound(problem, quadratic, simple, None, 1e9) == simple
    near = simple * (1 + 1e-12)
    assert lower_bound(problem, quadratic, near, None, 1e9) == near
    assert lower_bound(problem, quadratic, simple / 2, None, 1e9) == simple
