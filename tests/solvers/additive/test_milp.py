"""What stands around an integer program: what is known before, and what is made of its answer."""

from dataclasses import replace
from typing import Any

import numpy as np
import pulp
import pytest

from mpq.problem.problem import Problem
from mpq.problem.solution import Status
from mpq.solvers.additive import milp as module_under_test
from mpq.solvers.additive.milp import (
    Answer,
    Effort,
    _best_of,
    _columns,
    _greedy,
    _is_proved,
    _no_worse,
    _Program,
    _solved,
    _within,
    _worthwhile,
    solve_cells,
)
from mpq.solvers.additive.presolve import Reduced
from mpq.solvers.additive.pulp_backend import Way
from tests.conftest import MakeProblem

EFFORT = Effort(Way("HiGHS"))
LOSS = [[4.0, 2.0, 0.0], [4.0, 2.0, 0.0]]
COST = [[0.0, 1.0, 3.0], [0.0, 1.0, 3.0]]


def problem_of(make_problem: MakeProblem, limit: float = 4.0) -> Problem:
    """Two layers alike; within 4, one at its best and the other in the middle: a loss of 2."""
    return make_problem(LOSS, [COST], [limit])


def columns(*chosen: int) -> Any:
    """``[G]``."""
    return np.array(chosen, dtype=np.intp)


def test_of_equal_answers_the_program_s_own_stays(make_problem: MakeProblem) -> None:
    """A known one replaces what is worse, and what is missing; never an infeasible program."""
    problem = problem_of(make_problem)
    best, other, worse = columns(2, 1), columns(1, 2), columns(1, 1)
    answer = Answer(Status.OPTIMAL, best, 2.0)

    assert _no_worse(problem, answer, other) is answer
    assert _no_worse(problem, answer, worse) is answer
    assert _no_worse(problem, answer, None) is answer
    found = _no_worse(problem, Answer(Status.FEASIBLE, worse, 1.0), best)
    assert (found.status, found.bound) == (Status.FEASIBLE, 1.0)
    assert found.columns is best
    found = _no_worse(problem, Answer(Status.UNKNOWN, None, 1.0), best)
    assert (found.status, found.bound) == (Status.TIME_LIMIT, 1.0)
    assert found.columns is best
    nothing = Answer(Status.INFEASIBLE, None, None)
    assert _no_worse(problem, nothing, best) is nothing


@pytest.mark.parametrize(
    ("status", "chosen", "bound", "is_proved"),
    [
        (Status.OPTIMAL, (2, 1), 2.0, True),
        (Status.OPTIMAL, (2, 1), 2.0 - 1e-9, True),
        (Status.OPTIMAL, (2, 1), 2.0 - 1e-7, False),
        (Status.OPTIMAL, (2, 1), None, True),
        (Status.FEASIBLE, (2, 1), 0.0, True),
        (Status.OPTIMAL, None, 0.0, True),
    ],
)
def test_an_optimum_reaches_its_bound(
    make_problem: MakeProblem,
    status: Status,
    chosen: tuple[int, ...] | None,
    bound: float | None,
    is_proved: bool,
) -> None:
    """Up to rounding; what claims none, or has no bound, has none to reach."""
    answer = Answer(status, None if chosen is None else columns(*chosen), bound)

    assert _is_proved(problem_of(make_problem), answer) == is_proved


def test_the_best_of_what_is_known(make_problem: MakeProblem) -> None:
    """Feasible, and among the cells; the uniform precisions are known without being named."""
    problem = problem_of(make_problem)
    every = np.ones((2, 3), dtype=np.bool_)
    no_middle = every.copy()
    no_middle[0, 1] = False

    assert _best_of(problem, every, None).tolist() == [1, 1]  # type: ignore[union-attr]
    found = _best_of(problem, every, columns(2, 2), columns(1, 2), columns(0, 1))
    assert found is not None
    assert found.tolist() == [1, 2]
    assert _best_of(problem, no_middle, columns(1, 2)) is None
    found = _best_of(problem, no_middle, columns(2, 1), None)
    assert found is not None
    assert found.tolist() == [2, 1]


