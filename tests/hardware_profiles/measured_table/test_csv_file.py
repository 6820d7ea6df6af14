"""Files of measured tables: JSON and CSV round trips, units, and files that make no sense."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from mpq.cli.__main__ import app
from mpq.errors import FileFormatError, InputError, UnknownNameError
from mpq.hardware_profiles import (
    Conversion,
    Entry,
    FixedPart,
    MeasuredTable,
    load_device,
    profile_from_dict,
)
from mpq.quantization.precision import Precision

FP32, W8, W4 = map(Precision.parse, ("fp32", "w8a8", "w4g32a32"))
BASE = Conversion("fp32", "int8", 1e-6, 1e-9, "measured for a test")
BACK = Conversion("int8", "fp32", 2e-6, 3e-9, "measured for a test")


def entry(
    features: int = 16,
    outputs: int = 8,
    tokens: int = 1,
    precision: Precision = FP32,
    seconds: float = 1e-3,
    batch_size: int = 1,
    **more: Any,
) -> Entry:
    """A measured linear layer."""
    axes = (tokens,) if tokens > 1 else ()
    shapes = (outputs, features), (*axes, features), (*axes, outputs)
    return Entry("linear", *shapes, 1, batch_size, precision, seconds, **more)


def table(*entries: Entry, **more: Any) -> MeasuredTable:
    """A table of these entries."""
    about = ("toy", "Toy", "", "measured for a test", {"os": "x"})
    return MeasuredTable(*about, entries or (entry(),), **more)


times = st.floats(1e-9, 1e3)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    """Any measurement of a linear layer."""
    found = entry(
        features=draw(st.integers(1, 9)),
        outputs=draw(st.integers(1, 9)),
        tokens=draw(st.integers(1, 9)),
        precision=draw(st.sampled_from([FP32, W8, W4])),
        seconds=draw(times),
        batch_size=draw(st.integers(1, 3)),
        energy_joules=draw(times),
        runs=draw(st.none() | st.integers(1, 99)),
        source=draw(st.none() | st.text("ab ,\"'", min_size=1).map(str.strip).filter(bool)),
    )
    if draw(st.booleans()):
        return found
    return replace(
        found,
        latency_low_seconds=draw(st.floats(0.5, 1.0)) * found.latency_seconds,
        latency_high_seconds=draw(st.floats(1.0, 2.0)) * found.latency_seconds,
    )


@given(found=st.lists(entries(), min_size=1, max_size=6, unique_by=lambda entry: entry.key))
def test_files_keep_every_digit(found: list[Entry]) -> None:
    """JSON gives the same table, CSV the same entries."""
    part = FixedPart("head", 0.5, 2.0, "chosen")
    made = table(*found, conversions=(BASE, BACK), fixed_parts=(part,), basis="estimated")

    assert profile_from_dict(json.loads(made.to_json())) == made
    assert MeasuredTable.from_csv(made.to_csv(), "toy").entries == made.entries


HEADER = "kind,weight_shape,input_shape,output_shape,groups,batch_size,precision"
LINE = "linear,8x16,16,8,1,1,w8a8"


@pytest.mark.parametrize(
    ("column", "cell", "expected"),
    [
        ("latency_seconds", "0.002", 0.002),
        ("latency_ms", "2", 0.002),
        ("latency_us", "2000", 0.002),
    ],
)
def test_csv_in_other_units(tmp_path: Path, column: str, cell: str, expected: float) -> None:
    """Units are in the column's name; a CSV file is a device."""
    file = tmp_path / "My board.csv"
    file.write_text(f"{HEADER},{column},energy_mj\n{LINE},{cell},3\n", encoding="utf-8")

    found = load_device(str(file))

    assert isinstance(found, MeasuredTable)
    assert found.name == "my-board"
    assert found.entries[0].latency_seconds == pytest.approx(expected)
    assert found.entries[0].energy_joules == pytest.approx(0.003)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{HEADER},latency\n{LINE},1\n", "'latency' has no unit that mpq knows.*latency_ms"),
        (f"{HEADER},time_h\n{LINE},1\n", "'time_h' has no unit that mpq knows"),
        (f"{HEADER},latency_ms,latency_us\n{LINE},1,1\n", "latency is there in two units"),
        (f"{HEADER},latency_ms,colour\n{LINE},1,red\n", "unknown column 'colour': expected kind"),
        (f"{HEADER}\n{LINE}\n", "no column latency_seconds: expected kind.*got kind"),
        ("kind,latency_ms\nlinear,1\n", "no column weight_shape, input_shape"),
        (f"{HEADER},latency_ms\n", "the table is empty: there is a header and no line"),
        ("", "the file is empty; expected the columns kind"),
        (f"{HEADER},latency_ms\n{LINE}\n", "line 2 has 7 cells; its header has 8"),
        (f"{HEADER},kind\n{LINE},1\n", "a column is there twice"),
        (f"{HEADER},latency_ms\n{LINE},fast\n", "line 2, column latency_ms: 'fast' cannot be read"),
        (f"{HEADER},latency_ms\n{LINE},\n", "line 2, column latency_ms: '' cannot be read"),
        (f"{HEADER},latency_ms\n{LINE},-1\n", "line 2: .*must be positive and finite; got -0.001"),
        (f"{HEADER},latency_ms\n{LINE},0\n", "must be positive and finite; got 0.0"),
        (f"{HEADER},latency_ms\n{LINE},nan\n", "must be positive and finite; got nan"),
        (f"{HEADER},latency_ms\n{LINE},inf\n", "must be positive and finite; got inf"),
        (f"{HEADER},latency_ms\n{LINE},1\n{LINE},2\n", "is there twice; keep one"),
        (f"{HEADER},latency_ms\nlinear,8x?,16,8,1,1,w8a8,1\n", "'8x\\?' is not a shape"),
        (f"{HEADER},latency_ms\nlinear,8x0,16,8,1,1,w8a8,1\n", "whole numbers of at least 1"),
        (f"{HEADER},latency_ms\nlinear,8x16x2,16,8,1,1,w8a8,1\n", "a linear has 2 axes"),
        (f"{HEADER},latency_ms\nlinear,8x16,15,8,1,1,w8a8,1\n", "expected 16 features in"),
        (f"{HEADER},latency_ms\nlinear,8x16,16,9,1,1,w8a8,1\n", "expected 1 x 8 numbers out"),
        (f"{HEADER},latency_ms\nlstm,8x16,16,8,1,1,w8a8,1\n", "no kind of layer 'lstm'"),
        (f"{HEADER},latency_ms\nlinear,8x16,16,8,1,0,w8a8,1\n", "batch_size is at least 1; got 0"),
        (f"{HEADER},latency_ms\nlinear,8x16,16,8,1,1,w17,1\n", "'w17' is not a precision"),
        (
            f"{HEADER},latency_ms\nconv2d,8x3x3x3,4x6x6,8x6x6,1,1,w8a8,1\n",
            "expected 3 channels and 2 further axes in",
        ),
        (
            f"{HEADER},latency_ms,latency_low_ms,latency_high_ms\n{LINE},2,3,4\n",
            "lies outside its own interval, 0.003 to 0.004 s",
        ),
        (
            f"{HEADER},latency_ms,latency_low_ms,latency_high_ms\n{LINE},2,1,1.5\n",
            "lies outside its own interval",
        ),
        (f"{HEADER},latency_ms,latency_low_ms\n{LINE},2,1\n", "an interval has two ends"),
        (
            f"{HEADER},latency_ms,energy_mj\n{LINE},2,1\nlinear,8x16,16,8,1,2,w8a8,1,\n",
            "1 of 2 entries and fixed parts have energy_joules",
        ),
    ],
)
def test_csv_that_makes_no_sense(tmp_path: Path, text: str, said: str) -> None:
    """Each is refused with file, and line and column where there is one."""
    file = tmp_path / "table.csv"
    file.write_text(text, encoding="utf-8")

    with pytest.raises(FileFormatError, match=said) as error:
        load_device(str(file))

    assert str(file) in str(error.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    """A missing CSV is named, as a missing JSON is."""
    with pytest.raises(FileFormatError, match="cannot read .*none.csv"):
        load_device(str(tmp_path / "none.csv"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"entries": []}, "at entries: .*(non-empty|too short)"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"basis": "guessed"}, "at basis"),
        ({"entries": [{"kind": "linear", "latency": 1.0}]}, "at entries/0"),
        ({"conversions": [{"from_format": "fp32"}]}, "at conversions/0"),
        ({"fixed_parts": [{"name": "head"}]}, "at fixed_parts/0"),
    ],
)
def test_json_that_is_no_table(change: dict[str, Any], said: str) -> None:
    """Refused by the schema, with the place."""
    with pytest.raises(FileFormatError, match=said):
        profile_from_dict({**table().to_dict(), **change})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("latency_seconds", -1.0, "latency_seconds must be positive and finite; got -1.0"),
        ("latency_seconds", math.nan, "must be positive and finite; got nan"),
        ("energy_joules", 0.0, "energy_joules must be positive and finite; got 0.0"),
        ("runs", 0, "runs is at least 1; got 0"),
        ("kind", "lstm", "no kind of layer 'lstm'"),
        ("weight_shape", [8], "the weight of a linear has 2 axes"),
        ("weight_shape", ["8", 16], "sizes and groups are whole numbers of at least 1"),
        ("input_shape", [16.0], "sizes and groups are whole numbers of at least 1"),
    ],
)
def test_json_of_impossible_measurements(key: str, value: Any, said: str) -> None:
    """The numbers of a JSON profile are checked as those of a CSV are."""
    data = table().to_dict()
    data["entries"][0][key] = value

    with pytest.raises(InputError, match=said):
        profile_from_dict(data)


