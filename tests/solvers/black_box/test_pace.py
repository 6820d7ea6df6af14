"""A time limit of a search by trials: what is begun, what is kept, and how it is told."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from mpq.errors import InputError, SolverError
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.quantization.precision import Precision
from mpq.solvers import SOLVERS
from mpq.solvers.black_box import _base, pace
from mpq.solvers.black_box.bayesian import Bayesian
from mpq.solvers.black_box.evolutionary import Evolutionary
from mpq.solvers.black_box.pace import Pace
from mpq.solvers.black_box.surrogate import Surrogate
from mpq.solvers.queries.solve import solve

PRECISIONS = tuple(map(Precision.parse, ("w2a8", "w4a8", "w6a8", "w8a8")))
Floats = npt.NDArray[np.float64]
Assignments = npt.NDArray[np.intp]
EVERY = [
    Evolutionary(num_trials=400, population_size=10),
    Bayesian(num_trials=400),
    Surrogate(num_trials=400),
]


def name_of(solver: Evolutionary | Bayesian | Surrogate) -> str:
    """How pytest calls a solver."""
    return solver.name


def problem(budgets: int = 1) -> Problem:
    """Twelve layers, losses that fall with the bits, limits that bind."""
    rng = np.random.default_rng(0)
    names = tuple(f"layer{i}" for i in range(12))
    loss = -np.sort(-rng.lognormal(0, 1, (12, 4)), axis=1)
    tables = [
        CostTable(f"r{i}", "bytes", names, PRECISIONS, np.sort(rng.random((12, 4)), axis=1))
        for i in range(budgets)
    ]
    limits = [Budget.of(table, 0.6 * float(table.values[:, 3].sum())) for table in tables]
    return Problem(CostTable("loss", "nats", names, PRECISIONS, loss), Constraints(tuple(limits)))


class Clock:
    """Time that passes when something is measured, and only then."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        """Seconds."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The only one that a search looks at."""
    found = Clock()
    for module in (pace, _base):
        monkeypatch.setattr(module, "time", found)
    return found


def taking(clock: Clock, seconds: float, asked: list[int]) -> Callable[[Assignments], Floats]:
    """An objective that takes so long for each assignment, and notes how many it was asked."""

    def measured(assignments: Assignments) -> Floats:
        clock.now += seconds * len(assignments)
        asked.append(len(assignments))
        weights = np.arange(1, assignments.shape[1] + 1) ** 2
        return np.asarray(2 + np.sin(assignments @ weights))

    return measured


@pytest.mark.parametrize("solver", EVERY, ids=name_of)
def test_a_slow_measurement_ends_soon_after_the_limit(
    solver: Evolutionary | Bayesian | Surrogate,
) -> None:
    """By the clock on the wall; the answer loses no more than uniform precisions."""
    asked = problem()

    def slow(assignments: Assignments) -> Floats:
        time.sleep(0.05 * len(assignments))
        return np.array([asked.loss_of(columns) for columns in assignments])

    start = time.perf_counter()
    found = replace(solver, time_limit_s=0.2).bind(slow).solve(asked)
    seconds = time.perf_counter() - start

    uniform = [np.full(12, column) for column in range(4)]
    losses = [asked.loss_of(columns) for columns in uniform if asked.is_feasible(columns)]
    assert found.columns is not None
    assert asked.is_feasible(found.columns)
    assert losses
    assert found.loss <= min(losses)
    assert found.status is Status.TIME_LIMIT
    # All 400 trials would take 20 seconds; suggestions of a batch take their time besides.
    assert seconds < 5


@pytest.mark.parametrize("solver", EVERY, ids=name_of)
def test_no_trial_begins_after_the_limit(
    solver: Evolutionary | Bayesian | Surrogate, clock: Clock
) -> None:
    """One alone tells how many of a batch still fit."""
    asked: list[int] = []

    found = replace(solver, time_limit_s=25.5).bind(taking(clock, 1.0, asked)).solve(problem())

    assert asked == [1, 9, 10, 5, 1]
    assert clock.now == 126.0
    assert found.status is Status.TIME_LIMIT
    assert found.seconds == 26.0


@pytest.mark.parametrize("solver", EVERY, ids=name_of)
def test_one_trial_is_made_however_long_it_takes(
    solver: Evolutionary | Bayesian | Surrogate, clock: Clock
) -> None:
    """The exact optimum of the predicted loss: an answer within the budgets."""
    asked: list[int] = []

    found = replace(solver, time_limit_s=1.0).bind(taking(clock, 1e4, asked)).solve(problem())

    assert asked == [1]
    assert found.columns is not None
    exact = SOLVERS.build("lagrangian").solve(problem())
    np.testing.assert_array_equal(found.columns, exact.columns)
    assert found.status is Status.TIME_LIMIT


