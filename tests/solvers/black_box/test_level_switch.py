"""Level switches: where they begin, where they lead, and that they keep to the budgets."""

from typing import Any

import numpy as np
import pytest

import mpq
from mpq.errors import InputError
from mpq.problem.solution import Status
from mpq.solvers.black_box.level_switch import LevelSwitch

SIZES = np.array([3.0, 1.0, 2.0, 2.0, 4.0, 1.0])
LOSS = np.array([5.0, 1.0, 2.0, 8.0, 3.0, 4.0])[:, None] * np.array([4.0, 2.0, 1.0])


@pytest.fixture
def asked(make_problem: Any) -> mpq.Problem:
    """Six layers at three levels, 26 units where uniform 2 takes 26 and uniform 3 takes 39."""
    return make_problem(LOSS, [SIZES[:, None] * np.array([1.0, 2.0, 3.0])], [26.0])  # type: ignore[no-any-return]


def test_it_begins_at_the_most_uniform_and_measures_none_twice(asked: mpq.Problem) -> None:
    """All within the budgets."""
    seen: list[tuple[int, ...]] = []

    def losses(columns: Any) -> Any:
        seen.extend(map(tuple, columns.tolist()))
        return LOSS[np.arange(6), columns].sum(axis=1)

    LevelSwitch(num_trials=60).bind(losses).solve(asked)

    assert seen[0] == (1,) * 6
    assert len(set(seen)) == len(seen) == 60
    assert all((SIZES * (np.array(columns) + 1)).sum() <= 26 for columns in seen)


def test_it_gets_to_the_least_loss(asked: mpq.Problem) -> None:
    """Of a small problem, which an exact solver solves."""
    exact = mpq.SOLVERS.build("lagrangian").solve(asked)

    found = LevelSwitch(num_trials=300, seed=1).solve(asked)

    assert found.loss == pytest.approx(exact.loss)
    assert found.status in (Status.OPTIMAL, Status.FEASIBLE)


def test_a_child_differs_by_few_switches(asked: mpq.Problem) -> None:
    """Of the first generation: at most three groups down and three up, a level each time."""
    seen: list[Any] = []

    def losses(columns: Any) -> Any:
        seen.extend(columns)
        return np.ones(len(columns))

    LevelSwitch(num_trials=17, batch_size=17).bind(losses).solve(asked)

    changes = [columns - 1 for columns in seen[1:]]
    assert len(changes) == 16
    # As many steps up as down, of layers that may go both ways.
    assert all(change.sum() == 0 and 0 < abs(change).sum() <= 6 for change in changes)


def test_without_a_uniform_precision_it_begins_at_the_additive_answer(make_problem: Any) -> None:
    """Where layers have no precision in common."""
    cost = [[1.0, 2.0, np.nan], [np.nan, 2.0, 3.0], [1.0, np.nan, 3.0]]
    asked = make_problem([[3.0, 2.0, 1.0]] * 3, [cost], [6.0])

    found = LevelSwitch(num_trials=20).solve(asked)

    assert found.columns is not None
    assert found.loss == mpq.SOLVERS.build("lagrangian").solve(asked).loss


def test_the_same_seed_finds_the_same(asked: mpq.Problem) -> None:
    """And a problem without an answer is known as such."""
    first, second = (LevelSwitch(num_trials=40, seed=3).solve(asked) for _ in range(2))

    assert first.columns is not None
    assert second.columns is not None
    assert first.columns.tolist() == second.columns.tolist()
    assert LevelSwitch().solve(asked.limited(asked.budgets[0].tables[0], 1.0)).columns is None


@pytest.mark.parametrize("options", [{"num_trials": 0}, {"batch_size": 0}, {"seed": -1}])
def test_numbers_that_mean_nothing(options: Any) -> None:
    """Refused where they are given."""
    with pytest.raises(InputError, match="level-switch needs"):
        LevelSwitch(**options)
