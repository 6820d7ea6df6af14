"""The target ``onnx-qdq``: files of standard operators that ONNX Runtime runs as simulated."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq.backends.export_check import ExportCheck
from mpq.backends.onnx.qdq import FILE, SETTINGS_FILE, OnnxQdq
from mpq.backends.onnx.session import AS_WRITTEN
from mpq.backends.shipping import ship
from mpq.backends.target import Shipped
from mpq.errors import ModelError, PrecisionError
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.precision import ORIGINAL, Precision
from tests.backends.onnx.networks import Images, Words, examples, in_turn, made

onnx = pytest.importorskip("onnx", reason="graphs are written with mpq[onnx]")
pytest.importorskip("onnxscript", reason="torch exports with mpq[onnx]")
pytest.importorskip("onnxruntime", reason="runs the graphs; mpq[onnx]")


pytestmark = pytest.mark.usefixtures("one_trace_per_network")


def shipped(folder: Path, model: nn.Module, mix: tuple[str, ...]) -> ExportCheck:
    """Exported, and run by ONNX Runtime."""
    assignment = in_turn(model, OnnxQdq(), mix)
    return ship(OnnxQdq(), "onnx-qdq", assignment, folder, model, examples(model))


WEIGHTS = [
    ("w2", "w3", "w4", "w5", "w6", "w7", "w8"),
    ("w2g16", "w3g32", "w4g12", "w8g9", "w4g128", "w5g64"),
    ("w2z", "w4z", "w3zg16", "w8z", "w2zg8", "w6z"),
    ("w4t", "w8tz", "w2t", "wfp8a32", "w16a32", "wbf16a32", "wfp8_e5m2a32"),
    ("w4", "fp32"),
]
INPUTS = [
    ("w8a8",),
    ("w4a8s", "w8a8", "w2a8", "w8za8s"),
    ("fp8", "w4a16", "fp16", "bf16", "w4g16a8", "w4afp8"),
    ("w8aint16", "w4aint16s", "w2aint16", "w8zaint16", "w5aint16"),
    ("w4g16aint16", "w8g16aint16s", "wfp8aint16", "w16aint16", "w8a8"),
]


@pytest.mark.parametrize("kind", [Images, Words])
@pytest.mark.parametrize("mix", WEIGHTS, ids=lambda mix: mix[0])
@pytest.mark.usefixtures("same_process")
def test_weights_are_decoded_and_outputs_equal(
    kind: type[nn.Module], mix: tuple[str, ...], tmp_path: Path
) -> None:
    """To the bit, and to float32's last digits."""
    model = made(kind)

    check = shipped(tmp_path / "out", model, mix)

    assert check.max_weight_difference == 0.0
    assert check.max_difference < 1e-5 * check.spread
    quantized = sum(x.precision != ORIGINAL for x in in_turn(model, OnnxQdq(), mix).layers)
    assert check.num_layers == sum(check.kinds.values()) == quantized
    assert check.num_examples == 13


@pytest.mark.parametrize("kind", [Images, Words])
@pytest.mark.parametrize("mix", INPUTS, ids=lambda mix: mix[0])
@pytest.mark.usefixtures("same_process")
def test_inputs_are_rounded_as_simulated(
    kind: type[nn.Module], mix: tuple[str, ...], tmp_path: Path
) -> None:
    """But for ties, which fall to either side in sums of another order."""
    check = shipped(tmp_path / "out", made(kind), mix)

    assert check.max_weight_difference == 0.0
    assert check.median_difference < 1e-5 * check.spread


