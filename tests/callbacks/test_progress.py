"""One display for a whole command, on standard error."""

import io
import sys
from collections.abc import Iterator

import pytest

from mpq._support.events import listening, tell
from mpq._support.phases import PhaseBegan, PhaseEnded, phase
from mpq._support.progress import Progressed, track
from mpq.callbacks import Ended, Planned, Progress
from mpq.callbacks import progress as module
from mpq.callbacks.time_left import TimeLeft
from tests.callbacks.listeners import Kept


class Terminal(io.StringIO):
    """Standard error of somebody who looks."""

    def isatty(self) -> bool:
        """Yes."""
        return True


def looked_at(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Makes standard error a terminal; not in a fixture, after which pytest puts its own there."""
    found = Terminal()
    monkeypatch.setattr(sys, "stderr", found)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return found


def progressed(kept: Kept) -> list[tuple[str, int, int | None]]:
    return [(e.work, e.done, e.total) for e in kept.of(Progressed)]


def test_bars_are_drawn_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of work inside of other work, too; standard output stays empty."""
    terminal = looked_at(monkeypatch)
    with listening([Progress()]):
        for _ in track(range(24), "frontier"):
            for _ in track(range(200), "local search"):
                pass

    shown = terminal.getvalue()
    assert "frontier" in shown
    assert "24/24" in shown
    assert "200/200" in shown
    assert capsys.readouterr().out == ""


def test_work_that_is_done_again_has_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its total is not known."""
    looked_at(monkeypatch)
    bars = module._Bars()
    for _ in range(3):
        for done, total in ((0, None), (1, None), (1, 1)):
            bars.show(Progressed("second moments", done, total))
        for done in range(4):
            bars.show(Progressed("codes", done, 3, 0.0 if done else None))
    found = [(task.description, task.completed, task.total) for task in bars._bars.tasks]
    bars.show(Ended())

    assert sorted(found) == [("codes", 3, 3), ("second moments", 1, 1)]


def test_the_time_left_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the work, and of all that was planned; the plan is told in a line."""
    terminal = looked_at(monkeypatch)
    bars = module._Bars()
    bars.show(
        Planned({"estimate": 60.0, "measuring": 120.0}, 180.0, ("biases",), {"solving": 20.0})
    )
    bars.show(Progressed("passes", 1, 3, 40.0))
    (task,) = bars._bars.tasks
    bars.show(Ended())

    assert task.fields["left"] == "40 s left, 3 min in all"
    assert (
        "plan: estimate 1 min, measuring 2 min; 3 min in all, besides solving up to 20 s and biases"
        in terminal.getvalue()
    )


def test_a_plan_of_upper_bounds_alone_says_so() -> None:
    """No sum is made of them."""
    plan = Planned({}, 0.0, ("measuring",), {"tuning": 90.0})

    assert module.plan_told(plan) == "plan: tuning up to 1.5 min, besides measuring"


def test_short_work_says_nothing_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    """A file or a pipe gets no bars."""
    with listening([Progress()]), phase("estimate"):
        list(track([1, 2], "work"))

    assert capsys.readouterr() == ("", "")


def test_long_work_writes_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first after ten seconds, one a minute afterwards."""
    now = iter(float(x) for x in range(1000))
    monkeypatch.setattr(module, "perf_counter", lambda: next(now))
    with listening([Progress()]):
        tell(PhaseBegan("estimate"))
        for done in range(100):
            tell(Progressed("passes", done, 100, 100.0 - done))
        tell(PhaseEnded("estimate", 1.0))

    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "estimate: passes 9 of 100, 1.5 min left"
    assert len(lines) == 2


def test_a_line_says_how_far_the_planned_work_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside what is done within one of its items; no plan, no word."""
    monkeypatch.setattr(module, "_FIRST_LINE_S", 0.0)
    monkeypatch.setattr(module, "_SECONDS_BETWEEN", 0.0)
    lines = module._Lines()
    for event in (
        Planned({"recipes": 60.0}, 60.0), Progressed("recipes", 0, 3), PhaseBegan("solving"),
        Progressed("level-switch search", 321, 1000, 300.0),
    ):  # fmt: skip
        lines.show(event)

    _, first, inner = capsys.readouterr().err.splitlines()
    assert first.startswith("recipes 0 of 3; of all work ")
    told = (
        "solving: level-switch search 321 of 1000, 5 min left; recipes 0 of 3, of all work 5.7 min"
    )
    assert inner == told


def test_nothing_is_told_where_nobody_asked() -> None:
    """The items come as they are, without a generator of ours."""
    items = [1, 2]

    assert list(track(items, "work")) == items
    assert type(track(items, "work")) is type(iter(items))


def test_work_inside_its_own_kind_is_not_told() -> None:
    """The items come all the same; the kind is told again, also after a consumer that stopped."""
    kept = Kept()
    with listening([kept]):
        found = [(a, b) for a in track("ab", "words") for b in track("xy", "words")]
        for _ in track("abcd", "words"):
            break
        list(track("a", "words"))

    assert found == [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]
    assert progressed(kept) == [
        ("words", 0, 2), ("words", 1, 2), ("words", 2, 2), ("words", 0, 4), ("words", 0, 1),
        ("words", 1, 1),
    ]  # fmt: skip


def test_how_much_is_done_of_how_much() -> None:
    """Of what is announced, or of what it turns out to be."""

    def told(items: Iterator[str], total: int | None = None) -> list[tuple[int, int | None]]:
        kept = Kept()
        with listening([kept]):
            list(track(items, "words", total))
        return [(done, total) for _, done, total in progressed(kept)]

    assert told(iter("ab"), total=5) == [(0, 5), (1, 5), (2, 5), (2, 2)]
    assert told(iter("ab")) == [(0, None), (1, None), (2, None), (2, 2)]
    assert told(iter("")) == [(0, None), (0, 0)]


def test_what_is_left_is_corrected_by_what_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as slow so far: twice as long to the end; what has passed is taken off."""
    from mpq.callbacks import time_left

    clock = [0.0]
    monkeypatch.setattr(time_left, "perf_counter", lambda: clock[0])
    left = TimeLeft()
    assert left.seconds is None
    left.take(Planned({"estimate": 10.0, "solving": 2.0, "measuring": 20.0}, 32.0))
    assert left.seconds == 32
    left.take(PhaseBegan("estimate"))
    clock[0] = 4.0
    assert left.seconds == 28
    clock[0] = 99.0
    assert left.seconds == 22
    left.take(Progressed("codes", 1, 2, 5.0))
    assert left.seconds == 27
    left.take(PhaseEnded("estimate", 20.0))
    assert left.seconds == 44
    left.take(PhaseBegan("other"))
    assert left.seconds == 44
    left.take(PhaseEnded("solving", 4.0))
    left.take(PhaseEnded("measuring", 40.0))
    assert left.seconds == 0


def test_a_phase_that_a_cache_had_says_nothing_of_the_others() -> None:
    """The machine is no faster for it."""
    left = TimeLeft()
    left.take(Planned({"estimate": 10.0, "measuring": 20.0}, 30.0))
    left.take(PhaseEnded("estimate", 0.1))

    assert left.seconds == 20


def test_work_that_was_planned_by_its_name_knows_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own time left counts, also where it is less than planned; at its end nothing is left.

    The item that is under way does not end before what is done in it, and passes otherwise.
    """
    from mpq.callbacks import time_left

    clock = [0.0]
    monkeypatch.setattr(time_left, "perf_counter", lambda: clock[0])
    left = TimeLeft()
    left.take(Planned({"recipes": 60.0}, 60.0))
    left.take(Progressed("recipes", 0, 3))
    left.take(PhaseBegan("estimate"))
    left.take(Progressed("passes", 1, 2, 99.0))
    clock[0] = 10.0
    assert left.seconds == 40 + 99
    left.take(Progressed("passes", 2, 2, 0.0))
    assert left.seconds == 40 + 20 - 10
    clock[0] = 25.0
    assert left.seconds == 40
    left.take(PhaseEnded("estimate", 25.0))
    left.take(Progressed("recipes", 1, 3, 30.0))
    assert left.seconds == 30
    clock[0] = 29.0
    assert left.seconds == 15 + 15 - 4
    left.take(Progressed("recipes", 3, 3, 0.0))
    assert left.seconds == 0


def test_a_plan_that_is_told_again_counts_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of the phase that is under way."""
    from mpq.callbacks import time_left

    clock = [0.0]
    monkeypatch.setattr(time_left, "perf_counter", lambda: clock[0])
    left = TimeLeft()
    left.take(Planned({"layers": 10.0, "networks": 20.0}, 30.0))
    left.take(PhaseBegan("layers"))
    clock[0] = 8.0
    left.take(Planned({"layers": 40.0, "networks": 80.0}, 120.0))
    clock[0] = 9.0

    assert left.seconds == 119
