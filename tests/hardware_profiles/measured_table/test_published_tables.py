"""Published measurements become profiles: layouts, units, and figures looked up by hand."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import mpq
from mpq.cli.__main__ import app
from mpq.errors import FileFormatError, InputError, UnknownNameError
from mpq.hardware_profiles import MeasuredTable, Pricing, Workload, load_device
from mpq.hardware_profiles.measured_table.published import (
    APQ_COLUMNS,
    CONVERTERS,
    HAQ_COLUMNS,
    T4_COLUMNS,
    Published,
    convert,
    hawqv3_kernels,
    import_table,
)
from mpq.quantization.precision import Precision

W4, W8 = map(Precision.parse, ("w4a4", "w8a8"))
FILES = {
    "hawqv3-t4": "hawqv3_t4_tvm_kernel_times.csv",
    "apq-bitfusion": "apq_bitfusion_b1.csv",
    "haq-cycles": "haq_mobilenetv2_latency_cycles.csv",
}
T4_LINE = 'net,1,conv2d_HWNCnc_tensorcore.cuda,int8,"[58, 58, 8, 64]","[3, 3, 128, 64]","[2, 2]"'
T4_HEADER = ",".join(T4_COLUMNS)
APQ_TEXT = ",".join(APQ_COLUMNS) + "\n64,64,56,5,2,2,64,4,8,0.5,2\n"
HAQ_TEXT = ",".join(HAQ_COLUMNS) + (
    "\n0,conv0,3,32,3,2,1,112,10838016,2,4,1000"
    "\n0,conv0,3,32,3,2,1,112,10838016,1,4,900"
    "\n4,block1.dw,96,96,3,2,96,56,2709504,8,8,2000"
    "\n52,fc,1280,1000,1,1,1,1,1280000,8,8,500\n"
)


@pytest.fixture(scope="module")
def folder(data_dir: Path) -> Path:
    """The published files."""
    return data_dir / "hwlut"


def rows_of(path: Path) -> list[dict[str, str]]:
    """Lines of a CSV, as they are."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def call(*arguments: str | Path) -> Any:
    """``mpq import-table``."""
    return CliRunner().invoke(app, ["import-table", *map(str, arguments)])


def imported(tmp_path: Path, name: str, *arguments: str | Path) -> MeasuredTable:
    """What the command line makes, as ``--device`` reads it."""
    output = tmp_path / f"{name}.json"
    result = call(name, *arguments, "--output", output)
    assert result.exit_code == 0, result.output
    found = load_device(str(output))
    assert isinstance(found, MeasuredTable)
    return found


def latency(net: nn.Module, example: torch.Tensor, found: MeasuredTable, batch_size: int) -> Any:
    """``[L, B]`` seconds of a network's layers, as a search would ask."""
    layers = mpq.find_layers(net.eval(), [example])
    pricing = Pricing(layers, found, Workload(batch_size))
    return pricing.table("latency", found.precisions).values