def test_cells_that_alone_lose_more_are_left_out(make_problem: MakeProblem) -> None:
    """Than a choice that is known; as much is not more. What then fits no longer goes as well."""
    problem = make_problem([[9.0, 2.0, 0.0], [2.0, 1.0, 0.0]], [COST], [4.0])
    reduced = Reduced.of(problem.grouped)

    assert _worthwhile(problem, reduced, columns(1, 2)).usable.tolist() == [
        [False, True, True],
        [True, True, True],
    ]
    assert _worthwhile(problem, reduced, columns(2, 1)).usable.tolist() == [
        [False, False, True],
        [False, True, False],
    ]
    assert _worthwhile(problem, reduced, columns(0, 0)).usable.all()


@pytest.mark.parametrize(("size", "is_made"), [(6, True), (5, False)])
def test_the_greedy_choice_is_made_of_so_many_cells(
    make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch, size: int, is_made: bool
) -> None:
    """At the limit, too; it is within the budgets."""
    monkeypatch.setattr(module_under_test, "_MAX_GREEDY", size)

    found = _greedy(Reduced.of(problem_of(make_problem).grouped))

    assert (found is not None) == is_made
    if found is not None:
        assert sorted(found.tolist()) == [1, 2]


def test_a_program_in_its_own_scale(make_problem: MakeProblem) -> None:
    """The largest difference is a thousand; a row without a choice is in the offset."""
    problem = make_problem([[5.0, 1.0], [0.0, 8.0], [3.0, 3.0]], [[[0, 2.0], [5, 1], [2, 2]]], [8])
    usable = np.array([[True, True], [True, True], [True, False]])

    reduced = Reduced.of(problem.grouped, usable)
    program = _Program.of(reduced, [])

    assert program.factor == 1e3 / 8
    assert program.offset == reduced.offset == 1.0 + 0.0 + 3.0
    assert sorted(program.variables) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert program.kept[2] == 0
    assert not program.is_excluded
    objective = {str(x): value for x, value in program.model.objective.items()}
    assert objective["x_1_1"] == 1e3
    assert objective["x_0_0"] == 500.0
    answer = _solved(program, EFFORT, None)
    assert answer.status is Status.OPTIMAL
    assert answer.bound == pytest.approx(8.0)
    assert answer.columns is not None
    assert answer.columns.tolist() == [0, 0, 0]


@pytest.mark.parametrize("margin", [0.0, 0.25])
def test_a_margin_is_a_retreat_from_every_limit(make_problem: MakeProblem, margin: float) -> None:
    """In shares of what is free: 3 of 4 are left, for two steps to the middle and no more."""
    reduced = Reduced.of(problem_of(make_problem).grouped)

    answer = _solved(_Program.of(reduced, [], margin), EFFORT, None)

    assert answer.bound == pytest.approx(4.0 if margin else 2.0)


def test_what_is_excluded_is_no_answer(make_problem: MakeProblem) -> None:
    """Another of the same loss is, then the next; at the end there is none."""
    reduced = Reduced.of(problem_of(make_problem).grouped)
    excluded: list[Any] = []
    losses = []
    for _ in range(9):
        answer = _solved(_Program.of(reduced, excluded), EFFORT, None)
        if answer.columns is None:
            break
        losses.append(reduced.loss(answer.columns))
        excluded.append(answer.columns)

    assert answer.status is Status.INFEASIBLE
    # All but the two at their best, which cost 6: each once, by rising loss.
    assert losses == [2.0, 2.0, 4.0, 4.0, 4.0, 6.0, 6.0, 8.0]
    assert len({tuple(c) for c in excluded}) == 8


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.0, 1.0, 0.0, 1.0), [1, 1]),
        ((0.4, 0.6, 0.7, 0.3), [1, 0]),
        ((0.5, 0.5, 0.0, 1.0), None),
        ((1e-7, 1 - 1e-7, 1.0, 0.0), [1, 0]),
        ((0.6, 0.7, 1.0, 0.0), [1, 0]),
        ((0.0, 1.0, 0.3, 0.3), None),
        ((None, 1.0, 1.0, 0.0), None),
    ],
)
def test_a_cell_is_taken_above_one_half(
    make_problem: MakeProblem, values: tuple[float | None, ...], expected: list[int] | None
) -> None:
    """A backend that was stopped may leave none; of two the larger one is taken."""
    problem = make_problem([[1.0, 0.0]] * 2, [[[0.0, 1.0]] * 2], [1.0])
    program = _Program.of(Reduced.of(problem.grouped), [])
    for cell, value in zip(((0, 0), (0, 1), (1, 0), (1, 1)), values, strict=True):
        program.variables[cell].varValue = value

    found = _columns(program)

    assert (None if found is None else found.tolist()) == expected


