"""Whole networks as ONNX files: what they compute, what runs in integers, what is refused."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from mpq import demo
from mpq.backends import export, quantize
from mpq.backends.onnx import GraphTemplate, Subgraph, fill
from mpq.cli.__main__ import app
from mpq.errors import PrecisionError
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.stored import StoredWeights
from tests.backends.onnx.assigned import assigned

pytest.importorskip("onnx", reason="graphs are written with mpq[onnx]")
pytest.importorskip("onnxscript", reason="torch exports with mpq[onnx]")
pytest.importorskip("onnxruntime", reason="runs the graphs; mpq[onnx]")

Array = npt.NDArray[Any]


class Residual(nn.Module):
    """A stem, a block around a shortcut with a grouped convolution, a pooled head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.first, self.norm1 = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8)
        self.second, self.norm2 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.beside = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm0(self.stem(x)).relu()
        y = self.norm1(self.first(x)).relu()
        x = (x + self.norm2(self.second(y)) + self.beside(x)).relu()
        found: Tensor = self.head(x.mean((2, 3)))
        return found


class Sentence(nn.Module):
    """Ids ``[N, 6]``: embedding and positions, one block with a shared layer, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, 32)
        self.positions = nn.Parameter(torch.randn(6, 32) / 8)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.norm = nn.LayerNorm(32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.same = self.up
        self.head = nn.Linear(32, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.positions
        x = x + self.attention(x, x, x, need_weights=False)[0]
        y = self.norm(x)
        x = x + self.down(nn.functional.gelu(self.up(y)) + self.same(x))
        found: Tensor = self.head(x.mean(1))
        return found


def made(kind: type[nn.Module]) -> nn.Module:
    """With weights and statistics that are the same every time."""
    torch.manual_seed(0)
    model = kind().eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean = torch.randn(8) / 4
            norm.running_var = torch.rand(8) + 0.5
    return model


def images() -> list[Tensor]:
    """Two batches of 4."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 8, 8, generator=generator) for _ in range(2)]


def ids() -> list[Tensor]:
    """Two batches of 4."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(13, (4, 6), generator=generator) for _ in range(2)]


def run(file: Path | bytes, x: Array, optimized: Path | None = None) -> Array:
    """Logits by ONNX Runtime, with the optimizations that ``mpq profile`` leaves on."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry(
        "optimization.disable_specified_optimizers", "WeightBiasQuantization;NhwcTransformer"
    )
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    source = file if isinstance(file, bytes) else str(file)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    (value,) = session.get_inputs()
    assert value.shape == list(x.shape)
    return np.asarray(session.run(None, {value.name: x})[0])


def relative_error(found: Array, expected: Array) -> float:
    """Root mean square of the difference over that of the expected logits, less their mean."""
    centred = expected - expected.mean()
    return float(np.sqrt(np.square(found - expected).mean() / np.square(centred).mean()))


MIXED = {"": "w7a8", "first": "fp32", "head": "w4g16a8d"}


@dataclass(frozen=True, eq=False)
class Exported:
    """A network with its graph; ``state`` is what it was before."""

    model: nn.Module
    data: Calibration
    network: Network
    template: GraphTemplate
    state: dict[str, Tensor]

    @classmethod
    def of(cls, kind: type[nn.Module], data: list[Tensor], batch_size: int) -> Self:
        model, calibration = made(kind), Calibration(data)
        state = copy.deepcopy(model.state_dict())
        network = Network.of(model, calibration)
        template = GraphTemplate.of(network, calibration, batch_size)
        return cls(model, calibration, network, template, state)

    def filled(self, spellings: dict[str, str]) -> Any:
        """Graph at these precisions; the entry ``""`` is for all other layers."""
        names = [layer.name for layer in self.network.layers]
        chosen = {name: Precision.parse(spellings.get(name, spellings[""])) for name in names}
        ranges = ActivationRanges.calibrate(self.network, self.data, set(chosen.values()), "minmax")
        return fill(self.template, chosen, Quantizer(ranges))