def test_tables_that_contradict_themselves() -> None:
    """One number per question."""
    with pytest.raises(InputError, match="the conversion .* is there twice"):
        table(conversions=(BASE, BASE))
    with pytest.raises(InputError, match="basis is measured or estimated; got 'guessed'"):
        table(basis="guessed")
    with pytest.raises(InputError, match="has at least 1 entry"):
        replace(table(), entries=())
    with pytest.raises(InputError, match="is there twice"):
        table(entry(tokens=12), replace(entry(tokens=12), input_shape=(3, 4, 16)))


def test_parts_and_conversions_that_make_no_sense() -> None:
    """Negative and infinite times, unknown formats."""
    with pytest.raises(UnknownNameError, match="no number format 'int17'"):
        replace(BASE, to_format="int17")
    with pytest.raises(InputError, match="times are finite and at least 0; got -1"):
        replace(BASE, seconds_per_call=-1.0)
    with pytest.raises(InputError, match="'head' costs inf; at least 0"):
        FixedPart("head", math.inf, None, "chosen")


USER_FILE = """
import torch
from torch import nn

def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval()

def calibration():
    yield torch.randn(32, 16, generator=torch.Generator().manual_seed(1))
"""


def test_a_search_within_measured_seconds(tmp_path: Path) -> None:
    """``--device table.csv`` limits what was measured: one of two layers keeps 8 bits."""
    (tmp_path / "net.py").write_text(USER_FILE, encoding="utf-8")
    rows = [
        f"linear,{weight},{read},{written},1,1,{precision},{ms}"
        for weight, read, written, eight, four in (("8x16", 16, 8, 3, 1), ("4x8", 8, 4, 2, 1))
        for precision, ms in (("w8a8", eight), ("w4a8", four))
    ]
    (tmp_path / "board.csv").write_text("\n".join([f"{HEADER},latency_ms", *rows]) + "\n")

    result = CliRunner().invoke(
        app,
        [
            *("search", "--model", f"{tmp_path}/net.py:make_net"),
            *("--data", f"{tmp_path}/net.py:calibration", "--device", f"{tmp_path}/board.csv"),
            *("--precisions", "w4a8,w8a8", "--limit", "latency=3.5ms"),
            *("--sensitivity", "weight-error", "--output", str(tmp_path / "run")),
        ],
    )

    assert result.exit_code == 0, result.output
    chosen = json.loads((tmp_path / "run" / "assignment.json").read_text())
    layers = {layer["name"]: layer["precision"] for layer in chosen["layers"]}
    assert layers == {"0": "w4a8", "2": "w8a8"}
