"""Parts of another package are used by their names on the command line, a test for every recipe."""

import json
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mpq
from mpq import demo
from mpq.errors import FileFormatError
from mpq.problem.assignment import Assignment
from tests.plugins.toy_site import ToySite

FEW = ("--data", "few:calibration", "--eval-data", "few:calibration", "--points", "2")
FAST = ("--weight-range", "minmax", "--activation-range", "minmax")
NEEDS_NO_DATA = ("--sensitivity", "weight-error")


def assignment_of(folder: Path) -> Any:
    """The JSON that a search wrote."""
    return json.loads((folder / "assignment.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def with_format(toys: ToySite) -> Path:
    """A search between the toy format and int8, its ranges chosen by the toy method."""
    toys.mpq(
        "search", *FEW, *NEEDS_NO_DATA, "--precisions", "wfp6_toya8,w8a8", "--limit",
        "weight_bytes=0.85x:w8a8", "--seed", "1", "--weight-range", "toy-share:share=0.75",
        "--activation-range", "toy-share", "--output", "formats",
    )  # fmt: skip
    return toys.folder / "formats"


@pytest.fixture(scope="module")
def with_parts(toys: ToySite) -> Path:
    """A search with the toy estimator, solver, metric and data source, on the toy device."""
    toys.mpq(
        "search", *FAST, "--data", "toy-source:num_examples=12", "--precisions", "w4a8,w8a8",
        "--limit", "weight_bytes=0.7x:w8a8", "--points", "2", "--sensitivity",
        "toy-estimator:scale=16", "--solver", "toy-solver", "--metric", "toy-metric",
        "--device", "mpq_toys/device.json", "--section", "toy-section:file=said.txt",
        "--output", "parts",
    )  # fmt: skip
    return toys.folder / "parts"


def test_a_number_format(with_format: Path) -> None:
    """Its bits are in the file, and the bytes are those of six bits and a scale per channel."""
    found = assignment_of(with_format)

    layers = found["layers"]
    bits = {layer["weight"]["number"]: layer["weight"]["bits"] for layer in layers}
    (budget,) = found["metadata"]["budgets"]
    assert bits == {"fp6_toy": 6, "int8": 8}
    problem = json.loads((with_format / "problem.json").read_text())
    constant = problem["budgets"][0]["tables"][0]["constant"]
    assert constant > 0
    assert budget["used"] == constant + sum(
        np.prod(layer["weight_shape"]) * layer["weight"]["bits"] / 8 + 4 * layer["weight_shape"][0]
        for layer in layers
    )


def test_an_assignment_in_it_is_read_and_written_alike(toys: ToySite, with_format: Path) -> None:
    """The file comes back as it was."""
    program = (
        "import json; from pathlib import Path; from mpq.problem.assignment import Assignment; "
        f"path = Path({str(with_format / 'assignment.json')!r}); "
        "written = json.loads(path.read_text()); written.pop('run_id'); "
        "print(json.loads(Assignment.load(path).to_json()) == written)"
    )

    assert toys.python("-c", program).stdout == "True\n"


def test_it_is_refused_where_the_package_is_missing(with_format: Path) -> None:
    """This process has no toys."""
    with pytest.raises(FileFormatError, match="at layers/[0-9]+/weight/number: 'fp6_toy'"):
        Assignment.load(with_format / "assignment.json")


def test_a_device_refuses_a_format_that_it_does_not_know(toys: ToySite) -> None:
    """By name, before anything is measured."""
    message = toys.refused(
        "search", *FEW, "--device", "cortex-m7", "--precisions", "wfp6_toya8,w8a8"
    )

    assert "cortex-m7 runs no layer at wfp6_toya8" in message


def test_a_range_method(with_format: Path) -> None:
    """The first layer's range is half of what the images reach; the weights' method is kept."""
    found = assignment_of(with_format)

    images = next(demo.calibration())[0][:16]
    ends = [float(images.min()) / 2, float(images.max()) / 2]
    assert found["weight_range"] == "toy-share:share=0.75"
    assert found["layers"][0]["activation"]["range"] == pytest.approx(ends)


def test_an_estimator(with_parts: Path) -> None:
    """The predicted loss is its formula at the bits that were chosen."""
    found = assignment_of(with_parts)

    expected = sum(16 / 4 ** layer["weight"]["bits"] for layer in found["layers"])
    assert found["metadata"]["estimator"] == "toy-estimator"
    assert found["metadata"]["predicted_loss"] == pytest.approx(expected)


def test_a_solver(with_parts: Path) -> None:
    """The record names it, and what has taken the place of its answer."""
    solver, _, _ = assignment_of(with_parts)["metadata"]["solver"].partition(", replaced by ")
    assert solver == "toy-solver"


def test_a_metric(with_parts: Path) -> None:
    """What is measured is a thousand times half the squared error, on the last three images."""
    record = assignment_of(with_parts)["metadata"]

    chosen = Assignment.load(with_parts / "assignment.json")
    grey = torch.linspace(0, 1, 12)[9:].reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    with torch.no_grad():
        off = mpq.quantize(demo.make_net(), chosen)(grey) - demo.make_net()(grey)
    expected = 500 * float(off.square().sum(dim=1).mean())
    assert record["measured_unit"] == record["loss_unit"] == "squared_output"
    assert record["measured_loss"] == pytest.approx(expected, rel=1e-3)


def test_a_data_source(with_parts: Path) -> None:
    """A quarter of the twelve images is held out."""
    assert assignment_of(with_parts)["metadata"]["num_held_out"] == 3


def test_a_device(with_parts: Path) -> None:
    """A file's path is a device's name."""
    assert assignment_of(with_parts)["metadata"]["device"] == "toy-device"


def test_a_report_section(with_parts: Path) -> None:
    """Its file lies beside ours, with the run's mark."""
    said = (with_parts / "said.txt").read_text(encoding="utf-8")

    found = assignment_of(with_parts)
    assert said == f"{found['run_id']}: {len(found['layers'])} layers, 2 points\n"


def test_a_section_that_would_replace_a_file_is_refused(toys: ToySite, with_parts: Path) -> None:
    """In Python too, and nothing is written."""
    program = (
        "import mpq; result = mpq.load('parts'); "
        "result.save('again', sections=['toy-section:file=table.csv'])"
    )

    found = toys.python("-c", program)

    assert "the report section toy-section would replace table.csv" in found.stderr
    assert with_parts.exists()
    assert not (toys.folder / "again").exists()


def test_a_runtime(toys: ToySite) -> None:
    """``mpq profile`` measures every layer of the demo with it."""
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason="layers are found in the graph with mpq[onnx]")

    toys.mpq(
        "profile", "--runtime", "toy-runtime", "--rounds", "10", "--max-interval", "1000000",
        "--num-networks", "0", "--output", "toy-profile.json",
    )  # fmt: skip

    found = mpq.find_layers(demo.make_net(), demo.calibration())
    profile = json.loads((toys.folder / "toy-profile.json").read_text(encoding="utf-8"))
    assert profile["latency"]["precisions"] == ["fp32"]
    assert profile["latency"]["layers"] == [layer.name for layer in found]
    assert min(row[0] for row in profile["latency"]["values"]) > 0


def test_they_are_listed(toys: ToySite) -> None:
    """Beside mpq's own, by the commands that list what there is."""
    commands = (
        "formats", "ranges", "estimators", "solvers", "sources", "runtimes", "sections"
    )  # fmt: skip
    program = (
        "from mpq.cli.__main__ import app; "
        f"[app([command], standalone_mode=False) for command in {commands}]"
    )

    lines = toys.python("-c", program).stdout.split("\n")

    first = {line.split()[0] for line in lines if line.strip()}
    assert {"fp6_toy", "toy-share", "toy-estimator", "toy-solver", "toy-source"} <= first
    assert {"toy-runtime", "toy-section"} <= first
    assert {"fp16", "mse", "sketch", "ilp", "noise"} <= first


def test_a_backend(toys: ToySite, with_parts: Path) -> None:
    """``mpq export --to`` takes it by its name, with its option, and so does Python."""
    layers = assignment_of(with_parts)["layers"]
    expected = sorted(Counter(layer["precision"] for layer in layers).items())

    printed = toys.mpq("export", with_parts / "assignment.json", "--to", "toy-backend:separator=:")
    program = (
        "import mpq; found = mpq.Assignment.load('parts/assignment.json'); "
        "print(mpq.export(found, 'counts.txt', 'toy-backend').path.read_text(), end='')"
    )
    written = toys.python("-c", program)

    assert printed.splitlines() == [f"{name}:{count}" for name, count in expected]
    assert written.stdout.splitlines() == [f"{name} {count}" for name, count in expected]


def test_a_broken_package_does_not_hide_the_others(root: Path, tmp_path: Path) -> None:
    """Lists have a row with what is wrong; only who uses its name is refused."""
    site = ToySite.made(tmp_path, root)
    for file in ("solver.py", "number_format.py"):
        (tmp_path / "mpq_toys" / file).write_text("1 / 0\n")

    solvers, formats = (json.loads(site.mpq(word, "--json")) for word in ("solvers", "formats"))
    table = site.mpq("solvers")
    (tmp_path / "table.csv").write_text("layer,precision,loss_nats\na,w8a8,1\n")
    refused = site.refused("solve", "table.csv", "--solver", "toy-solver")

    errors = {row["name"]: row["error"] for row in [*solvers, *formats] if "error" in row}
    assert set(errors) == {"toy-solver", "fp6_toy"}
    assert all("of the package mpq-toys cannot be imported" in text for text in errors.values())
    assert {"auto", "ilp"} <= {row["name"] for row in solvers}
    assert "toy-solver" in table
    assert "error: the solver 'toy-solver' of the package mpq-toys cannot be imported" in refused


def test_the_solver_of_the_contributing_page(root: Path, tmp_path: Path) -> None:
    """Its two files, as they stand there, are a solver that ``mpq solve`` uses."""
    page = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    project, code = re.search(
        r"`pyproject.toml`:\n\n```toml\n(.*?)```.*?```python\n(.*?)```", page, re.DOTALL
    ).groups()  # type: ignore[union-attr]
    (points,) = tomllib.loads(project)["project"]["entry-points"].items()
    site = ToySite(tmp_path, root)
    (tmp_path / "my_mpq_parts.py").write_text(code)
    about = tmp_path / "my_mpq_parts-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-mpq-parts\nVersion: 1.0\n")
    lines = [f"{name} = {value}\n" for name, value in points[1].items()]
    (about / "entry_points.txt").write_text("".join([f"[{points[0]}]\n", *lines]))
    (tmp_path / "table.csv").write_text("layer,precision,loss_nats\na,w4a8,2\na,w8a8,1\n")

    (found,) = json.loads(site.mpq("solve", "table.csv", "--solver", "most-precise"))

    assert found["precisions"] == {"a": "w8a8"}
    assert (found["solver"], found["status"]) == ("most-precise", "feasible")