@pytest.mark.parametrize("solver", EVERY, ids=name_of)
def test_a_search_that_ends_by_itself_is_not_out_of_time(
    solver: Evolutionary | Bayesian | Surrogate, clock: Clock
) -> None:
    """With the trials and the answer of one without a limit."""
    few = replace(solver, num_trials=40)

    found = replace(few, time_limit_s=41.0).bind(taking(clock, 1.0, [])).solve(problem())
    expected = few.bind(taking(clock, 1.0, [])).solve(problem())

    assert found.status is expected.status is Status.FEASIBLE
    assert found.loss == expected.loss
    np.testing.assert_array_equal(found.columns, expected.columns)


@pytest.mark.parametrize("solver", EVERY, ids=name_of)
def test_the_study_goes_on(
    solver: Evolutionary | Bayesian | Surrogate, clock: Clock, tmp_path: Path
) -> None:
    """What was measured by then is measured once, and the end is that of one search."""
    first: list[int] = []
    second: list[int] = []
    whole = replace(solver, num_trials=60).bind(taking(clock, 1.0, []))
    stored = replace(whole, storage=str(tmp_path / "search.log"))

    replace(stored, time_limit_s=33.0).bind(taking(clock, 1.0, first)).solve(problem())
    resumed = stored.bind(taking(clock, 1.0, second)).solve(problem())

    assert (sum(first), sum(second)) == (33, 27)
    expected = whole.solve(problem())
    assert resumed.loss == expected.loss
    np.testing.assert_array_equal(resumed.columns, expected.columns)


def test_a_frontier_is_what_was_found_in_time(clock: Clock, tmp_path: Path) -> None:
    """Asked for afterwards, it measures nothing."""
    asked: list[int] = []
    solver = Evolutionary(
        num_trials=400, population_size=10, objectives="loss+costs", is_measured=True,
        storage=str(tmp_path / "search.log"), time_limit_s=50.0,
        objective=taking(clock, 1.0, asked),
    )  # fmt: skip

    found = solver.solve(problem())
    points = solver.found_frontier(problem())

    assert sum(asked) == 50
    assert points is not None
    assert min(point.loss for point in points) == found.loss


@pytest.mark.parametrize(
    "options", [{"is_measured": True}, {"time_limit_s": 5.0}], ids=["measured", "limited"]
)
def test_a_frontier_that_is_kept_nowhere(options: dict[str, bool | float]) -> None:
    """Would be another one when it is asked for."""
    solver = replace(Evolutionary(objectives="loss+costs"), **options)  # type: ignore[arg-type]

    with pytest.raises(InputError, match=r"objectives=loss\+costs needs storage=search\.log"):
        solver.check()
    replace(solver, storage="search.log").check()


@pytest.mark.parametrize("solver", EVERY, ids=name_of)
def test_no_assignment_was_found_by_then(
    solver: Evolutionary | Bayesian | Surrogate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With several budgets an assignment has to be found first; that takes of the time."""
    given: list[float | None] = []

    def nothing(asked: Problem, time_limit_s: float | None) -> Solution:
        given.append(time_limit_s)
        return Solution(Status.UNKNOWN, None, float("nan"), 0.1, "lagrangian", 0.0)

    monkeypatch.setattr(_base, "solve_additive", nothing)
    limited = replace(solver, time_limit_s=7.0)

    with pytest.raises(SolverError, match=f"{solver.name}: unknown: stopped before finding"):
        solve(limited, problem(budgets=2))
    assert given == [7.0]


@pytest.mark.parametrize("name", ["evolutionary", "bayesian", "surrogate"])
def test_a_time_limit_is_a_number_of_seconds(name: str) -> None:
    """As of the other solvers."""
    assert SOLVERS.build(f"{name}:time_limit_s=60").measuring_s(np.inf) == 60.0
    for text in ("0", "-1", "inf"):
        with pytest.raises(InputError, match=f"{name}: time_limit_s is a positive number"):
            SOLVERS.build(f"{name}:time_limit_s={text}")


def test_how_many_fit(clock: Clock) -> None:
    """By the last ones; one at least."""
    free, limited = Pace(None), Pace(10.0)

    assert (free.num_fitting, limited.num_fitting) == (None, 1)
    limited.took(4.0, 2)
    assert limited.num_fitting == 5
    clock.now += 9.9
    assert limited.num_fitting == 1
    assert not limited.stops(3)
    clock.now += 0.1
    assert (limited.stops(3), limited.stops(0), free.stops(3)) == (True, False, False)