class Backend:
    """Answers with choices that are written down, and notes what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: tuple[int, ...]) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []
        monkeypatch.setattr(module_under_test, "run", self)

    def __call__(
        self, model: Any, way: Way, seconds: Any, relative_gap: float = 0.0, **options: Any
    ) -> float:
        """As ``pulp_backend.run``."""
        started = {str(x): x.varValue for x in model.variables()}
        self.asked.append(options | {"gap": relative_gap, "start": started})
        chosen = self.answers.pop(0)
        for x in model.variables():
            _, group, column = str(x).split("_")
            x.varValue = float(chosen[int(group)] == int(column))
        model.sol_status = pulp.LpSolutionOptimal
        return 0.0


def test_answers_beyond_a_budget_are_cut_off(
    make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until one is within; only the first program begins at what is known."""
    problem = problem_of(make_problem)
    backend = Backend(monkeypatch, (2, 2), (2, 2), (2, 1))

    answer = _within(problem, Reduced.of(problem.grouped), EFFORT, columns(1, 1))

    assert answer.columns is not None
    assert answer.columns.tolist() == [2, 1]
    assert [asked["warm_start"] for asked in backend.asked] == [True, False, False]
    assert backend.asked[0]["start"]["x_0_1"] == 1.0
    assert backend.asked[0]["start"]["x_0_2"] == 0.0


@pytest.mark.parametrize("is_inside", [True, False])
def test_after_twenty_cuts_all_limits_are_drawn_in(
    make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch, is_inside: bool
) -> None:
    """Then what is within is feasible, with the bound of the first program; else nothing is."""
    problem = problem_of(make_problem)
    last = (1, 1) if is_inside else (2, 2)
    backend = Backend(monkeypatch, *[(2, 2)] * 21, last)

    answer = _within(problem, Reduced.of(problem.grouped), EFFORT, None)

    assert len(backend.asked) == 22
    assert answer.status is (Status.FEASIBLE if is_inside else Status.UNKNOWN)
    assert (answer.columns is not None) == is_inside
    assert answer.bound == 0.0


@pytest.mark.parametrize(
    ("effort", "status"),
    [
        (Effort(Way("HiGHS")), Status.OPTIMAL),
        (Effort(Way("HiGHS"), relative_gap=0.5), Status.FEASIBLE),
        (Effort(Way("HiGHS"), absolute_gap=0.5), Status.FEASIBLE),
    ],
)
def test_within_a_gap_nothing_is_called_optimal(
    make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch, effort: Effort, status: Status
) -> None:
    """The absolute gap is in the loss's unit, and scaled like the objective."""
    problem = problem_of(make_problem)
    backend = Backend(monkeypatch, (2, 1))
    program = _Program.of(Reduced.of(problem.grouped), [])

    answer = _solved(program, effort, None)

    assert answer.status is status
    assert backend.asked[0]["gap"] == effort.relative_gap
    assert backend.asked[0]["absolute_gap"] == effort.absolute_gap * 1e3 / 4


def test_an_answer_far_below_the_largest_loss_is_solved_again(make_problem: MakeProblem) -> None:
    """In the scale of what is left: one loss of a thousand hides the other ones' differences."""
    loss = [[1000.0, 3.0, 0.0], [2.0, 1.0, 0.0], [2.0, 1.0, 0.0]]
    cost = [[0.0, 0.0, 3.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]
    problem = make_problem(loss, [cost], [4.0])

    answer = solve_cells(problem, problem.grouped.allowed, EFFORT)

    assert answer.status is Status.OPTIMAL
    assert answer.columns is not None
    expected = min(
        loss[0][a] + loss[1][b] + loss[2][c]
        for a in range(3) for b in range(3) for c in range(3)
        if cost[0][a] + cost[1][b] + cost[2][c] <= 4
    )  # fmt: skip
    assert problem.loss_of(answer.columns) == expected
    assert answer.bound == pytest.approx(expected)


def test_no_cell_is_no_answer(make_problem: MakeProblem) -> None:
    """A limit below what everything costs at least is infeasible before any program."""
    problem = make_problem([[1.0, 0.0]], [[[1.0, 2.0]]], [0.5])

    answer = solve_cells(problem, problem.grouped.allowed, replace(EFFORT, time_limit_s=1.0))

    assert answer.status is Status.INFEASIBLE
    assert (answer.columns, answer.bound) == (None, None)
