"""Very many rows as arrays: against all choices, against HiGHS's bound, and what always holds."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import product
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.sparse import csr_array, eye_array, kron

from mpq.errors import InputError
from mpq.problem.problem import Problem
from mpq.problem.solution import Status
from mpq.solvers import Lagrangian
from mpq.solvers.additive import lagrangian as module_of_lagrangian
from mpq.solvers.additive import many_rows as module_under_test
from mpq.solvers.additive import sifting as module_of_sifting
from mpq.solvers.additive.default import additive_solver
from mpq.solvers.additive.many_rows import Allocation
from mpq.solvers.additive.rows import Rows

Floats = npt.NDArray[np.float64]
BITS = np.array([2.0, 3.0, 4.0, 6.0, 8.0, 16.0])
SOLVER = Lagrangian(gap=1e-5, time_limit_s=20.0)
QUICK = Lagrangian(gap=1e-4, time_limit_s=1.0)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is meant for millions of rows, on a few thousand."""
    monkeypatch.setattr(module_under_test, "FEW", 1000)
    monkeypatch.setattr(module_of_sifting, "_SAMPLE", 1000)
    monkeypatch.setattr(module_of_sifting, "_DEVIATIONS", 4.0)


def channels(num_rows: int, resources: int, seed: int = 0, kind: str = "") -> Rows:
    """Channels of 20 layers: those of a layer cost the same; losses fall by four with every bit."""
    rng = np.random.default_rng(seed)
    layer = np.arange(num_rows) * 20 // num_rows
    width = rng.choice([256, 1024, 3584], 20)
    spread = 0.0 if kind == "equal" else 1.0
    scale = rng.lognormal(0, 1.5, 20)[layer] * rng.lognormal(0, spread, num_rows)
    loss = scale[:, None] * 4.0**-BITS
    rates = [BITS / 8, 0.3 + BITS / 8 * rng.lognormal(0, 0.3, (20, 6)), 2.0 - BITS / 16]
    costs = np.array([np.ceil(width[:, None] * rate)[layer] for rate in rates[:resources]])
    low, high = costs.min(axis=2).sum(axis=1), costs.max(axis=2).sum(axis=1)
    # The third one falls with the bits: it is the other two's opponent.
    shares = np.array([0.3, 0.25, 0.8])[:resources]
    return Rows(loss, costs, low + shares * (high - low))


def check(rows: Rows, found: Allocation, gap: float = 1e-5) -> None:
    """What holds of every answer, in exact arithmetic."""
    assert found.columns is not None
    assert found.bound is not None
    at = np.arange(len(rows)), found.columns
    for cost, limit in zip(rows.costs, rows.limits.tolist(), strict=True):
        used = sum(map(Fraction, cost[at].tolist()))
        assert used <= Fraction(limit) + abs(Fraction(limit)) * Fraction(1e-12)
    loss = float(sum(map(Fraction, rows.loss[at].tolist())))
    assert found.loss == pytest.approx(loss, rel=1e-12)
    least = rows.loss.min(axis=1).sum(dtype=np.float64)
    assert found.loss - found.bound <= gap * (found.loss - least) + 1e-12 * abs(found.loss)


def linear_bound(rows: Rows) -> float:
    """The linear program over all cells, by HiGHS: what no multipliers can surpass."""
    num_rows, size = rows.loss.shape
    found = linprog(
        rows.loss.ravel(),
        A_ub=rows.costs.reshape(len(rows.costs), -1) / rows.limits[:, None],
        b_ub=np.ones(len(rows.limits)),
        A_eq=csr_array(kron(eye_array(num_rows), np.ones((1, size)))),
        b_eq=np.ones(num_rows),
    )
    assert found.status == 0
    return float(found.fun)


CELLS = st.integers(-9, 30).map(float)


