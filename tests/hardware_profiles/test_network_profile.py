"""Profiles of one measured network: as files, as tables, as a device to search for."""

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from mpq import demo
from mpq.cli.__main__ import app
from mpq.errors import FileFormatError, InputError, MismatchError, MpqError, UnknownNameError
from mpq.hardware_profiles import NetworkProfile, Workload, load_device
from mpq.hardware_profiles.catalogue import profile_from_dict
from mpq.network.layer import Layer
from mpq.problem.assignment import Assignment
from mpq.problem.cost_table import CostTable, PairwiseCost
from mpq.quantization.precision import Precision

FLOAT, INT8, PACKED, OTHER = map(Precision.parse, ("fp32", "w7a8", "w4g32a8d", "w2a8"))
PRECISIONS = (FLOAT, INT8, PACKED)
VALUES = np.array([[8.0, 2.0, np.nan], [4.0, 1.0, 3.0], [6.0, 5.0, 2.0]])
FIRST = PairwiseCost("a", "b", np.arange(9.0).reshape(3, 3))
SECOND = PairwiseCost("b", "c", -np.arange(9.0).reshape(3, 3) / 8)


def layer(name: str) -> Layer:
    """A linear one."""
    return Layer(name, "linear", (4, 4), 4, (4,), (4,), 4, 4, 16)


LAYERS = tuple(map(layer, "abc"))


@pytest.fixture
def measured() -> NetworkProfile:
    """Three layers in a row, two pairs, half a second besides."""
    table = CostTable(
        "latency", "seconds", ("a", "b", "c"), PRECISIONS, VALUES, 0.5, (FIRST, SECOND)
    )
    return NetworkProfile(
        "mine", "onnxruntime on a processor", "Measured.",
        tuple(x.signature for x in LAYERS), 2, table,
        replace(table, values=VALUES / 100, constant=0.0, pairs=()),
        {"processor": "a processor"}, {"computed_wrongly": []},
    )  # fmt: skip


def same(one: CostTable, other: CostTable) -> bool:
    """All that a table has."""
    return one.to_dict() == other.to_dict()


def test_file_is_read_back(measured: NetworkProfile, tmp_path: Path) -> None:
    """By the path, as any device."""
    path = tmp_path / "mine.json"
    path.write_text(measured.to_json())

    found = load_device(str(path))

    assert isinstance(found, NetworkProfile)
    assert same(found.latency, measured.latency)
    assert same(found.half_width, measured.half_width)
    assert found.to_json() == measured.to_json()
    assert (found.name, found.batch_size, found.basis) == ("mine", 2, "measured")
    assert found.formats == ("fp32", "w7a8", "w4g32a8d")
    assert found.resources == ("latency",)


