"""One display for a whole command, on standard error."""

import pytest

from mpq._support.progress import showing_progress, track


def lines_of(text: str) -> list[str]:
    """What each line that is left on the screen is about."""
    return [line.split("\u2501")[0].strip() for line in text.splitlines() if line.strip()]


def test_work_that_is_done_again_takes_its_line_again(capsys: pytest.CaptureFixture[str]) -> None:
    """A frontier of many points is one line for the points and one for the solver, not many."""
    with showing_progress():
        for _ in track(range(24), "frontier"):
            for _ in track(range(200), "local search"):
                pass

    shown = capsys.readouterr()
    assert shown.out == ""
    assert lines_of(shown.err) == ["frontier", "local search"]
    assert "24/24" in shown.err
    assert "200/200" in shown.err


def test_a_display_inside_another_joins_it(capsys: pytest.CaptureFixture[str]) -> None:
    """A command shows bars, and so may the functions that it calls: there is one display."""
    with showing_progress():
        list(track([1, 2], "outer"))
        with showing_progress():
            list(track(iter([1, 2, 3]), "inner"))

    assert lines_of(capsys.readouterr().err) == ["outer", "inner"]


def test_work_inside_its_own_kind_has_no_second_line(capsys: pytest.CaptureFixture[str]) -> None:
    """The items come all the same."""
    with showing_progress():
        found = [(a, b) for a in track("ab", "words") for b in track("xy", "words")]

    assert found == [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]
    assert lines_of(capsys.readouterr().err) == ["words"]


def test_nothing_is_shown_where_nobody_asked(capsys: pytest.CaptureFixture[str]) -> None:
    """The items come as they are."""
    with showing_progress(False):
        found = list(track([1, 2], "work"))

    assert found == [1, 2]
    assert capsys.readouterr() == ("", "")