@st.composite
def small(draw: st.DrawFn) -> Rows:
    """Up to five rows with any numbers, some of them not allowed."""
    num_rows, size = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    resources = draw(st.integers(0, 3))

    def table() -> Floats:
        count = num_rows * size
        return np.array(draw(st.lists(CELLS, min_size=count, max_size=count))).reshape(-1, size)

    loss, costs = table(), np.array([table() for _ in range(resources)])
    costs = costs.reshape(resources, num_rows, size)
    allowed = draw(st.lists(st.booleans(), min_size=loss.size, max_size=loss.size))
    mask = np.array(allowed).reshape(loss.shape)
    mask[~mask.any(axis=1), 0] = True
    limits = [draw(st.integers(-20, 60)) for _ in range(resources)]
    return Rows(
        loss, costs, np.array(limits, dtype=np.float64), draw(st.sampled_from([None, mask]))
    )


@settings(max_examples=150)
@given(rows=small())
def test_few_rows_are_solved_as_well_as_all_choices_tell(rows: Rows) -> None:
    """The least loss where there is a choice within the limits, and where there is none, that."""
    found = SOLVER.allocate(rows)

    at = np.arange(len(rows))
    usable = rows.usable(at)
    every = [np.array(each) for each in product(*map(np.flatnonzero, usable))]
    fitting = [c for c in every if (rows.costs[:, at, c].sum(axis=1) <= rows.limits).all()]
    if not fitting:
        assert found.status is Status.INFEASIBLE
        return
    best = min(float(rows.loss[at, c].sum()) for c in fitting)
    assert found.columns is not None
    assert any(np.array_equal(found.columns, c) for c in fitting)
    assert found.loss == pytest.approx(best, rel=1e-4, abs=1e-9)
    assert found.bound is not None
    assert found.bound <= best + 1e-9


