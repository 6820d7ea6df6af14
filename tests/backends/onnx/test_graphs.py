"""Layers as ONNX nodes: two runtimes compute what the simulation does."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from mpq.backends.onnx import GraphTemplate, Kernel, Subgraph, fill, kernel_of, rounds_output
from mpq.backends.onnx.session import open_session, outputs_of
from mpq.errors import ModelError, PrecisionError
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer, quantized

pytest.importorskip("onnx", reason="graphs are written with mpq[onnx]")
pytest.importorskip("onnxscript", reason="torch exports with mpq[onnx]")

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

Array = npt.NDArray[Any]
Runner = Callable[[Any, Array], Array]

INTEGER = ("w8a8", "w7a8", "w7ta8", "w4a8", "w7a8s", "w2a8")
PACKED = ("w2g16", "w4g32", "w8g16", "w4g128")
DYNAMIC = ("w2g32a8d", "w4g32a8d", "w8g16a8d")
CHOICES = tuple(map(Precision.parse, ("fp32", *INTEGER, *PACKED, *DYNAMIC)))


class Conv1D(nn.Module):
    """Hugging Face's layer of GPT-2: the weight is ``[I, O]``; known by module and name."""

    __module__ = "transformers.pytorch_utils"

    def __init__(self, num_outputs: int, num_inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_inputs, num_outputs) / 4)
        self.bias = nn.Parameter(torch.randn(num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Zoo(nn.Module):
    """Layers of every kind side by side; inputs ``[N, 6, 8, 8]`` and ids ``[N, 5]``."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Linear(40, 10)
        self.tokens = nn.Linear(40, 12, bias=False)
        self.transposed = Conv1D(9, 40)
        self.conv1d = nn.Conv1d(6, 9, 5, padding=2, groups=3)
        self.conv2d = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.strided = nn.Conv2d(6, 8, 3, stride=(2, 1), dilation=(1, 2), padding=(1, 2), groups=2)
        self.same = nn.Conv2d(6, 7, (4, 3), padding="same", dilation=(1, 2))
        self.valid = nn.Conv2d(6, 5, 3, padding="valid")
        self.conv3d = nn.Conv3d(3, 4, (1, 3, 3), padding=(0, 1, 1))
        self.up1d = nn.ConvTranspose1d(6, 4, 4, stride=2, padding=1)
        self.up2d = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.up3d = nn.ConvTranspose3d(3, 2, 2, stride=2)
        self.embedding = nn.Embedding(11, 10)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        sequence, volume = x.flatten(2), x.reshape(-1, 3, 2, 8, 8)
        found = [
            self.flat(x.flatten(1)[:, :40]),
            self.tokens(sequence[:, :, :40]),
            self.transposed(sequence[:, :, 20:60]),
            self.conv1d(sequence),
            *(conv(x) for conv in (self.conv2d, self.strided, self.same, self.valid)),
            self.conv3d(volume),
            self.up1d(sequence),
            self.up2d(x),
            self.up3d(volume),
            self.embedding(ids),
        ]
        return torch.cat([y.flatten(1) for y in found], dim=1)


@dataclass(frozen=True, eq=False)
class Bench:
    """The zoo with everything that its layers' graphs need."""

    network: Network
    template: GraphTemplate
    quantizer: Quantizer

    def graph(self, name: str, precision: Precision) -> Any:
        """One layer alone."""
        alone = Subgraph.alone(self.template, name)
        return fill(self.template, {name: precision}, self.quantizer, alone.graph)

    def example(self, name: str) -> Array:
        """Its input."""
        found: Array = self.template.layer_inputs[name][0].numpy()
        return found

    def simulated(self, name: str, precision: Precision) -> Array:
        """What the layer should compute."""
        x = torch.from_numpy(self.example(name))
        with quantized(self.network, {name: precision}, self.quantizer), torch.no_grad():
            found: Array = self.network.layer_module(name)(x).numpy()
        return found


@pytest.fixture(scope="module")
def bench() -> Bench:
    """One export for all layers."""
    torch.manual_seed(0)
    batches = [((torch.randn(4, 6, 8, 8), torch.randint(11, (4, 5))), None) for _ in range(2)]
    data = Calibration(batches)
    network = Network.of(Zoo().eval(), data)
    ranges = ActivationRanges.calibrate(network, data, CHOICES)
    return Bench(network, GraphTemplate.of(network, data, 2), Quantizer(ranges))


def by_onnxruntime(graph: Any, x: Array) -> Array:
    """The runtime that people use."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="runs the graphs; mpq[onnx]")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def by_reference(graph: Any, x: Array) -> Array:
    """ONNX's own evaluator, in numpy."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(graph)
    outputs: Any = evaluator.run(None, {evaluator.input_names[0]: x})
    return np.asarray(outputs[0])


LINEAR = ("flat", "tokens", "transposed")
CONVOLUTIONS = ("conv1d", "conv2d", "strided", "same", "valid", "conv3d")
UP = ("up1d", "up2d", "up3d")


@pytest.mark.parametrize(
    ("name", "run"),
    [
        (name, run)
        for name in (*LINEAR, *CONVOLUTIONS, *UP, "embedding")
        for run in (by_onnxruntime, by_reference)
        # onnx 1.23's evaluator cannot reshape the weight of a transposed convolution with groups.
        if (name, run) != ("up2d", by_reference)
    ],
)
def test_float_layer_is_the_layer(bench: Bench, name: str, run: Runner) -> None:
    """Strides, dilations, groups and every kind of padding come out right."""
    precision = Precision.parse("fp32")

    found = run(bench.graph(name, precision), bench.example(name))

    np.testing.assert_allclose(found, bench.simulated(name, precision), atol=1e-5, rtol=1e-5)


def bias_step(bench: Bench, name: str, precision: Precision) -> float:
    """Half of the largest step that a bias of int32 is rounded to; 0 without a bias."""
    layer_module = bench.network.layer_module(name)
    scale = bench.quantizer.codes(name, layer_module, precision.weight).scale
    calibrated = bench.quantizer.ranges.of(name, precision.activation)
    assert calibrated is not None
    # An unsigned range has 255 steps; a symmetric one has 127 on either side.
    ends = max(-calibrated.low / 128, calibrated.high / 127), calibrated.high - calibrated.low
    step = ends[0] if precision.activation.symmetric else ends[1] / 255
    return 0.0 if layer_module.bias is None else 0.5 * step * float(scale.max())


@pytest.mark.parametrize("spelling", INTEGER)
@pytest.mark.parametrize("name", LINEAR)
def test_integer_linear_layer_is_the_simulation(bench: Bench, name: str, spelling: str) -> None:
    """By definition of the operators, up to the bias's int32 step and float rounding."""
    precision = Precision.parse(spelling)

    found = by_reference(bench.graph(name, precision), bench.example(name))

    allowed = bias_step(bench, name, precision) + 1e-5
    assert np.abs(found - bench.simulated(name, precision)).max() <= allowed


@pytest.mark.parametrize("spelling", [s for s in INTEGER if not s.startswith("w8")])
@pytest.mark.parametrize("name", LINEAR)
def test_onnx_runtime_keeps_integers_of_linear_layers(
    bench: Bench, name: str, spelling: str
) -> None:
    """Weights of 7 bits and fewer cannot saturate, whatever the processor."""
    precision = Precision.parse(spelling)

    found = by_onnxruntime(bench.graph(name, precision), bench.example(name))

    allowed = bias_step(bench, name, precision) + 1e-5
    assert np.abs(found - bench.simulated(name, precision)).max() <= allowed


def output_step(bench: Bench, name: str) -> float:
    """The step of an output's 255, from the smallest to the largest that was seen, 0 included."""
    low, high = bench.template.output_ranges[name]
    return (max(high, 0.0) - min(low, 0.0)) / 255


@pytest.mark.parametrize("run", [by_onnxruntime, by_reference])
@pytest.mark.parametrize("spelling", [s for s in INTEGER if not s.startswith("w8")])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_integer_convolution_is_the_simulation_rounded(
    bench: Bench, name: str, spelling: str, run: Runner
) -> None:
    """Its output is put on 256 numbers of its own: at most one of their steps away."""
    precision = Precision.parse(spelling)
    low, high = bench.template.output_ranges[name]

    found = run(bench.graph(name, precision), bench.example(name))

    step = output_step(bench, name)
    expected = bench.simulated(name, precision).clip(min(low, 0.0), max(high, 0.0))
    assert np.abs(found - expected).max() <= step + bias_step(bench, name, precision)
    codes = (found - found.min()) / step
    np.testing.assert_allclose(codes, codes.round(), atol=1e-3)


@pytest.mark.parametrize("name", ["conv2d", "strided"])
def test_integer_convolution_of_8_bits_in_the_reference(bench: Bench, name: str) -> None:
    """Full 8 bits, where nothing can saturate."""
    precision = Precision.parse("w8a8")
    low, high = bench.template.output_ranges[name]

    found = by_reference(bench.graph(name, precision), bench.example(name))

    expected = bench.simulated(name, precision).clip(min(low, 0.0), max(high, 0.0))
    allowed = output_step(bench, name) + bias_step(bench, name, precision)
    assert np.abs(found - expected).max() <= allowed


@pytest.mark.parametrize("spelling", PACKED)
@pytest.mark.parametrize("name", LINEAR)
def test_packed_weights_are_the_simulation(bench: Bench, name: str, spelling: str) -> None:
    """Also in groups that do not divide the 40 inputs, or are longer than them."""
    precision = Precision.parse(spelling)

    found = by_onnxruntime(bench.graph(name, precision), bench.example(name))

    np.testing.assert_allclose(found, bench.simulated(name, precision), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("spelling", PACKED)
def test_packed_weights_unpack_to_the_simulated_ones(bench: Bench, spelling: str) -> None:
    """Bit for bit by the operator's documentation: code less the middle, times the scale."""
    from onnx import numpy_helper

    precision = Precision.parse(spelling)
    graph = bench.graph("tokens", precision).graph
    (node,) = (node for node in graph.node if node.op_type == "MatMulNBits")
    constants = {c.name: numpy_helper.to_array(c) for c in graph.initializer}
    bits, size = precision.weight.number.bits, precision.weight.group_size
    assert size is not None

    packed, scales = constants[node.input[1]], constants[node.input[2]]  # [O, blocks, bytes]
    places = [(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    codes = np.stack(places, axis=-1).reshape(12, -1, size).astype(np.float64)
    weight = (codes - 2 ** (bits - 1)) * scales.reshape(12, -1, 1)

    layer_module = bench.network.layer_module("tokens")
    expected = bench.quantizer.weight("tokens", layer_module, precision.weight).numpy()
    np.testing.assert_allclose(weight.reshape(12, -1)[:, :40], expected, rtol=1e-6)


@pytest.mark.parametrize("spelling", DYNAMIC)
@pytest.mark.parametrize("name", LINEAR)
def test_inputs_that_are_rounded_while_running(bench: Bench, name: str, spelling: str) -> None:
    """Rounding by group or by token is half a step of 127 of the largest input, per product."""
    precision = Precision.parse(spelling)
    layer_module = bench.network.layer_module(name)
    x = torch.from_numpy(bench.example(name))

    found = by_onnxruntime(bench.graph(name, precision), x.numpy())

    weight = bench.quantizer.weight(name, layer_module, precision.weight)
    rows = weight.t() if name == "transposed" else weight  # [O, K]
    step = float(x.abs().max()) / 127
    allowed = step * float(rows.abs().sum(dim=1).max())  # half for each of the two roundings
    assert np.abs(found - bench.simulated(name, precision)).max() <= allowed


@pytest.mark.parametrize("run", [by_onnxruntime, by_reference])
@pytest.mark.parametrize("spelling", ["w8a8", "w4a8", "w7ta8", "w2"])
def test_embedding_in_integers_is_the_simulation(bench: Bench, spelling: str, run: Runner) -> None:
    """Rows of integers times their scales."""
    precision = Precision.parse(spelling)

    found = run(bench.graph("embedding", precision), bench.example("embedding"))

    np.testing.assert_allclose(found, bench.simulated("embedding", precision), rtol=1e-6)


@pytest.mark.parametrize("spelling", ["w8a8", "w4a8", "w2"])
def test_integers_are_stored_in_one_byte(bench: Bench, spelling: str) -> None:
    """No float copy of the weight is left in the graph."""
    graph = bench.graph("embedding", Precision.parse(spelling)).graph

    sizes = {tuple(c.dims): c.data_type for c in graph.initializer}

    assert sizes == {(11, 10): 3, (11, 1): 1}  # int8 rows, float scales


@pytest.mark.parametrize(
    ("kind", "spelling", "kernel"),
    [
        ("linear", "fp32", Kernel.FLOAT),
        ("conv_transpose2d", "fp32", Kernel.FLOAT),
        ("linear", "w3a8", Kernel.QDQ),
        ("conv3d", "w8ta8s", Kernel.QDQ),
        ("linear", "w2g16a8d", Kernel.NBITS),
        ("embedding", "w4", Kernel.LOOKUP),
        ("conv_transpose2d", "w8a8", None),
        ("conv2d", "w4g32a8d", None),
        ("embedding", "w4g32", None),
        ("linear", "w3g32", None),
        ("linear", "w4g24", None),
        ("linear", "w4g8", None),
        ("linear", "w4g32a8", None),
        ("linear", "w8za8", None),
        ("linear", "w8a8d", None),
        ("linear", "w8a4", None),
        ("linear", "w8", None),
        ("linear", "fp8", None),
        ("linear", "bf16", None),
    ],
)
def test_kernel_of_a_precision(kind: str, spelling: str, kernel: Kernel | None) -> None:
    """What runs, and what does not."""
    precision = Precision.parse(spelling)

    found = kernel_of(kind, precision)

    assert found is kernel
    assert rounds_output(kind, precision) is (kind.startswith("conv") and kernel is Kernel.QDQ)


@pytest.mark.parametrize(
    ("name", "kind", "spelling"),
    [("valid", "conv2d", "w4g32a8d"), ("flat", "linear", "w8a8d"), ("up1d", "conv_", "w8a8")],
)
def test_precision_without_a_kernel_is_refused(
    bench: Bench, name: str, kind: str, spelling: str
) -> None:
    """By the layer's name and kind."""
    with pytest.raises(PrecisionError, match=f"layer '{name}': ONNX has no kernel for a {kind}"):
        bench.graph(name, Precision.parse(spelling))


def test_precision_that_was_not_calibrated_is_refused(bench: Bench) -> None:
    """A range is not made up."""
    with pytest.raises(ModelError, match="'flat' has no calibrated activation range"):
        Bench(bench.network, bench.template, Quantizer(ActivationRanges({}))).graph(
            "flat", Precision.parse("w8a8")
        )


def test_a_graph_that_fails_on_the_way_is_told_in_a_sentence(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Its sizes are asked when it runs; the runtime's own print stays out of the terminal."""
    from onnx import TensorProto, helper

    shape = helper.make_node("Reshape", ["x", "shape"], ["y"])
    sizes = helper.make_tensor("shape", TensorProto.INT64, [1], [7])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    graph = helper.make_graph([shape], "seven", ends[:1], ends[1:], [sizes])
    opset = [helper.make_opsetid("", 20)]
    session = open_session(helper.make_model(graph, opset_imports=opset, ir_version=10))
    assert outputs_of(session, {"x": np.zeros(7, np.float32)})[0].shape == (7,)

    with pytest.raises(ModelError, match="ONNX Runtime cannot run the graph: .*Reshape"):
        outputs_of(session, {"x": np.zeros(6, np.float32)})

    assert capfd.readouterr() == ("", "")
