"""A result in Python: it writes its page, shows itself in a notebook, and draws into given axes."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

import mpq
from mpq.errors import InputError
from mpq.report import draw_bits, draw_frontier, figure_of
from mpq.report.frontier import TRIAL_LOSS, Frontier, FrontierPoint
from mpq.report.page import render
from mpq.workflows.page.report import report
from mpq.workflows.sentences import answer_sentences
from tests.recipes.reference import data, tiny
from tests.report.made_up import HOSTILE, blocks, curve, made_up
from tests.report.made_up_comparisons import estimators, recipes
from tests.report.reading import read


def test_a_search_from_python_writes_the_page_and_its_phases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the command does; what is loaded and saved again is the same, page included."""
    monkeypatch.setattr(render, "vega_script", lambda: "vega")
    task = mpq.Task(tiny(), data, data, candidates=["w4a4", "w8a8"], rounding="nearest")

    result = mpq.search(task, ["bit_operations=12000"], sensitivity="weight-error")
    files = {file.name for file in result.save(tmp_path / "a")}
    page = (tmp_path / "a" / "report.html").read_bytes()
    loaded = mpq.load(tmp_path / "a")

    assert {"report.html", "made.json", "result.json", "frontier.png"} <= files
    phases = [phase.name for phase in loaded.made.phases]
    assert phases[:2] == ["layers and costs", "ranges"]
    assert phases[-1] == "frontier"
    assert loaded.made.phases[:-1] == result.made.phases
    assert report([tmp_path / "a"], tmp_path / "again.html").read_bytes() == page
    loaded.save(tmp_path / "b")
    assert [phase.name for phase in mpq.load(tmp_path / "b").made.phases] == phases


def test_a_notebook_shows_the_comparison() -> None:
    """Numbers of every network that was measured, as text: no script, no attribute of theirs."""
    found = made_up(blocks(8), score="</td><script>")

    plain, hostile = found._repr_html_(), made_up(HOSTILE)._repr_html_()

    parsed = read(plain.encode())
    assert parsed.tags.count("tr") == 1 + len(found.comparisons)
    assert f"{found.measured.score:.4g}" in plain
    assert f"{found.measured.divergence:.3g}" in plain
    assert "The answer has" in plain
    for text in (plain, hostile):
        assert not {"script", "style", "img", "a"} & set(read(text.encode()).tags)


def test_what_a_notebook_shows_is_short() -> None:
    """Of frontiers and comparisons a line, of a result a table, however names are and how many."""
    many, hostile = made_up(blocks(500)), made_up(HOSTILE, score="<script>'\"\n😀" + "y" * 300)
    frontier = replace(curve(hostile), resource="\x1b]0;owned" + "z" * 300)
    lines = [repr(x) for x in (curve(many), frontier)]
    lines += [repr(make(HOSTILE[:3], HOSTILE[3:5])) for make in (estimators, recipes)]

    html = hostile._repr_html_()

    assert max(map(len, lines)) < 150
    assert all(line.isprintable() for line in lines)
    assert len(many._repr_html_()) < 5000
    assert "y" * 100 not in html
    assert not {"script", "style", "img", "a"} & set(read(html.encode()).tags)
    assert not [name for name, _ in read(html.encode()).attributes if name.startswith("on")]


def test_a_notebook_shows_a_result_of_which_nothing_was_measured() -> None:
    """As of mpq 0.1."""
    found = replace(made_up(blocks(4)), comparisons=())

    assert "Nothing was measured of this result." in found._repr_html_()
    assert any(line.startswith("predicted loss: ") for line in answer_sentences(found))


def test_a_frontier_says_what_its_losses_are() -> None:
    """Those that a solver measured as it went are not predicted."""
    predicted = curve(made_up(blocks(6)), 4)
    tried = replace(predicted, loss_name=TRIAL_LOSS)

    found = [repr(x).rpartition(", ")[2] for x in (predicted, tried)]

    assert found == ["predicted loss>", "measured loss>"]