def test_cost_is_what_was_measured(measured: NetworkProfile) -> None:
    """Rows and columns as asked for; a precision that was not measured runs nowhere."""
    found = measured.cost("latency", LAYERS, (INT8, OTHER, FLOAT), Workload(2))

    np.testing.assert_array_equal(
        found.values, np.stack([VALUES[:, 1], [np.nan] * 3, VALUES[:, 0]], 1)
    )
    assert (found.unit, found.constant) == ("seconds", 0.5)
    ab, bc = found.pairs
    assert (ab.first, ab.second, bc.first, bc.second) == ("a", "b", "b", "c")
    np.testing.assert_array_equal(ab.values, [[4, 0, 3], [0, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(bc.values, -ab.values / 8)


def test_what_can_run_was_measured(measured: NetworkProfile) -> None:
    """Layer by layer, and anywhere."""
    assert measured.can_run(LAYERS[1], PACKED)
    assert not measured.can_run(LAYERS[0], PACKED)
    assert not measured.can_run(layer("d"), INT8)
    assert not measured.can_run(LAYERS[0], OTHER)
    assert [measured.runs_somewhere(p) for p in (*PRECISIONS, OTHER)] == [True] * 3 + [False]


@pytest.mark.parametrize(
    ("kept", "values", "constant", "num_pairs"),
    [
        # b stays float: its 4 seconds are constant; a pays column 0 of ab, c row 0 of bc.
        ("ac", [[8 + 0, 2 + 3, np.nan], [6 - 0, 5 - 1 / 8, 2 - 2 / 8]], 0.5 + 4, 0),
        # b and c stay float: their pair too is constant.
        ("a", [[8 + 0, 2 + 3, np.nan]], 0.5 + 4 + 6 + 0, 0),
        # a stays float: b pays row 0 of ab.
        ("bc", [[4 + 0, 1 + 1, 3 + 2], [6, 5, 2]], 0.5 + 8, 1),
    ],
)
def test_layers_that_stay_as_they_are_are_in_the_rest(
    measured: NetworkProfile, kept: str, values: Any, constant: float, num_pairs: int
) -> None:
    """In the constant, and in what their neighbours pay for conversions."""
    layers = [x for x in LAYERS if x.name in kept]

    found = measured.cost("latency", layers, PRECISIONS, Workload(2))

    np.testing.assert_allclose(found.values, values)
    assert found.constant == pytest.approx(constant)
    assert len(found.pairs) == num_pairs
    assert found.layers == tuple(kept)


def test_uncertainty_is_of_the_layers_alone(measured: NetworkProfile) -> None:
    """Neither the constant nor the pairs have one."""
    found = measured.uncertainty("latency", LAYERS[1:], (PACKED, FLOAT), Workload(2))

    np.testing.assert_array_equal(found.values, VALUES[1:, [2, 0]] / 100)
    assert (found.constant, found.pairs) == (0.0, ())


@pytest.mark.parametrize(
    ("resource", "layers", "workload", "error", "message"),
    [
        ("energy", LAYERS, Workload(2), UnknownNameError, "no resource 'energy'"),
        ("latency", LAYERS, Workload(1), InputError, "measured for a batch of 2"),
        ("latency", LAYERS, Workload(2, "decode"), InputError, "a batch of 2, as traced"),
        ("latency", (*LAYERS, layer("d")), Workload(2), MismatchError, "no layer 'd linear 4x4'"),
        (
            "latency", (replace(LAYERS[0], weight_shape=(4, 5)),), Workload(2), MismatchError,
            "another network.*'a linear 4x5'; run `mpq profile`",
        ),
    ],
)  # fmt: skip
def test_question_about_something_else_is_refused(
    measured: NetworkProfile, resource: str, layers: Any, workload: Workload,
    error: type[MpqError], message: str,
) -> None:  # fmt: skip
    """Other resources, batches, phases, networks."""
    with pytest.raises(error, match=message):
        measured.cost(resource, layers, PRECISIONS, workload)


@pytest.mark.parametrize("precisions", [(INT8, PACKED), (FLOAT, INT8)])
def test_layers_that_stay_must_have_been_measured_as_they_are(
    measured: NetworkProfile, precisions: tuple[Precision, ...]
) -> None:
    """Without float32, nobody knows what they take."""
    table = measured.latency.select(precisions)
    values = table.values.copy()
    values[0, 0] = np.nan
    without = replace(measured, latency=replace(table, values=values))

    with pytest.raises(InputError, match=r"stay as they are \(a\) were not measured at fp32"):
        without.cost("latency", LAYERS[1:], (INT8,), Workload(2))


def negative(data: Any) -> None:
    data["latency"]["values"][1][1] = -1e-9


def negative_width(data: Any) -> None:
    data["half_width"]["values"][1][1] = -1e-9


def infinite(data: Any) -> None:
    data["latency"]["values"][1][1] = float("inf")


def other_unit(data: Any) -> None:
    data["latency"]["unit"] = "bytes"


def no_unit(data: Any) -> None:
    del data["half_width"]["unit"]


def no_machine(data: Any) -> None:
    del data["machine"]


def no_batch(data: Any) -> None:
    data["batch_size"] = 0


def other_layers(data: Any) -> None:
    data["signatures"][0] = "z linear 4x4"


def other_precisions(data: Any) -> None:
    data["half_width"]["precisions"][0] = "w8a8"


def unknown_pair(data: Any) -> None:
    data["latency"]["pairs"][0]["first"] = "z"


def width_in_bytes(data: Any) -> None:
    data["half_width"]["unit"] = "bytes"


def no_width(data: Any) -> None:
    data["half_width"]["values"][0][0] = None


def nowhere(data: Any) -> None:
    data["latency"]["values"][0] = [None] * 3
    data["half_width"]["values"][0] = [None] * 3


def later(data: Any) -> None:
    data["schema_version"] = 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (negative, "a latency is negative"),
        (negative_width, "a half width is negative"),
        (width_in_bytes, "in seconds"),
        (no_width, "a half width wherever it has a latency"),
        (nowhere, "a latency at one precision at least"),
        (infinite, "layer 'b' at w7a8 costs inf"),
        (other_unit, "in seconds"),
        (no_unit, "unit"),
        (no_machine, "machine"),
        (no_batch, "batch_size"),
        (other_layers, "must have the same layers"),
        (other_precisions, "must have the same layers"),
        (unknown_pair, "no layer of a pair of latency 'z'"),
        (later, "update mpq"),
    ],
)
def test_damaged_file_is_refused(
    measured: NetworkProfile, damage: Callable[[Any], None], message: str, tmp_path: Path
) -> None:
    """By what is wrong with it, and by its name."""
    data = json.loads(measured.to_json())
    damage(data)
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(data))

    with pytest.raises(FileFormatError, match=f"damaged.json: .*{message}"):
        load_device(str(path))


