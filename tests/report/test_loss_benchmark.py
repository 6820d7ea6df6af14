"""Benchmarks of measured assignments: files, and what makes them refused."""

import json
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest

from mpq.errors import FileFormatError
from mpq.report.loss_benchmark import LossBenchmark, MeasuredAssignment

ROWS = (
    MeasuredAssignment("effective_bits=3", "random", (0, 1), 0.25, 0.5),
    MeasuredAssignment("effective_bits=3", "rising", (1, 1), 2.0, None),
)
SOME = LossBenchmark("f0", ("a", "b"), ("w2", "w4"), "nats", 0.5, 7, ROWS)


def test_there_and_back(tmp_path: Path) -> None:
    """What is written is read alike."""
    file = SOME.save(tmp_path / "bench.json")

    assert LossBenchmark.load(file) == SOME
    assert json.loads(file.read_text())["rows"][0]["loss"] == 0.25


def test_without_a_largest_loss(tmp_path: Path) -> None:
    """JSON has no infinity: it is null there, and infinite again."""
    rows = (replace(ROWS[0], loss=inf), *ROWS[1:])
    file = replace(SOME, max_loss=inf, rows=rows).save(tmp_path / "bench.json")

    assert "Infinity" not in file.read_text()
    assert LossBenchmark.load(file) == replace(SOME, max_loss=inf, rows=rows)


def test_its_table() -> None:
    """The unit is in the name of the column."""
    table = SOME.table()

    assert table["measured_nats"].tolist() == [0.25, 2.0]
    assert table["b"].tolist() == ["w4", "w4"]
    assert SOME.counted == ROWS[:1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"unit"', '"units"', "unknown key 'units'|unit"),
        ("[0, 1]", "[0, 2]", "2 layers and 2 candidates"),
        ("[0, 1]", "[0]", r"the columns \[0\]"),
        ('"schema_version": 1', '"schema_version": 2', "schema version 2"),
        ('"loss": 0.25', '"loss": "x"', "rows/0/loss"),
    ],
)
def test_what_is_no_benchmark(old: str, new: str, message: str, tmp_path: Path) -> None:
    """The file is named, and what is wrong with it."""
    file = tmp_path / "bench.json"
    file.write_text(SOME.to_json().replace(old, new))

    with pytest.raises(FileFormatError, match=message) as error:
        LossBenchmark.load(file)
    assert str(error.value).count(str(file)) == 1