@pytest.fixture(scope="module", autouse=True)
def _one_export_per_network() -> Iterator[None]:
    """An export takes seconds; the networks of one name are the same every time."""
    made: dict[tuple[str, int], GraphTemplate] = {}
    original = GraphTemplate.of

    def of(network: Network, data: Calibration, batch_size: int = 1) -> GraphTemplate:
        key = (network.fingerprint, batch_size)
        if key not in made:
            made[key] = original(network, data, batch_size)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GraphTemplate, "of", of)
        yield


@pytest.fixture(scope="module")
def residual() -> Exported:
    """For one image."""
    return Exported.of(Residual, images(), 1)


@pytest.fixture(scope="module")
def sentence() -> Exported:
    """For two rows of ids."""
    return Exported.of(Sentence, ids(), 2)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Assignment]:
    """The residual network, float between int8 layers, as a file for one image."""
    model, data = made(Residual), images()
    assignment = assigned(model, data, MIXED)
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    return export(assignment, path, "onnx", model, data).path, assignment


def test_mixed_network_computes_what_the_simulation_does(mixed: tuple[Path, Assignment]) -> None:
    """Up to the rounded outputs of convolutions, which the simulation leaves float."""
    file, assignment = mixed
    simulated = quantize(made(Residual), assignment)

    found = [run(file, x[None].numpy())[0] for x in images()[0]]

    with torch.no_grad():
        expected = simulated(images()[0]).numpy()
    assert relative_error(np.stack(found), expected) < 0.05


