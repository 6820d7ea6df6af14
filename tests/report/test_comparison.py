"""The page of several searches: what of them cannot be compared, and numbers beside the picture."""

from dataclasses import replace

import pytest

from mpq.report.page import render
from mpq.report.page.comparison import Comparison
from mpq.report.page.facts import BATCH_SIZE, DeviceFacts, Facts
from mpq.report.page.render import comparing_page
from mpq.report.page.script_data import comparing_data
from mpq.workflows.page.facts import facts_of
from tests.report.made_up import blocks, curve, made_up
from tests.report.reading import tables

POINTS = "Points of all frontiers, and the answers"


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their scripts are tested in a browser, and are long."""
    monkeypatch.setattr(render, "vega_script", lambda: "vega")


def facts(score: str = "") -> Facts:
    """Of a small result."""
    found = made_up(blocks(6), score=score)
    return facts_of(found, curve(found, 3))


def test_costs_on_different_devices_share_no_axis_in_silence() -> None:
    """A note has their names, and so has the table of what made the runs."""
    one, other = (
        replace(facts(), device=DeviceFacts(name, "", "", "", ())) for name in ("m4", "m7")
    )

    mixed, alike = (Comparison({"a": one, "b": each}, {}) for each in (other, one))

    note = "Costs are those of different devices, and not one machine's: m4 and m7."
    assert note in mixed.notes
    assert alike.notes == ()
    assert ("device", ("m4", "m7")) in mixed.made


def test_latencies_of_different_batch_sizes_share_no_axis_in_silence() -> None:
    """A note has them."""
    one = facts()
    rows = dict(one.made) | {BATCH_SIZE: "32"}

    notes = Comparison({"a": one, "b": replace(one, made=tuple(rows.items()))}, {}).notes

    assert notes == ("Latency and energy are for different batch sizes: 1 and 32.",)


def test_a_run_without_a_score_has_no_other_judge() -> None:
    """Only scores of two names, or of two directions, cannot be compared."""
    alone, one, other = facts(), facts("mAP"), facts("miou")
    note = "Scores are by different judges, and cannot be compared."

    same = Comparison({"a": alone, "b": replace(one, higher_score_is_better=True)}, {})
    mixed = Comparison({"a": alone, "b": one, "c": other}, {})

    assert note not in same.notes
    assert note in mixed.notes
    drawn = [
        (data["scoreName"], data["higherScoreIsBetter"])
        for data in map(comparing_data, (same, mixed))
    ]
    assert drawn == [("mAP", True), ("", None)]


def test_layers_of_one_run_alone_are_told() -> None:
    """They differ in that the other run has none."""
    few, more = (facts_of(found, curve(found, 3)) for found in (
        made_up(blocks(5)), made_up(blocks(6)),
    ))  # fmt: skip
    told = b"layers differ, or are not in every run."

    pages = [
        comparing_page(Comparison({"a": x, "b": more}, {"a": "", "b": ""})) for x in (few, more)
    ]

    assert [told in page for page in pages] == [True, False]


def test_more_than_two_are_listed() -> None:
    """As a sentence has them, with one "and"."""
    runs = {
        name: replace(facts(), device=DeviceFacts(name, "", "", "", ()))
        for name in ("m4", "m7", "npu")
    }

    assert Comparison(runs, {}).notes[-1].endswith(": m4, m7 and npu.")


def test_what_the_picture_can_show_is_in_the_table() -> None:
    """Accuracy and score of the points that were measured, where there is any."""
    scored = facts("mAP")
    alone = facts()

    header, *rows = _points(scored)

    (answer,) = (row for row in rows[: len(rows) // 2] if row[1] == "answer")
    measured = next(x.measured for x in scored.points if x.kind == "answer")
    assert measured is not None
    assert answer[header.index("Accuracy")] == "90.0 % ± 1.3 %"
    assert answer[header.index("Score")] == f"{measured.score:.4g}"
    assert "Score" not in _points(alone)[0]


def test_what_runs_have_alike_stands_once() -> None:
    """The name of the loss and its unit are in the heading, where every run has the same."""
    header, first, *_ = _points(facts())

    one = facts()
    page = comparing_page(Comparison({"a": one, "b": one}, {"a": "", "b": ""}))
    answers = tables(page)["The answer of every run, on held-out examples, ± one standard error"]
    assert answers[0][2] == "Loss by the solver, predicted"
    assert answers[1][2].endswith(" nats")
    assert header[2] == "Predicted loss [nats]"
    assert first[2] == f"{one.points[0].loss:.3g}"


def _points(each: Facts) -> list[list[str]]:
    """The table of a result beside itself."""
    page = comparing_page(Comparison({"a": each, "b": each}, {"a": "", "b": ""}))
    return tables(page)[POINTS]
