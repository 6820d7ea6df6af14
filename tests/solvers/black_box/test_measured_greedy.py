"""Measured greedy: against a few lines that walk the same way, and what it does without trials."""

from typing import Any

import numpy as np
import pytest

import mpq
from mpq.errors import InputError, SolverError, UnknownNameError
from mpq.problem.solution import Status
from mpq.solvers.black_box.measured_greedy import MeasuredGreedy

SIZES = np.array([3.0, 1.0, 2.0, 2.0, 4.0, 1.0])
COST = SIZES[:, None] * np.array([1.0, 2.0, 4.0])
LOSS = np.array([5.13, 1.07, 2.21, 8.37, 3.19, 4.11])[:, None] * np.array([4.0, 2.0, 1.0])


def coupled(columns: Any) -> Any:
    """Losses that do not add up: neighbours make each other worse."""
    alone = LOSS[np.arange(6), columns]
    return alone.sum(axis=1) + (alone[:, 1:] * alone[:, :-1]).sum(axis=1) / 8


def walked(limit: float, sign: int) -> list[int]:
    """The same walk: the next level of every layer is tried, the best ratio is taken."""
    at = np.full(6, 2 if sign < 0 else 0)
    while True:
        used = COST[range(6), at].sum()
        if sign < 0 and used <= limit:
            return at.tolist()
        best, step = 0.0 if sign > 0 else -np.inf, None
        for layer in range(6):
            moved = at.copy()
            moved[layer] += sign
            if not 0 <= moved[layer] <= 2 or (sign > 0 and COST[range(6), moved].sum() > limit):
                continue
            gain = float(coupled(at[None])[0] - coupled(moved[None])[0])
            ratio = gain / abs(COST[range(6), moved].sum() - used)
            best, step = (ratio, moved) if ratio > best else (best, step)
        if step is None:
            return at.tolist()
        at = step


@pytest.mark.parametrize("limit", [15.0, 22.0, 31.0, 40.0, 52.0])
@pytest.mark.parametrize("direction", ["down", "up"])
def test_it_walks_as_a_reference_does(make_problem: Any, limit: float, direction: Any) -> None:
    """And measures no assignment twice, nor more than a batch at once."""
    seen: list[tuple[int, ...]] = []

    def losses(columns: Any) -> Any:
        assert len(columns) <= 4
        seen.extend(map(tuple, columns.tolist()))
        return coupled(columns)

    solver = MeasuredGreedy(direction, batch_size=4).bind(losses)
    found = solver.solve(make_problem(LOSS, [COST], [limit]))

    assert found.columns is not None
    assert found.columns.tolist() == walked(limit, -1 if direction == "down" else 1)
    assert found.loss == coupled(found.columns[None])[0]
    assert (found.status, found.bound) == (Status.FEASIBLE, None)
    assert len(set(seen)) == len(seen)


def test_of_levels_that_cost_as_much_each_is_tried(make_problem: Any) -> None:
    """Columns 1 and 2 are one level; the better of them is taken."""
    loss, cost = [[9.0, 4.0, 3.0, 0.0]] * 2, [[1.0, 2.0, 2.0, 4.0]] * 2

    found = MeasuredGreedy().solve(make_problem(loss, [cost], [4.0]))

    assert found.columns is not None
    assert found.columns.tolist() == [2, 2]


def test_without_trials_it_goes_by_what_is_known(make_problem: Any) -> None:
    """Last measurements, then the prediction; and no more than were allowed, but for the answer."""
    count = 0

    def losses(columns: Any) -> Any:
        nonlocal count
        count += len(columns)
        return LOSS[np.arange(6), columns].sum(axis=1)

    asked = make_problem(LOSS, [COST], [22.0])
    whole = MeasuredGreedy().bind(losses).solve(asked)
    needed, count = count, 0
    few = MeasuredGreedy(num_trials=8).bind(losses).solve(asked)

    # Where losses add up, what was measured once or predicted is what would be measured.
    assert few.columns is not None
    assert whole.columns is not None
    assert few.columns.tolist() == whole.columns.tolist()
    assert count <= 9 < needed


def test_two_budgets(make_problem: Any) -> None:
    """Only what saves of a budget that is broken is a step."""
    other = SIZES[::-1, None] * np.array([1.0, 2.0, 4.0])
    asked = make_problem(LOSS, [COST, other], [40.0, 25.0])

    found = MeasuredGreedy().bind(coupled).solve(asked)

    assert found.columns is not None
    assert asked.is_feasible(found.columns)
    assert MeasuredGreedy().solve(make_problem(LOSS, [COST], [1.0])).status is Status.INFEASIBLE


def test_what_it_refuses(make_problem: Any) -> None:
    """Words and numbers that mean nothing, no objective, and losses that are none."""
    asked = make_problem(LOSS, [COST], [30.0])

    with pytest.raises(UnknownNameError, match="direction of measured-greedy"):
        mpq.SOLVERS.build("measured-greedy:direction=left")
    with pytest.raises(InputError, match="num_trials >= 1"):
        MeasuredGreedy(num_trials=0)
    with pytest.raises(InputError, match="needs a network"):
        MeasuredGreedy(is_measured=True).solve(asked)
    with pytest.raises(SolverError, match="is nan"):
        MeasuredGreedy().bind(lambda columns: np.full(len(columns), np.nan)).solve(asked)
    with pytest.raises(InputError, match="got the shape"):
        MeasuredGreedy().bind(lambda columns: np.ones((len(columns), 2))).solve(asked)


@pytest.mark.parametrize("direction", ["down", "up"])
def test_a_step_between_infinite_losses_is_not_taken_before_one_that_mends(
    make_problem: Any, direction: Any
) -> None:
    """Infinity less infinity is no change that was measured: the last layer alone mends it."""
    sign = -1 if direction == "down" else 1

    def losses(columns: Any) -> Any:
        is_infinite = columns[:, 5] == (2 if sign < 0 else 0)
        return np.where(is_infinite, np.inf, coupled(columns))

    solver = MeasuredGreedy(direction).bind(losses)
    # Room for one step of the last layer alone, up; down, what that step saves is enough.
    limit = COST.min(axis=1).sum() + 1 if sign > 0 else COST.max(axis=1).sum() - 2
    found = solver.solve(make_problem(LOSS, [COST], [limit]))

    assert found.columns is not None
    assert found.columns[5] == 1
    assert np.isfinite(found.loss)


@pytest.mark.parametrize("direction", ["down", "up"])
def test_where_every_loss_is_infinite_the_prediction_decides(
    make_problem: Any, direction: Any
) -> None:
    """As without trials, and not by the order of layers."""
    asked = make_problem(LOSS, [COST], [22.0])

    found = MeasuredGreedy(direction).bind(lambda x: np.full(len(x), np.inf)).solve(asked)
    predicted = MeasuredGreedy(direction).solve(asked)

    assert found.columns is not None
    assert predicted.columns is not None
    assert found.columns.tolist() == predicted.columns.tolist()
