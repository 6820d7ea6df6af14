"""frontier.json, which mpq only writes: others can rely on its schema."""

import json
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

import mpq
from mpq._support.schema import read_schema, validate
from mpq.cli.console import print_frontier
from mpq.errors import FileFormatError
from mpq.problem.solution import Status
from mpq.report.frontier import Frontier, FrontierPoint
from mpq.report.measurement import Measurement
from mpq.report.sections import frontier_files
from mpq.report.stored_frontier import frontier_from_json
from mpq.workflows.page.facts import facts_of
from tests.report.made_up import blocks, curve, made_up

POINTS = tuple(
    FrontierPoint("frontier", cost, loss, {"a": mpq.Precision.parse("w4a8")}, status)
    for cost, loss, status in (
        (1.0, 3.0, Status.OPTIMAL),
        (2.0, 2.0, None),
        (4.0, 0.5, Status.UNKNOWN),
    )
)


def written(resource: str = "weight_bytes", num_points: int = 3) -> dict[str, Any]:
    """The file of a frontier, parsed."""
    frontier = Frontier(resource, "bytes", "nats", POINTS[:num_points])
    data: dict[str, Any] = json.loads(frontier_files(frontier, "mpq-run-0")["frontier.json"])
    return data


def check(data: Any) -> None:
    """Refuses what the schema does not have."""
    validate(data, read_schema("mpq.report", "frontier.schema.json"), "frontier")


@pytest.mark.parametrize("resource", ["weight_bytes", "latency"])
@pytest.mark.parametrize("num_points", [0, 1, 3])
def test_what_is_written_fits_the_schema(resource: str, num_points: int) -> None:
    """With and without a hypervolume, and whatever the cost is called."""
    check(written(resource, num_points))


@pytest.mark.parametrize("score", [None, 0.75])
def test_what_was_measured_is_read_again(score: float | None) -> None:
    """With the task's own score and without one: the page is made of this file."""
    measured = Measurement(0.5, 0.9, 0.3, 100, score=score, standard_error=0.01)
    frontier = Frontier("latency", "seconds", "nats", (replace(POINTS[0], measured=measured),))

    (found,) = frontier_from_json(frontier.to_json()).points

    assert found.measured == measured


def test_the_schema_has_every_status() -> None:
    """One that somebody adds is written at once."""
    point = read_schema("mpq.report", "frontier.schema.json")["properties"]["points"]["items"]

    assert {status.name.lower() for status in Status} < set(point["properties"]["status"]["enum"])


@pytest.mark.parametrize(
    ("change", "words"),
    [({"units": "bytes"}, "unknown key"), ({"schema_version": 2}, "1 was expected"),
     ({"points": [{"status": "optimal"}]}, "precisions")],
    ids=["key", "version", "point"],
)  # fmt: skip
def test_what_is_no_frontier_is_refused(change: dict[str, Any], words: str) -> None:
    """The schema says something."""
    with pytest.raises(FileFormatError, match=words):
        check(written() | change)


def test_a_point_that_was_cut_short_is_told_alike(capsys: pytest.CaptureFixture[str]) -> None:
    """By the terminal and by the page, in the words that the sentence about an answer begins with.

    Files have the name, which another program looks for.
    """
    result = made_up(blocks(4))
    frontier = curve(result, 4)
    points = tuple(replace(x, status=Status.TIME_LIMIT) for x in frontier.points)
    frontier = replace(frontier, points=points)

    print_frontier(frontier, Console(width=200))

    rows = [x for x in capsys.readouterr().out.splitlines() if x.strip().startswith("frontier ")]
    told = {point.status for point in facts_of(result, frontier).points if point.kind == "frontier"}
    assert rows
    assert all("out of time" in row for row in rows)
    assert told == {"out of time"}
    assert Status.TIME_LIMIT.value.startswith("out of time: ")
    assert '"time_limit"' in frontier.to_json()