def test_empty_cell_means_that_it_cannot_run(measured: NetworkProfile) -> None:
    """Null, or NaN as some write it."""
    data = json.loads(measured.to_json())
    data["latency"]["values"][1] = [4.0, None, float("nan")]
    data["half_width"]["values"][1][1:] = [None, float("nan")]

    found = profile_from_dict(data)

    assert [found.can_run(LAYERS[1], p) for p in PRECISIONS] == [True, False, False]


def test_layer_names_may_have_spaces(measured: NetworkProfile) -> None:
    """As ``add_module`` allows them."""
    text = measured.to_json().replace('"a"', '"a layer"').replace('"a linear', '"a layer linear')

    found = profile_from_dict(json.loads(text))

    assert found.can_run(layer("a layer"), INT8)


def test_profile_is_shown(measured: NetworkProfile, tmp_path: Path) -> None:
    """Every number with its source, like a device that ships."""
    path = tmp_path / "mine.json"
    path.write_text(measured.to_json())

    result = CliRunner().invoke(app, ["devices", "--show", str(path)])

    assert result.exit_code == 0, result.stderr
    for text in ("mine: onnxruntime on a processor", "Costs are measured", "0.5", "w4g32a8d"):
        assert text in result.stdout


@pytest.fixture(scope="module")
def demo_profile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The demo on this machine, by ``mpq profile``, and what that prints."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="profiles are measured with mpq[onnx]")
    path = tmp_path_factory.mktemp("profile") / "here.json"
    asked = ["--rounds", "10", "--max-interval", "1000000", "--num-networks", "3"]
    result = CliRunner().invoke(
        app, ["profile", *asked, "--precisions", "fp32,w7a8,w4a8", "--output", str(path)]
    )
    assert result.exit_code == 0, result.stderr
    return path, result.stdout


def test_command_writes_a_profile(demo_profile: tuple[Path, str]) -> None:
    """Of all layers, with its page, and leaves no journal."""
    path, printed = demo_profile

    found = load_device(str(path))

    assert isinstance(found, NetworkProfile)
    assert found.name == "here"
    assert len(found.latency.layers) == 18
    assert len(found.record["networks"]) == 3 + 3
    assert "18 of 18" in printed
    assert "corrected against" in printed
    assert set(path.parent.iterdir()) == {path, path.with_suffix(".html")}
    command = "mpq profile --rounds 10 --max-interval 1000000 --num-networks 3"
    assert shlex.join(found.record["command"]).startswith(command)
    assert command in path.with_suffix(".html").read_text(encoding="utf-8")


def test_search_keeps_a_measured_limit(demo_profile: tuple[Path, str], tmp_path: Path) -> None:
    """The total that is limited has the constant and every pair, and is proved optimal."""
    path, _ = demo_profile
    found = load_device(str(path))
    assert isinstance(found, NetworkProfile)
    table = found.latency
    uniform = [seconds(table, dict.fromkeys(table.layers, p)) for p in table.precisions]
    limit = (min(uniform) + max(uniform)) / 2

    result = CliRunner().invoke(
        app,
        [
            "search", "--device", str(path), "--limit", f"latency={limit * 1e6:.3f}us",
            "--output", str(tmp_path), "--sensitivity", "weight-error",
        ],
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    assignment = Assignment.load(tmp_path / "assignment.json")
    (budget,) = assignment.metadata.budgets
    used = seconds(table, assignment.precisions)
    assert table.pairs
    assert used == pytest.approx(budget.used, rel=1e-9)
    assert used <= limit * (1 + 1e-6)
    assert assignment.metadata.solver_status == "optimal"
    assert assignment.metadata.device == "here"
    assert str(assignment.metadata.solver).startswith(("ilp", "outer-approximation"))


def seconds(table: CostTable, precisions: Any) -> float:
    """Of one assignment, by hand."""
    columns = {name: table.precisions.index(precisions[name]) for name in table.layers}
    cells = sum(table.values[row, columns[name]] for row, name in enumerate(table.layers))
    between = sum(x.values[columns[x.first], columns[x.second]] for x in table.pairs)
    return float(table.constant + cells + between)


def test_search_for_another_batch_is_refused(
    demo_profile: tuple[Path, str], tmp_path: Path
) -> None:
    """Times of one example are not those of eight."""
    path, _ = demo_profile

    result = CliRunner().invoke(
        app,
        [
            "search", "--device", str(path), "--limit", "latency=1s", "--batch-size", "8",
            "--output", str(tmp_path),
        ],
    )  # fmt: skip

    assert result.exit_code == 2
    assert "measured for a batch of 1" in " ".join(result.stderr.split())


def test_demo_profile_is_of_the_demo(demo_profile: tuple[Path, str]) -> None:
    """Its signatures are those that a search finds."""
    from mpq.network.network import find_layers

    found = load_device(str(demo_profile[0]))

    layers = find_layers(demo.make_net(), demo.calibration)
    assert isinstance(found, NetworkProfile)
    assert found.signatures == tuple(x.signature for x in layers)