def test_the_t4_kernels_price_the_layers_of_torch(tmp_path: Path, folder: Path) -> None:
    """ResNet's convolutions and classifier, written in torch, find the kernel times of the file."""
    found = imported(tmp_path, "hawqv3-t4", folder / FILES["hawqv3-t4"])
    net = nn.Sequential(
        nn.Conv2d(64, 128, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(128, 256, 1, stride=2, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(256, 512),
        nn.Linear(512, 1000),
    )
    example = torch.zeros(1, 64, 56, 56)
    layers = mpq.find_layers(net.eval(), [example])
    known = [layers[0], layers[1], layers[3]]

    table = Pricing(tuple(known), found, Workload(8)).table("latency", (W4, W8)).values

    # The lines of ResNet-18 in the file: 7 and 18; 11 and 21; 1.
    assert table[0].tolist() == pytest.approx([0.033683904481849526e-3, 0.07049183282006158e-3])
    assert table[1].tolist() == pytest.approx([0.006371171507436246e-3, 0.010782271290158083e-3])
    assert math.isnan(table[2][0]), "there is no int4 kernel of a classifier"
    assert table[2][1] == pytest.approx(0.004376039242191913e-3)


def test_every_t4_kernel_is_read(folder: Path) -> None:
    """74 kernels, none failed; the sum of times is the sum of the column; equal ones averaged."""
    path = folder / FILES["hawqv3-t4"]
    rows = rows_of(path)

    kernels, num_failed = hawqv3_kernels(path.read_text(encoding="utf-8"))
    found = convert("hawqv3-t4", Published(path.read_text(encoding="utf-8"), "t4"))

    assert (len(kernels), num_failed) == (74, 0)
    assert sum(kernel.latency_seconds for kernel in kernels) == pytest.approx(
        sum(float(row["time_ms"]) for row in rows) / 1e3
    )
    distinct = {(r["act_dtype"], r["input_shape"], r["weight_shape"], r["stride"]) for r in rows}
    assert len(found.entries) == len(distinct)
    (stem,) = (entry for entry in found.entries if entry.weight_shape == (64, 3, 7, 7))
    assert stem.input_shape == (3, 224, 224)
    assert stem.output_shape == (64, 112, 112)
    assert stem.runs == 2
    assert stem.latency_seconds == pytest.approx(
        (0.3769170444444444e-3 + 0.36789195662650603e-3) / 2
    )
    assert stem.source is not None
    assert "mean of 2 that differ by 2.5%" in stem.source


def test_t4_kernels_that_failed_are_left_out() -> None:
    """An error number that is not 0 means that there is no time."""
    text = f"{T4_HEADER}\n{T4_LINE},0.07,0\n{T4_LINE},1000000000.0,4\n"

    kernels, num_failed = hawqv3_kernels(text)

    assert [kernel.latency_seconds for kernel in kernels] == pytest.approx([0.07e-3])
    assert num_failed == 1


def test_bitfusion_prices_an_inverted_residual(folder: Path) -> None:
    """Latency and energy of torch's layers are those of the file's lines; head and tail on top."""
    path = folder / FILES["apq-bitfusion"]
    head_tail = folder / "apq_bitfusion_head_tail.json"
    found = import_table("apq-bitfusion", path, "apq", head_tail=head_tail)
    net = nn.Sequential(
        nn.Conv2d(16, 64, 1, bias=False),
        nn.Conv2d(64, 64, 5, stride=2, padding=2, groups=64, bias=False),
    ).eval()
    layers = mpq.find_layers(net, [torch.zeros(1, 16, 112, 112)])
    keys = ("cin", "cout", "in_hw", "k", "stride", "groups", "w_bits", "a_bits")
    lines = {tuple(row[key] for key in keys): row for row in rows_of(path)}
    expected = [
        lines[("16", "64", "112", "1", "1", "1", "4", "8")],
        lines[("64", "64", "112", "5", "2", "64", "8", "8")],
    ]
    chosen = {"0": Precision.parse("w4a8"), "1": W8}
    beside = json.loads(head_tail.read_text(encoding="utf-8"))

    pricing = Pricing(layers, found)

    for resource, column, key in (
        ("latency", "latency_ms", "latency"),
        ("energy", "energy_mJ", "energy"),
    ):
        milli = sum(float(row[column]) for row in expected) + sum(
            beside[part][key] for part in ("head", "tail")
        )
        assert pricing.amount(resource, chosen) == pytest.approx(milli / 1e3)
    assert found.basis == "estimated"


def test_haq_cycles_become_seconds_by_the_clock(tmp_path: Path, folder: Path) -> None:
    """Twice the clock, half the seconds; batch size 16; formats of 1 bit are left out."""
    path = folder / FILES["haq-cycles"]
    rows = rows_of(path)

    slow = imported(tmp_path, "haq-cycles", path, "--clock-hz", "1e8")
    fast = imported(tmp_path, "haq-cycles", path, "--clock-hz", "2e8")

    net = nn.Sequential(nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False))
    cycles = [
        float(row["latency"])
        for candidate in slow.precisions
        for row in rows
        if row["inferred_name"] == "conv0" and f"w{row['w_bits']}a{row['a_bits']}" == str(candidate)
    ]
    example = torch.zeros(1, 3, 224, 224)
    assert latency(net, example, slow, 16)[0].tolist() == pytest.approx([c / 1e8 for c in cycles])
    assert latency(net, example, fast, 16)[0].tolist() == pytest.approx([c / 2e8 for c in cycles])
    assert len(slow.precisions) == 49
    assert {entry.batch_size for entry in slow.entries} == {16}


def test_haq_layouts() -> None:
    """Depthwise and dense convolutions and the classifier, by their MACs in the file."""
    found = convert("haq-cycles", Published(HAQ_TEXT, "haq", clock_hz=1e6))

    assert [entry.shape.macs for entry in found.entries] == [10838016, 2709504, 1280000]
    assert [entry.latency_seconds for entry in found.entries] == [1e-3, 2e-3, 5e-4]
    assert [entry.shape.family for entry in found.entries] == [
        "conv2d 3x3",
        "depthwise conv2d 3x3",
        "linear",
    ]


def test_apq_layouts() -> None:
    """Padding and stride give the output; milli-units become seconds and joules."""
    (entry,) = convert("apq-bitfusion", Published(APQ_TEXT, "apq")).entries

    assert entry.weight_shape == (64, 1, 5, 5)
    assert entry.output_shape == (64, 28, 28)
    assert (entry.latency_seconds, entry.energy_joules) == (0.5e-3, 2e-3)


def test_haq_macs_agree_with_the_file(folder: Path) -> None:
    """The MACs that the file states are those of the shapes that the converter makes."""
    path = folder / FILES["haq-cycles"]
    rows = [row for row in rows_of(path) if "1" not in (row["w_bits"], row["a_bits"])]

    text = path.read_text(encoding="utf-8")
    found = convert("haq-cycles", Published(text, "haq", clock_hz=1e6))

    assert {entry.shape.macs for entry in found.entries} == {int(row["macs"]) for row in rows}


def test_a_table_may_be_allowed_to_extrapolate(tmp_path: Path) -> None:
    """``--allow-extrapolation`` is kept in the profile, and the device is called as the file."""
    (tmp_path / "apq.csv").write_text(APQ_TEXT, encoding="utf-8")
    output = tmp_path / "Big Device.json"

    result = call(
        "apq-bitfusion", tmp_path / "apq.csv", "--output", output, "--allow-extrapolation"
    )

    found = load_device(str(output))
    assert result.exit_code == 0, result.output
    assert isinstance(found, MeasuredTable)
    assert found.allow_extrapolation
    assert found.name == "big-device"


@pytest.mark.parametrize("name", list(CONVERTERS))
def test_a_layout_of_another_kind(tmp_path: Path, name: str) -> None:
    """Wrong columns: what was expected and what came."""
    file = tmp_path / "other.csv"
    file.write_text("layer,seconds\nconv,1\n", encoding="utf-8")
    clock = ("--clock-hz", "1e6") if name == "haq-cycles" else ()

    result = call(name, file, "--output", tmp_path / "x.json", *clock)

    assert result.exit_code == 2
    assert "other.csv" in result.output
    assert "expected" in result.output
    assert "layer" in result.output
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("hawqv3-t5", "a.csv"), "no converter 'hawqv3-t5'; did you mean 'hawqv3-t4'?"),
        (("csv", "none.csv"), "cannot read"),
        (("haq-cycles", "haq.csv"), "haq-cycles has no unit of time: give the clock"),
        (("haq-cycles", "haq.csv", "--clock-hz", "0"), "the clock must be positive and finite"),
        (("haq-cycles", "haq.csv", "--clock-hz", "nan"), "the clock must be positive and finite"),
        (("apq-bitfusion", "apq.csv", "--clock-hz", "1e6"), "apq-bitfusion counts no cycles"),
        (("haq-cycles", "haq.csv", "--head-tail", "apq.csv"), "has no head and tail"),
        (("apq-bitfusion", "apq.csv", "--head-tail", "haq.csv"), 'expected {"head"'),
    ],
)
def test_what_cannot_be_converted(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    """One line that says what to do, and no file."""
    for name, text in (("a.csv", "x\n1\n"), ("apq.csv", APQ_TEXT), ("haq.csv", HAQ_TEXT)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    paths = [tmp_path / part if part.endswith(".csv") else part for part in arguments]

    result = call(*paths, "--output", tmp_path / "x.json")

    assert result.exit_code == 2
    assert said in result.output
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    ("latency", "said"),
    [('"soon"', "another file"), ("[]", "another file"),
     ("-1", "head and tail: fixed part 'head' costs -0.001")],
)  # fmt: skip
def test_a_head_that_makes_no_sense(latency: str, said: str) -> None:
    """A cell that is no number is a fault of the file."""
    text = f'{{"head": {{"energy": 1, "latency": {latency}}}, "tail": {{}}}}'

    with pytest.raises(FileFormatError, match=said):
        convert("apq-bitfusion", Published(APQ_TEXT, "apq", head_tail=text))


@pytest.mark.parametrize(
    ("converter", "text", "column"),
    [("apq-bitfusion", APQ_TEXT, "stride"), ("apq-bitfusion", APQ_TEXT, "groups"),
     ("haq-cycles", HAQ_TEXT, "groups")],
)  # fmt: skip
def test_what_is_divided_by_is_not_0(converter: str, text: str, column: str) -> None:
    """Refused with line and column."""
    header, line = text.splitlines()[:2]
    cells = line.split(",")
    cells[header.split(",").index(column)] = "0"
    clock_hz = 1e6 if converter == "haq-cycles" else None

    with pytest.raises(FileFormatError, match=f"line 2, column {column}: '0' cannot be read"):
        convert(converter, Published(f"{header}\n{','.join(cells)}\n", "x", clock_hz))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (T4_LINE.replace("int8", "fp8") + ",0.07,0", "column act_dtype: 'fp8' cannot be read"),
        (T4_LINE.replace("conv2d_HWNCnc", "lstm") + ",0.07,0", "expected a conv2d or dense task"),
        (T4_LINE.replace("[58, 58, 8, 64]", "[58]") + ",0.07,0", "expected 4 sizes in brackets"),
        (T4_LINE.replace("[58, ", "[null, ", 1) + ",0.07,0", "expected 4 whole numbers above 0"),
        (T4_LINE.replace("[2, 2]", "[0, 2]") + ",0.07,0", "expected 2 whole numbers above 0"),
        (T4_LINE + ",soon,0", "line 2, column time_ms: 'soon' cannot be read"),
    ],
)
def test_t4_lines_that_make_no_sense(line: str, said: str) -> None:
    """Refused with line and column."""
    with pytest.raises(FileFormatError, match=said.replace("[", r"\[")):
        hawqv3_kernels(f"{T4_HEADER}\n{line}\n")


def test_times_of_a_published_file_are_checked() -> None:
    """A negative time is refused in any layout; so is a converter that does not exist."""
    with pytest.raises(InputError, match="latency_seconds must be positive"):
        hawqv3_kernels(f"{T4_HEADER}\n{T4_LINE},-0.07,0\n")
    with pytest.raises(UnknownNameError, match="no converter 'excel'"):
        convert("excel", Published("", "x"))
