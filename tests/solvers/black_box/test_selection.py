"""Selection in steps: what is compared on how many examples, and what is refused."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import mpq
from mpq.errors import InputError
from mpq.solvers._base import MeasuredLosses
from mpq.solvers.black_box.level_switch import LevelSwitch
from mpq.solvers.black_box.selection import Selection

SIZES = np.array([3.0, 1.0, 2.0, 2.0, 4.0, 1.0])
LOSS = np.array([5.0, 1.0, 2.0, 8.0, 3.0, 4.0])[:, None] * np.array([4.0, 2.0, 1.0])


@pytest.fixture
def asked(make_problem: Any) -> mpq.Problem:
    """Six layers at three levels, 26 units where uniform 2 takes 26."""
    return make_problem(LOSS, [SIZES[:, None] * np.array([1.0, 2.0, 3.0])], [26.0])  # type: ignore[no-any-return]


def exact(columns: Any) -> Any:
    """The sum of single layers."""
    return LOSS[np.arange(6), columns].sum(axis=1)


def test_fewer_children_are_compared_on_more_examples(asked: mpq.Problem) -> None:
    """And the best of those that a step compared are what the next one sees."""
    seen: list[tuple[float, int, Any]] = []
    full: list[Any] = []

    def losses(columns: Any) -> Any:
        full.append(columns)
        return exact(columns)

    def on_share(share: float, seed: int) -> Any:
        def some(columns: Any) -> Any:
            seen.append((share, seed, columns))
            return exact(columns)

        return some

    solver = LevelSwitch(
        num_trials=9, batch_size=4, is_measured=True, selection="16@1/10;8@1/2"
    ).bind(MeasuredLosses(losses, dict, on_share))

    solver.solve(asked)

    first, second = seen[:2]
    assert [(share, len(columns)) for share, _, columns in seen] == [(0.1, 16), (0.5, 8)] * 3
    assert first[1] != second[1]
    best = np.sort(exact(first[2]))[:8]
    assert sorted(exact(second[2])) == best.tolist()
    assert exact(full[0])[1:].tolist() == best[:3].tolist()
    assert sum(map(len, full)) == 9


def test_it_finds_more_by_as_many_measurements_on_all_examples(asked: mpq.Problem) -> None:
    """Where a share says what all examples say, the steps leave the best of many."""
    plain = LevelSwitch(num_trials=20, batch_size=2, is_measured=True)
    measured = MeasuredLosses(exact, dict, lambda *_: exact)

    found = replace(plain, selection="64@1/8").bind(measured).solve(asked)

    assert found.loss < plain.bind(exact).solve(asked).loss


def test_what_it_takes_is_counted() -> None:
    """150 generations, of two, two and four passes."""
    solver = LevelSwitch(
        num_trials=600, batch_size=4, is_measured=True, selection="128@1/64;16@1/8"
    )

    assert solver.measuring_s(0.5) == 300
    assert solver.screening_s(0.5) == 150 * (2 + 2) * 0.5
    assert LevelSwitch().screening_s(0.5) == 0


def test_it_is_read_as_it_is_written() -> None:
    """Shares are fractions or decimals."""
    selection = Selection.parse("128@1/64;16@0.125")

    assert selection.steps == ((128, Fraction(1, 64)), (16, Fraction(1, 8)))
    assert str(selection) == "128@1/64;16@1/8"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("many", "got 'many'"),
        ("8@1/0", "got '8@1/0'"),
        ("8@1/4;8@1/2", "fewer assignments on more examples"),
        ("8@1/4;4@1/4", "fewer assignments on more examples"),
        ("8@1", "fewer assignments on more examples"),
        ("0@1/2", "fewer assignments on more examples"),
        ("8@1/2", "leaves fewer than batch_size=16"),
    ],
)
def test_selections_that_are_none(text: str, message: str) -> None:
    """Refused where they are given."""
    with pytest.raises(InputError, match=message):
        LevelSwitch(selection=text, is_measured=True)


def test_losses_that_are_not_measured_on_shares(asked: mpq.Problem) -> None:
    """A selection is not left out without a word."""
    with pytest.raises(InputError, match="is_measured=true"):
        LevelSwitch(selection="32@1/2")
    solver = LevelSwitch(selection="32@1/2", is_measured=True)
    with pytest.raises(InputError, match="shares of the examples"):
        solver.bind(exact).solve(asked)
