"""The recipe ``aimet``: what AIMET computes by our encodings is the simulation."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq.errors import InputError, PrecisionError
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.range_method import ActivationRange

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
WITHOUT_READER = "pip install torch==2.13.0 aimet-onnx"


class Pictures(nn.Module):
    """A convolution with BatchNorm, a Gemm, a MatMul."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.rows = nn.Linear(8, 16, bias=False)
        self.fc = nn.Linear(512, 16)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.stem(x)
        out: Tensor = self.fc(x.flatten(1)).relu() + self.rows(x.flatten(2).transpose(1, 2)).sum(1)
        return out


class Residual(nn.Module):
    """What the layer reads is added to what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """A block."""
        out: Tensor = self.fc(x) + x
        return out


def network() -> Pictures:
    """With a BatchNorm that is not the identity."""
    torch.manual_seed(0)
    model = Pictures()
    for _ in range(3):
        model(torch.randn(16, 3, 8, 8))
    return model.eval()


DATA = [torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)) for _ in range(2)]


def assigned(model: nn.Module, *spellings: str) -> Assignment:
    """One precision per layer."""
    precisions = list(map(Precision.parse, spellings))
    data = Calibration(DATA)
    found = Network.of(model, data)
    ranges = ActivationRanges.calibrate(found, data, precisions, "minmax")
    layers = tuple(
        AssignedLayer(x.name, x.kind, x.weight_shape, p, ranges.of(x.name, p.activation))
        for x, p in zip(found.layers, precisions, strict=True)
    )
    return Assignment(layers, weight_range="minmax", folded=dict(found.folded))


def test_encodings_name_the_tensors_of_the_graph(tmp_path: Path) -> None:
    """Scales are the simulation's own; what is not our codes says so; BatchNorm is folded."""
    model = network()
    found = assigned(model, "w4a8", "w8ta8s", "w3za32")

    made = mpq.export(found, tmp_path / "out", "aimet", model, DATA)

    data = json.loads((tmp_path / "out" / "encodings.json").read_text())
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    names = {x.name for x in graph.initializer}
    assert made.path == tmp_path / "out" / "encodings.json"
    assert "not our codes" in data["note"]
    assert "not our codes" in made.verdict
    assert {x["name"] for x in data["param_encodings"]} <= names
    by_bits = {x["bw"]: x for x in data["param_encodings"]}
    assert (len(by_bits[4]["scale"]), set(by_bits[4]["offset"])) == (8, {-8})
    assert (by_bits[8]["enc_type"], by_bits[8]["offset"]) == ("PER_TENSOR", [-128])
    assert by_bits[3]["is_sym"] is False
    assert not any(node.op_type == "BatchNormalization" for node in graph.node)


@pytest.mark.parametrize(
    ("spellings", "why"),
    [
        (("w4g32", "w4", "w4"), "blocks of a channel were not tried"),
        (("fp8", "w4", "w4"), "this is fp8_e4m3"),
        (("w8a8d", "w4", "w4"), "its inputs are static integers"),
    ],
)
def test_what_encodings_lack_is_refused(
    tmp_path: Path, spellings: tuple[str, ...], why: str
) -> None:
    """With the layer's name; nothing is written."""
    model = network()

    with pytest.raises(PrecisionError, match="layer 'stem.0' at") as error:
        mpq.export(assigned(model, *spellings), tmp_path / "out", "aimet", model, DATA)

    assert why in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_tensor_that_others_read_unrounded_is_refused(tmp_path: Path) -> None:
    """AIMET rounds a tensor for all its readers."""
    model = Residual().eval()
    layer = AssignedLayer(
        "fc", "linear", (8, 8), Precision.parse("w8a8"), ActivationRange(-1.0, 1.0)
    )

    with pytest.raises(PrecisionError, match="AIMET would round it for"):
        mpq.export(Assignment((layer,)), tmp_path / "out", "aimet", model, [torch.randn(4, 8)])
    with pytest.raises(InputError, match="needs the network and examples"):
        mpq.export(Assignment((layer,)), tmp_path / "out", "aimet")


def searched(model: nn.Module, rounding: str) -> mpq.SearchResult:
    """At w3, with codes that were found with regard to data."""
    task = mpq.Task(model, DATA, DATA, candidates=["w3a32"], rounding=rounding)
    return mpq.search(task, {"effective_bits": 33}, sensitivity="weight-error")


def test_codes_that_data_chose_are_what_the_graph_rounds_to(tmp_path: Path) -> None:
    """By the encodings' own definition, in every layer: AIMET need not know how they were found."""
    model = network()
    found = searched(model, "coordinate-descent:signs=false").assignment

    mpq.export(found, tmp_path / "out", "aimet", model, DATA)

    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    numbers = {x.name: torch.tensor(onnx.numpy_helper.to_array(x)) for x in graph.initializer}
    data = json.loads((tmp_path / "out" / "encodings.json").read_text())
    assert "found by coordinate-descent" in data["note"]
    assert found.weights is not None
    stored = [torch.tensor(weight.codes) for weight in found.weights.by_layer.values()]
    for entry in data["param_encodings"]:
        weight = numbers[entry["name"]]
        # Of a MatMul the matrix is turned round, and its scales are of columns.
        rows = (weight if len(weight) == len(entry["scale"]) else weight.t()).flatten(1)
        codes = (rows / torch.tensor(entry["scale"])[:, None]).round()
        assert any(codes.shape == own.shape and torch.equal(codes, own.float()) for own in stored)


def test_negative_scales_are_refused(tmp_path: Path) -> None:
    """AIMET's are positive."""
    model = network()

    with pytest.raises(PrecisionError, match="aimet reads positive scales, and"):
        mpq.export(
            searched(model, "coordinate-descent").assignment, tmp_path / "out", "aimet", model, DATA
        )


def test_aimet_computes_what_the_simulation_does(tmp_path: Path) -> None:
    """To float32's last digits: its own reader, its own rounding, our scales."""
    quantsim = pytest.importorskip("aimet_onnx.quantsim", reason=WITHOUT_READER)
    model = network()
    found = assigned(model, "w4a8", "w8ta32", "w3a32")
    mpq.export(found, tmp_path / "out", "aimet", model, DATA)

    sim = quantsim.QuantizationSimModel(onnx.load(tmp_path / "out" / "model.onnx"))
    encodings = json.loads((tmp_path / "out" / "encodings.json").read_text())
    quantsim.load_encodings_to_sim(sim, encodings, strict=False)

    expected = mpq.quantize(model, found)(DATA[0]).detach()
    (name,) = [x.name for x in sim.session.get_inputs()]
    (got,) = sim.session.run(None, {name: DATA[0].numpy()})
    assert (torch.from_numpy(got) - expected).abs().max() < 1e-5
    assert (model(DATA[0]) - expected).abs().max() > 1e-2