@pytest.mark.usefixtures("same_process")
def test_settings_stand_beside_the_file(tmp_path: Path) -> None:
    """And the difference without them, which is large, in ``export.json``."""
    check = shipped(tmp_path / "out", made(Words), ("w4",))

    told = (tmp_path / "out" / SETTINGS_FILE).read_text()
    assert all(f'"{name}", "{value}"' in told for name, value in AS_WRITTEN.items())
    compile(told, SETTINGS_FILE, "exec")
    (without,) = check.max_differences_otherwise.values()
    assert check.max_difference < 1e-5 * check.spread < without
    kept = json.loads((tmp_path / "out" / "export.json").read_text())
    assert kept["max_differences_otherwise"] == check.max_differences_otherwise
    assert "ONNX Runtime without settings: at most" in check.verdict


@pytest.mark.usefixtures("same_process")
def test_a_file_holds_nothing_of_this_machine(tmp_path: Path) -> None:
    """torch's exporter notes the source lines of every node, with their paths."""
    shipped(tmp_path / "out", made(Images), ("w4",))

    content = (tmp_path / "out" / FILE).read_bytes()
    assert str(Path(__file__).parents[3]).encode() not in content
    assert {x.domain for x in onnx.load_from_string(content).graph.node} == {""}


@pytest.mark.parametrize(("num_outputs", "bits"), [(33, 4), (36, 2)])
def test_two_bits_are_stored_in_four_where_the_runtime_would_be_wrong(
    num_outputs: int, bits: int
) -> None:
    """ONNX Runtime multiplies wrongly with 2-bit matrices of other than whole fours of columns."""
    layer = AssignedLayer("fc", "linear", (num_outputs, 32), Precision.parse("w2"))

    found = OnnxQdq().stored_bits(layer, layer.precision)

    assert found == -(-num_outputs * 32 * bits // 8) * 8 + 32 * num_outputs


@pytest.mark.parametrize(
    ("kind", "precision", "why"),
    [
        ("linear", "w8a8d", "none per token"),
        ("linear", "w8a4", "rounds no inputs to int4"),
        ("linear", "w8aint16d", "none per token"),
        ("linear", "wint16a32", "no element type for int16"),
        ("linear", "wfp4a32", "no element type for fp4_e2m1"),
        ("linear", "w8g16a8", "groups in 8 bits with int8 inputs"),
        ("conv_transpose2d", "w8", "no layers of the kind conv_transpose2d"),
    ],
)
def test_what_the_file_cannot_hold_is_refused(kind: str, precision: str, why: str) -> None:
    """With the layer's name and the reason."""
    shape = (8, 32, 1, 1) if "conv" in kind else (8, 32)
    layer = AssignedLayer("fc", kind, shape, Precision.parse(precision))

    with pytest.raises(PrecisionError, match=f"'fc' at .*{why}"):
        OnnxQdq().check([layer])


@pytest.mark.usefixtures("same_process")
def test_one_parameter_in_two_precisions_is_refused(tmp_path: Path) -> None:
    """It is stored once."""
    model = made(Words)
    found = in_turn(model, OnnxQdq(), ("w4",))
    layers = tuple(
        AssignedLayer(x.name, x.kind, x.weight_shape, ORIGINAL) if x.name == "head" else x
        for x in found.layers
    )
    other = mpq.Assignment(layers, weight_range="minmax")

    with pytest.raises(ModelError, match="'embedding' at w4a32 shares its weight with 'head'"):
        ship(OnnxQdq(), "onnx-qdq", other, tmp_path / "out", model, examples(model))

    assert not list(tmp_path.iterdir())


def test_a_search_is_exported_and_run_in_a_fresh_process(tmp_path: Path) -> None:
    """Its bytes are those that were searched for, and a limit below w4 takes 2 bits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 12)).eval()
    data = [torch.randn(8, 3, 8, 8)]
    task = mpq.Task(model, data, to="onnx-qdq", candidates=["w2", "w3", "w4g32", "w8"])

    result = mpq.search(task, ["weight_bytes=0.4x:w8"], sensitivity="weight-error")
    mpq.export(result.assignment, tmp_path / "out", "onnx-qdq:batch_size=3", model, data)

    told = json.loads((tmp_path / "out" / "export.json").read_text())
    (budget,) = result.assignment.metadata.budgets
    assert told["was_searched_for"]
    assert told["predicted_bytes"] == budget.used
    assert told["max_difference"] < 1e-5 * told["spread"]


@pytest.mark.usefixtures("same_process")
def test_codes_in_more_bits_than_promised_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They decode to the same numbers, and 64 KiB of a graph would hide how many they take."""
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 8)).eval(), drawn()
    write = OnnxQdq.write

    def wider(target: OnnxQdq, found: Shipped, folder: Path) -> None:
        write(target, found, folder)
        file = folder / FILE
        graph = onnx.load(file)
        for stored in graph.graph.initializer:
            if stored.data_type == onnx.TensorProto.INT4:
                values = onnx.numpy_helper.to_array(stored).astype(np.int8)
                stored.CopyFrom(onnx.numpy_helper.from_array(values, stored.name))
        onnx.save(graph, file)

    monkeypatch.setattr(OnnxQdq, "write", wider)
    found = mpq.search(
        mpq.Task(model, data, data, candidates=["w4"]),
        {"effective_bits": 33},
        sensitivity="weight-error",
    ).assignment

    message = "layer '0' at w4a32 is held as INT8 .*, and INT4 was promised; nothing was written"
    with pytest.raises(ModelError, match=message):
        mpq.export(found, tmp_path / "out", "onnx-qdq", model, data)

    assert not list(tmp_path.iterdir())


