"""One display for a whole command, on standard error."""

import pytest

from mpq._support.progress import _shown, showing_progress, track


def bars() -> list[tuple[str, float, float | None]]:
    """Every line as it is now: what the work is, how much is done, of how much."""
    display = _shown.get()
    assert display is not None
    return [(bar.description, bar.completed, bar.total) for bar in display.bars.tasks]


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


def test_a_bar_says_how_much_is_done() -> None:
    """Of what is announced, or of what it turns out to be; done again, it begins at 0."""
    with showing_progress():
        for number, _ in enumerate(track("abc", "words")):
            assert bars() == [("words", number, 3)]
        assert bars() == [("words", 3, 3)]
        for number, _ in enumerate(track(iter("ab"), "words", total=5)):
            assert bars() == [("words", number, 5)]
        assert bars() == [("words", 2, 2)]
        for number, _ in enumerate(track(iter("ab"), "words")):
            assert bars() == [("words", number, None)]
        assert bars() == [("words", 2, 2)]
        assert list(track(iter(""), "nothing")) == []
        assert bars()[1:] == [("nothing", 0, 0)]


def test_inside_of_its_own_kind_the_bar_stays() -> None:
    """It is of the outer work; the kind has a line again, also after a consumer that stopped."""
    with showing_progress():
        for _ in track("ab", "words"):
            for _ in track("wxyz", "words"):
                assert bars()[0][2] == 2
        for _ in track("abcd", "words"):
            break
        for _ in track("abcde", "words"):
            assert bars() == [("words", 0, 5)]
            break


def test_what_has_a_length_tells_it() -> None:
    """Unless it is told."""
    with showing_progress():
        for _ in track([1, 2], "list", total=7):
            assert bars()[0][2] == 7
        for _ in track(range(3), "range"):
            assert bars()[1][2] == 3
    assert _shown.get() is None