@st.composite
def tight(draw: st.DrawFn) -> Rows:
    """Four to seven rows that lose less the more they cost, and limits that some of them meet."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    resources, num_rows, size = draw(st.integers(1, 2)), draw(st.integers(4, 7)), 3
    costs = np.sort(rng.integers(1, 31, (resources, num_rows, size)), axis=2).astype(np.float64)
    gain = rng.integers(1, 31, (num_rows, size)).cumsum(axis=1).astype(np.float64)
    low, high = costs.min(axis=2).sum(axis=1), costs.max(axis=2).sum(axis=1)
    share = rng.uniform(0.2, 0.8, resources)
    return Rows(gain.max() - gain, costs, np.floor(low + share * (high - low)))


@settings(max_examples=150)
@given(rows=small() | tight())
def test_a_core_of_few_rows_proves_no_more_than_is_true(rows: Rows) -> None:
    """Where other rows might have another column, too, the bound is of them all."""
    at = np.arange(len(rows))
    every = [np.array(each) for each in product(*map(np.flatnonzero, rows.usable(at)))]
    fitting = [c for c in every if (rows.costs[:, at, c].sum(axis=1) <= rows.limits).all()]
    best = min((float(rows.loss[at, c].sum()) for c in fitting), default=np.inf)

    with patch.object(module_under_test, "FEW", 2):
        found = SOLVER.allocate(rows)

    assert found.bound is None or found.bound <= best + 1e-9
    assert found.status is not Status.INFEASIBLE or not fitting
    assert found.status is not Status.OPTIMAL or found.loss == pytest.approx(best)


def test_groups_that_cost_the_same_are_proved_in_a_moment() -> None:
    """10,000 of three kinds that may be exchanged for each other: the optimum, by their numbers."""
    rng = np.random.default_rng(0)
    kind = rng.choice(3, 10_000, p=[0.8, 0.18, 0.02])
    size = np.array([34.0, 34.0465, 25.535])
    gain = rng.lognormal(3, 1, 10_000)
    costs = np.stack([np.zeros(10_000), size[kind]], axis=1)
    limit = 20_000.5
    rows = Rows(np.stack([gain, 0 * gain], axis=1), costs[None], np.array([limit]))
    found = SOLVER.allocate(rows)

    # Of each kind those that gain most: all numbers of two kinds, and what fits of the third.
    first, second, third = (np.r_[0.0, np.cumsum(-np.sort(-gain[kind == k]))] for k in range(3))
    j, k = np.meshgrid(np.arange(len(second)), np.arange(len(third)), indexing="ij")
    left = (limit - j * size[1] - k * size[2]) // size[0]
    fits = left >= 0
    best = (second[j] + third[k] + first[np.clip(left, 0, len(first) - 1).astype(int)])[fits].max()
    assert found.status is Status.OPTIMAL
    assert found.loss == pytest.approx(gain.sum() - best, rel=1e-12)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("kind", ["", "equal"])
@pytest.mark.parametrize("resources", [1, 2, 3])
def test_the_bound_is_the_linear_programs(resources: int, kind: str) -> None:
    """And the answer is within all limits and near it, also where whole layers lose the same."""
    rows = channels(4000, resources, seed=resources, kind=kind)

    found = QUICK.allocate(rows)

    # Channels of a few widths do not fill the last bytes, and the search stops by the clock.
    check(rows, found, gap=1e-2 if kind else 1e-3)
    expected = linear_bound(rows)
    assert found.bound is not None
    assert expected * (1 - 1e-5) <= found.bound <= found.loss
    assert (found.prices >= 0).all()


@pytest.mark.parametrize("resources", [1, 2, 3])
def test_a_gap_of_a_hundred_thousandth_is_met(resources: int) -> None:
    """Of 60,000 rows, with what is meant for them; a second time to the same choice."""
    rows = channels(60_000, resources)

    found = SOLVER.allocate(rows)

    check(rows, found)
    assert found.status is Status.FEASIBLE
    np.testing.assert_array_equal(found.columns, SOLVER.allocate(rows).columns)
    assert found.used.tolist() == rows.used(found.columns).tolist()  # type: ignore[arg-type]


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("seed", range(2))
def test_half_the_memory_gives_nearly_the_same(seed: int) -> None:
    """Tables in float32, whose numbers are rounded: sums are not."""
    rows = channels(4000, 2, seed)
    single = Rows(rows.loss.astype(np.float32), rows.costs.astype(np.float32), rows.limits)

    found, other = QUICK.allocate(rows), QUICK.allocate(single)

    check(single, other, gap=1e-3)
    assert other.bound == pytest.approx(found.bound, rel=1e-6)


@pytest.mark.usefixtures("narrow")
def test_the_order_of_rows_matters_little() -> None:
    """A sample is of all kinds of rows, however they are sorted."""
    rows = channels(4000, 2)
    mixed = np.random.default_rng(7).permutation(len(rows))

    other = QUICK.allocate(replace(rows, loss=rows.loss[mixed], costs=rows.costs[:, mixed]))

    assert other.bound == pytest.approx(QUICK.allocate(rows).bound, rel=1e-5)


@pytest.mark.usefixtures("narrow")
def test_what_is_not_allowed_is_not_taken() -> None:
    """Half of the rows have no 2 bits, and their numbers there are no numbers."""
    rows = channels(3000, 2)
    allowed = np.ones(rows.loss.shape, dtype=np.bool_)
    allowed[::2, 0] = False
    loss, costs = rows.loss.copy(), rows.costs.copy()
    loss[::2, 0] = costs[:, ::2, 0] = np.nan

    found = QUICK.allocate(Rows(loss, costs, rows.limits, allowed))

    assert found.columns is not None
    assert allowed[np.arange(3000), found.columns].all()
    check(rows, found, gap=1.0)


@pytest.mark.usefixtures("narrow")
def test_limits_that_do_not_bind_leave_the_least_loss() -> None:
    """Proved, with prices of 0."""
    rows = channels(3000, 2)

    found = SOLVER.allocate(replace(rows, limits=10 * rows.limits))

    assert found.status is Status.OPTIMAL
    assert found.loss == pytest.approx(rows.loss.min(axis=1).sum())
    assert found.prices.tolist() == [0.0, 0.0]


@pytest.mark.usefixtures("narrow")
def test_a_limit_at_the_least_cost_leaves_one_choice() -> None:
    """A hair less, and there is none: the least that can be used is told."""
    rows = channels(3000, 1)
    floor = rows.costs.min(axis=2).sum(axis=1)

    tight = SOLVER.allocate(replace(rows, limits=floor))
    beyond = SOLVER.allocate(replace(rows, limits=floor * (1 - 1e-9)))

    assert tight.columns is not None
    assert not tight.columns.any()
    assert beyond.status is Status.INFEASIBLE
    assert beyond.used.tolist() == floor.tolist()


@pytest.mark.usefixtures("narrow")
def test_limits_that_only_together_cannot_be_met() -> None:
    """More bits of one resource are fewer of the other; multipliers prove that both is too much."""
    rows = channels(3000, 3)
    low, high = rows.costs.min(axis=2).sum(axis=1), rows.costs.max(axis=2).sum(axis=1)
    limits = low + np.array([0.3, 0.9, 0.3]) * (high - low)

    found = SOLVER.allocate(replace(rows, limits=limits))

    assert (found.status, found.columns) == (Status.INFEASIBLE, None)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("resources", [1, 2])
def test_a_problem_of_many_groups_is_solved_so(
    make_problem: Callable[..., Problem], monkeypatch: pytest.MonkeyPatch, resources: int
) -> None:
    """With ties: the answer keeps them and all budgets, and is as near as is asked."""
    rows = channels(3000, resources)
    ties = [(f"l{i}", f"l{i + 700}") for i in range(0, 600, 2)]
    problem = make_problem(rows.loss, rows.costs, rows.limits, ties=ties)
    monkeypatch.setattr(module_of_lagrangian, "MANY_ROWS", 1000)
    asked: list[int] = []
    plain = Lagrangian.allocate

    def counted(self: Lagrangian, rows: Rows) -> Allocation:
        asked.append(len(rows))
        return plain(self, rows)

    monkeypatch.setattr(Lagrangian, "allocate", counted)

    found = Lagrangian(gap=1e-3).solve(problem)

    assert asked == [2700]
    assert found.status is Status.FEASIBLE
    assert found.columns is not None
    assert problem.is_feasible(found.columns)
    assert found.gap is not None
    assert found.gap <= 1e-3
    exact = Lagrangian(gap=1e-6 if resources > 1 else 0.0).solve(problem)
    assert exact.loss * (1 - 1e-5) <= found.loss <= exact.loss * (1 + 1e-3)


@pytest.mark.parametrize(
    ("resources", "num_groups", "expected"),
    [
        (1, 2000, Lagrangian()),
        (1, 2001, Lagrangian(gap=1e-4, time_limit_s=60.0)),
        (2, 20_000, Lagrangian(gap=1e-4, time_limit_s=60.0)),
        (1, 20_001, Lagrangian(gap=1e-5, time_limit_s=60.0)),
        (2, 20_001, Lagrangian(gap=1e-5, time_limit_s=60.0)),
    ],
)
def test_the_default_of_many_groups(
    make_problem: Callable[..., Problem], resources: int, num_groups: int, expected: Lagrangian
) -> None:
    """One budget is solved to the optimum up to 2,000 groups; the more, the smaller the gap."""
    ones = np.ones((resources, num_groups, 1))

    problem = make_problem(ones[0], ones, [num_groups] * resources)

    assert additive_solver(problem) == expected


def test_arrays_need_a_gap() -> None:
    """Nobody waits for the last digit of a million rows."""
    with pytest.raises(InputError, match="gap above 0, such as gap=1e-5"):
        Lagrangian().allocate(channels(30, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": np.zeros((0, 6))}, r"that is not empty; got \(0, 6\)"),
        ({"loss": np.zeros((30, 5))}, r"need costs \[R, G, B\] = \(1, 30, 5\); got \(1, 30, 6\)"),
        ({"limits": [1.0, 2.0]}, r"= \(2, 30, 6\); got \(1, 30, 6\)"),
        ({"limits": [np.inf]}, r"limits are finite; got \[inf\]"),
        ({"allowed": np.ones((30, 5), dtype=np.bool_)}, "what is allowed is"),
        ({"allowed": np.arange(30)[:, None] != np.full(6, 7)}, "row 7 has no column"),
        ({"loss": np.ones((30, 6), dtype=np.int64)}, "a loss is float32 or float64; got int64"),
        ({"loss": np.where(np.eye(30, 6) * [0, 0, 0, 1, 0, 0], np.nan, 1.0)}, "row 3 at column 3"),
    ],
)
def test_rows_that_do_not_fit_together(change: dict[str, Any], message: str) -> None:
    """What was expected, and what came."""
    rows = channels(30, 1)

    with pytest.raises(InputError, match=message):
        replace(rows, **change)