def test_float_layer_between_int8_layers_stays_float(
    mixed: tuple[Path, Assignment], tmp_path: Path
) -> None:
    """In the graph that ONNX Runtime executes: one float convolution, the others of integers."""
    import onnx

    run(mixed[0], images()[0][:1].numpy(), tmp_path / "optimized.onnx")

    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    operators = [node.op_type for node in nodes]
    assert operators.count("QLinearConv") == 3
    assert operators.count("Conv") + operators.count("FusedConv") == 1
    assert operators.count("MatMulNBits") == 1


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("size", [16, 32])
def test_packed_blocks_are_those_of_the_operator(bits: int, size: int, tmp_path: Path) -> None:
    """Read code by code, as its definition has them: the first in the lowest bits of a byte."""
    import onnx
    from onnx import numpy_helper

    torch.manual_seed(0)
    # 40 inputs: the last block is filled up with zeros.
    model, data = nn.Sequential(nn.Linear(40, 3, bias=False)).eval(), [torch.randn(4, 40)]
    precision = Precision.parse(f"w{bits}g{size}a32")
    found = Assignment((AssignedLayer("0", "linear", (3, 40), precision),))
    export(found, tmp_path / "net.onnx", "onnx", model, data)

    graph = onnx.load(tmp_path / "net.onnx").graph
    (node,) = (x for x in graph.node if x.op_type == "MatMulNBits")
    stored = {x.name: numpy_helper.to_array(x) for x in graph.initializer}
    stream, scale = stored[node.input[1]], stored[node.input[2]].reshape(3, -1)
    decoded = np.zeros((3, 40), np.float32)
    for row in range(3):
        for column in range(40):
            block, place = divmod(column, size)
            byte, low = divmod(place * bits, 8)
            code = (int(stream[row, block, byte]) >> low) % 2**bits - 2 ** (bits - 1)
            decoded[row, column] = np.float32(code) * scale[row, block]
    assert stream.shape == (3, -(-40 // size), size * bits // 8)
    expected = quantize(model, found)(torch.eye(40)).t().detach().numpy()
    np.testing.assert_array_equal(decoded, expected)


def test_tensor_that_two_int8_layers_read_is_rounded_once(mixed: tuple[Path, Assignment]) -> None:
    """``second`` and ``beside`` read two tensors and the stem one; outputs are rounded besides."""
    import onnx

    nodes = onnx.load(mixed[0]).graph.node
    rounded = [node.input[0] for node in nodes if node.op_type == "QuantizeLinear"]

    # The image; the stem's output for `beside`; the float layer's for `second`; their two outputs.
    assert len(rounded) == 5
    assert len(set(rounded)) == 5


def test_readers_of_one_tensor_share_its_integers(sentence: Exported) -> None:
    """Queries, keys and values: one ``QuantizeLinear`` for three layers."""
    graph = sentence.filled({"": "w7a8"}).graph

    made_by = {node.output[0]: node for node in graph.node}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    sources = [made_by.get(node.input[0]) for node in products]
    integers = [x.input[0] for x in sources if x is not None and x.op_type == "DequantizeLinear"]
    assert len(integers) == 8  # q, k, v, out, up twice, down, head
    assert len(set(integers)) == 6  # q, k and v read one tensor


@pytest.mark.parametrize(
    ("spelling", "allowed"), [("fp32", 1e-5), ("w7a8", 0.02), ("w8g16", 1e-4), ("w8g32a8d", 0.05)]
)
def test_transformer_computes_what_the_simulation_does(
    sentence: Exported, spelling: str, allowed: float
) -> None:
    """A layer under two names, attention, an embedding of integers; two examples a run."""
    spellings = {"": spelling, "embedding": "w8a8"}

    graph = sentence.filled(spellings)

    x = ids()[0][:2]
    assignment = assigned(sentence.model, ids(), spellings)
    with torch.no_grad():
        expected = quantize(sentence.model, assignment)(x).numpy()
    assert relative_error(run(graph.SerializeToString(), x.numpy()), expected) < allowed


def test_layer_under_two_names_is_exported_in_its_precision(sentence: Exported) -> None:
    """No float weight of it is left in the graph."""
    graph = sentence.template.graph.graph

    names = [node.attribute[0].s.decode() for node in graph.node if node.op_type == "Layer"]

    assert names.count("up") == 2
    assert not any("weight" in c.name and len(c.dims) == 2 for c in graph.initializer)


class Lonely(nn.Module):
    """One layer whose bias is far larger than its weights; options that are no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 4)
        with torch.no_grad():
            self.layer.weight.mul_(1e-5)
            self.layer.bias.copy_(torch.tensor([3e5, -2e5, 1.0, 0.0]))

    def forward(self, x: Tensor, mask: Tensor | None = None, scaled: bool = False) -> Tensor:
        y: Tensor = self.layer(x)
        return y * 2 if scaled else y


def test_bias_that_is_too_large_for_32_bits_widens_the_steps(tmp_path: Path) -> None:
    """Instead of wrapping around: exact to what 30 bits of the bias are."""
    model, data = made(Lonely), [torch.randn(4, 16, generator=torch.Generator().manual_seed(0))]
    assignment = assigned(model, data, {"": "w7a8"})

    file = export(assignment, tmp_path / "net.onnx", "onnx", model, data).path

    with torch.no_grad():
        expected = quantize(model, assignment)(data[0][:1]).numpy()
    np.testing.assert_allclose(run(file, data[0][:1].numpy()), expected, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("lowest", [-100, -128])
def test_a_large_bias_widens_negative_scales_as_positive_ones(tmp_path: Path, lowest: int) -> None:
    """They stay negative where a code has no place with another sign."""
    model, data = made(Lonely), [torch.randn(4, 16, generator=torch.Generator().manual_seed(0))]
    found = assigned(model, data, {"": "w8a8"})
    codes = Quantizer(ActivationRanges({})).codes(
        "layer", model.get_submodule("layer"), found.layers[0].precision.weight
    )
    negative = codes.codes.neg().clamp(lowest, 127)
    negative[2, 0] = lowest
    stored = replace(codes, codes=negative, scale=-codes.scale)
    rows = model.get_parameter("layer.weight")
    found = replace(found, weights=StoredWeights("auto", {"layer": stored.stored(rows)}))

    export(found, tmp_path / "net.onnx", "onnx", model, data)

    with torch.no_grad():
        expected = quantize(model, found)(data[0][:1]).numpy()
    got = run(tmp_path / "net.onnx", data[0][:1].numpy())
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-3)
    assert weight_signs(tmp_path / "net.onnx") == [1, 1, -1 if lowest == -128 else 1, 1]


def weight_signs(file: Path) -> list[float]:
    """Of the scales of the only matrix of codes."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(file).graph
    stored = {x.name: numpy_helper.to_array(x) for x in graph.initializer}
    (scale,) = (
        stored[node.input[1]]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and stored.get(node.input[0], np.zeros(0)).ndim == 2
    )
    signs: list[float] = np.sign(scale).tolist()
    return signs


def test_inputs_that_are_no_tensors_are_constants() -> None:
    """As a dictionary of inputs has them."""
    data = Calibration([{"x": torch.randn(4, 16), "mask": None, "scaled": True}])

    template = GraphTemplate.of(Network.of(made(Lonely), data), data, batch_size=2)

    assert list(template.feeds) == ["x"]
    assert [node.op_type for node in template.graph.graph.node] == ["Layer", "Mul"]


def test_pieces_between_layers_run_alone(residual: Exported) -> None:
    """A layer with the last one before it; what else it reads is an input of the piece."""
    pieces = Subgraph.between(residual.template)

    found = {piece.layers: [x.shape for x in piece.examples] for piece in pieces}
    image, wide = (1, 3, 8, 8), (1, 8, 8, 8)
    assert found == {
        ("stem", "first"): [image],
        ("first", "second"): [wide],
        ("stem", "beside"): [image],
        ("beside", "head"): [wide, wide],
    }


@pytest.mark.parametrize("name", ["residual", "sentence"])
def test_network_is_left_as_found(name: str, request: pytest.FixtureRequest) -> None:
    """Weights, mode, hooks, gradients, modules."""
    exported: Exported = request.getfixturevalue(name)

    exported.filled({"": "w7a8"})

    model = exported.model
    state = model.state_dict()
    assert exported.state.keys() == state.keys()
    assert all(torch.equal(exported.state[key], value) for key, value in state.items())
    assert not any(m.training or m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert [type(m) for m in model.modules()] == [type(m) for m in made(type(model)).modules()]


def test_random_state_is_left_as_found(tmp_path: Path) -> None:
    """torch's and numpy's, by an export from beginning to end."""
    model, data = made(Lonely), [torch.randn(4, 16)]
    assignment = assigned(model, data, {"": "w7a8"})
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()

    export(assignment, tmp_path / "net.onnx", "onnx:batch_size=3", model, data)

    assert torch.equal(torch_state, torch.random.get_rng_state())
    assert str(numpy_state) == str(np.random.get_state())


@pytest.mark.parametrize(
    ("name", "spelling"), [("stem", "w4g32a8d"), ("head", "w8a8d"), ("beside", "fp8")]
)
def test_precision_that_no_kernel_has_is_refused(
    residual: Exported, name: str, spelling: str
) -> None:
    """By the layer's name."""
    with pytest.raises(PrecisionError, match=f"layer '{name}': .* no kernel .* at {spelling}"):
        residual.filled({"": "fp32", name: spelling})


def test_command_writes_the_demo(tmp_path: Path) -> None:
    """``mpq export --to onnx`` on the built-in network, int8 throughout; it still reads digits."""
    assignment = assigned(demo.make_net(), demo.calibration, {"": "w7a8"})
    (tmp_path / "assignment.json").write_text(assignment.to_json())
    arguments = ["export", str(tmp_path / "assignment.json"), "--to", "onnx:batch_size=64"]

    result = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "net.onnx")])

    assert result.exit_code == 0, result.stderr
    assert "net.onnx" in result.stdout
    x, labels = next(iter(demo.held_out()))
    logits = run(tmp_path / "net.onnx", x[:64].numpy())
    assert (logits.argmax(1) == labels[:64].numpy()).mean() > 0.9