def drawn() -> list[Tensor]:
    """One batch of rows."""
    return [torch.randn(8, 64, generator=torch.Generator().manual_seed(0))]


class Dead(nn.Module):
    """A layer that nothing calls."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.dead = nn.Linear(64, 8), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(x)
        return found


@pytest.mark.usefixtures("same_process")
def test_what_a_file_leaves_out_is_told(tmp_path: Path) -> None:
    """A layer that nothing calls is not in the graph, and its bytes are missing."""
    torch.manual_seed(0)
    model, data = Dead().eval(), drawn()
    task = mpq.Task(model, data, data, to="onnx-qdq", candidates=["w8"])
    found = mpq.search(task, {"effective_bits": 33}, sensitivity="weight-error").assignment

    made = mpq.export(found, tmp_path / "out", "onnx-qdq", model, data)

    told = json.loads((tmp_path / "out" / "export.json").read_text())
    missing = told["predicted_bytes"] - told["file_bytes"]
    assert missing > 0
    warning = f"the files are {missing} bytes smaller than predicted: the network never runs 'dead'"
    assert told["warnings"] == [warning]
    assert warning in made.verdict


class Masked(nn.Module):
    """Attention under a mask of as many positions as there are examples."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Scores of every position."""
        found: Tensor = self.head(self.attention(x, x, x, attn_mask=mask)[0])
        return found


class Stateful(nn.Module):
    """Its states ``[layers, N, H]`` have the examples second."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Tensor:
        """Scores after the last step."""
        found: Tensor = self.head(self.recurrent(x, (h, c))[0][:, -1])
        return found


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("case", ["mask", "states"])
def test_inputs_are_cut_where_their_examples_lie(tmp_path: Path, case: str) -> None:
    """As a search cuts them; torch's own error came of cutting every input along its first axis."""
    torch.manual_seed(0)
    x = torch.randn(6, 6, 8)
    model: nn.Module = Masked() if case == "mask" else Stateful()
    mask = torch.full((6, 6), float("-inf")).triu(1)
    h, c = torch.randn(2, 1, 6, 8)
    data = [{"x": x, "mask": mask} if case == "mask" else {"x": x, "h": h, "c": c}]
    task = mpq.Task(model.eval(), data, data, candidates=("w4", "w8"))
    found = mpq.search(task, {"weight_bytes": "1x:w8"}, sensitivity="weight-error")

    mpq.export(found.assignment, tmp_path / "out", "onnx-qdq", model, data)

    assert json.loads((tmp_path / "out" / "export.json").read_text())["num_examples"] == 6