def test_a_frontier_is_drawn_into_given_axes() -> None:
    """They come back to be restyled; without any, there are new ones."""
    figure = Figure()
    left, right = figure.subplots(1, 2)
    result = made_up(blocks(6))
    frontier = curve(result, 4)

    assert draw_frontier(frontier, left) is left
    assert draw_bits(result.assignment, right) is right
    assert figure_of(left) is figure
    assert left.get_ylabel() == "loss [nats]"
    assert len(right.get_xticklabels()) == 6
    alone = draw_frontier(frontier)
    assert figure_of(alone).axes == [alone]
    assert len(result.plot(frontier=frontier).axes) == 1


def test_no_name_of_a_picture_lies_over_another() -> None:
    """Nor over the legend, nor beyond the axes: of points that cost the same, at an edge."""
    frontier = curve(made_up(blocks(6)), 6)
    last = frontier.points[-1]
    heap = tuple(replace(last, label=f"w{k}a8", cost=last.cost * 0.999) for k in range(9))
    far = replace(last, label="original.at.the.very.edge")

    axes = draw_frontier(replace(frontier, others=(*heap, far)))

    figure_of(axes).canvas.draw()
    legend = axes.get_legend()
    assert legend is not None
    boxes = {x.get_text(): x.get_window_extent() for x in axes.texts if x.get_visible()}
    assert {*boxes} == {*(p.label for p in heap), far.label}
    boxes["legend"] = legend.get_window_extent()
    met = [(a, b) for a, b in combinations(boxes, 2) if boxes[a].overlaps(boxes[b])]
    assert met == []
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes.values())


@pytest.mark.parametrize("given", [Figure(), Figure().subplots(1, 2)], ids=["figure", "array"])
def test_what_are_no_axes_are_told(given: Any) -> None:
    """A figure, or the array that ``subplots`` makes of several."""
    result = made_up(blocks(6))

    with pytest.raises(InputError, match=rf"axes is {type(given).__name__}; expected one"):
        draw_frontier(curve(result, 4), given)
    with pytest.raises(InputError, match=rf"axes is {type(given).__name__}; expected one"):
        draw_bits(result.assignment, given)


def test_scores_are_drawn_of_measured_points() -> None:
    """Nobody predicts one; without any there is nothing to draw."""
    result = made_up(blocks(6), score="judge")
    others = result.beside("weight_bytes")
    frontier = replace(curve(result, 4), others=others)

    axes = draw_frontier(frontier, upwards="score")

    drawn = {line.get_label(): line for line in axes.lines}
    assert set(drawn) == {"uniform, measured", "chosen, measured"}
    answer = next(point for point in others if point.label == "result")
    assert answer.measured is not None
    heights = np.asarray(drawn["chosen, measured"].get_ydata())
    assert heights.tolist() == [answer.measured.score]
    with pytest.raises(InputError, match="no point of this frontier has a score"):
        draw_frontier(curve(made_up(blocks(6)), 4), upwards="score")


@pytest.mark.parametrize(
    ("most", "unit"), [(900.0, "B"), (40_000.0, "KiB"), (5_000_000.0, "MiB")]
)  # fmt: skip
def test_a_picture_has_the_units_of_the_tables(most: float, unit: str) -> None:
    """Round numbers of them, whatever the limits of the axis become."""
    points = tuple(FrontierPoint("frontier", most / k, 1.0 * k, {}) for k in (3, 2, 1))
    axes = draw_frontier(Frontier("weight_bytes", "bytes", "nats", points))

    figure_of(axes).canvas.draw()
    low, high = axes.get_xlim()
    texts = [x.get_text() for x in axes.get_xticklabels() if low <= x.get_position()[0] <= high]

    assert len(texts) >= 3
    assert {text.split()[1] for text in texts} == {unit}
    assert all(len(text.split()[0].replace(".", "")) <= 3 for text in texts)
