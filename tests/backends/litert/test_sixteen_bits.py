"""Static layers of 16 bits (int16x8): what the interpreter makes of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mpq.backends.export_check import ExportCheck
from mpq.backends.litert.flatbuffer import read_model
from mpq.backends.litert.target import FILE, WITHOUT_XNNPACK, LiteRt
from mpq.backends.shipping import ship
from mpq.errors import PrecisionError
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.precision import Precision
from tests.backends.onnx.networks import Images, Words, examples, in_turn, made


def shipped_check(
    kind: type[nn.Module], mix: tuple[str, ...], folder: Path, data: list[Tensor] | None = None
) -> ExportCheck:
    """A network in a mix of precisions, exported."""
    pytest.importorskip("litert_torch")
    model = made(kind)
    found = in_turn(model, LiteRt(), mix)
    return ship(LiteRt(), "litert", found, folder, model, data or examples(model))


class Odd(nn.Module):
    """Strides, dilation, one dimension, a pool, ReLU6, two readers, layers without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 7, 3, padding=1, stride=2)
        self.wide = nn.Conv2d(7, 7, 3, padding=2, dilation=2, bias=False)
        self.line = nn.Conv1d(7, 6, 3, padding=1)
        self.first, self.second = nn.Linear(24, 33), nn.Linear(33, 5, bias=False)
        self.beside = nn.Linear(33, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = nn.functional.max_pool2d(nn.functional.relu6(self.stem(x)), 2)
        x = self.line(self.wide(x).relu().flatten(2)).flatten(1)
        x = self.first(x).relu()
        found: Tensor = self.second(x) + self.beside(x)
        return found


@pytest.mark.parametrize("kind", [Images, Odd])
@pytest.mark.parametrize(
    "mix", [("w8aint16s",), ("w4aint16s", "w8taint16s"), ("w8aint16s", "w8a8", "w4a8s", "fp32")]
)
def test_litert_computes_layers_of_16_bits_bit_for_bit(
    kind: type[nn.Module], mix: tuple[str, ...], tmp_path: Path
) -> None:
    """Convolutions and linear layers, whose kernels round otherwise, beside layers of 8 bits."""
    check = shipped_check(kind, mix, tmp_path / "out")

    assert check.num_layers > 0
    assert check.max_weight_difference == 0.0
    assert check.max_difference < 1e-6 * check.spread
    if "w8a8" not in mix:  # XNNPACK has no kernels of 16 bits, so that it is the same without it
        assert check.max_differences_otherwise[WITHOUT_XNNPACK] < 1e-6 * check.spread
    assert check.median_from_search is not None


def test_rounding_outputs_to_16_bits_changes_little(tmp_path: Path) -> None:
    """What a search does not measure: a code of 8 bits, or of 256 times as many."""
    eight, sixteen = (
        shipped_check(Images, (text,), tmp_path / text) for text in ("w8a8s", "w8aint16s")
    )

    assert eight.median_from_search is not None
    assert sixteen.median_from_search is not None
    assert 0 < sixteen.median_from_search < eight.median_from_search / 50


def test_attention_between_layers_of_16_bits(tmp_path: Path) -> None:
    """The median example; floating point between layers falls to either side of a code's tie."""
    check = shipped_check(Words, ("w8aint16s", "w4aint16s"), tmp_path / "out")

    assert check.median_difference < 1e-6 * check.spread
    assert check.max_difference < 1e-3 * check.spread


class Large(nn.Module):
    """Sums beyond 32 bits: thousands of products of the largest codes, and a large bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 8, bias=False)
        self.layer, self.head = nn.Linear(4, 2048), nn.Linear(2048, 5, bias=False)
        for part in (self.conv, self.layer, self.head):
            part.weight.data = 1 + 0.1 * torch.rand(part.weight.shape)
        self.layer.bias.data += 10_000

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.head(self.layer(self.conv(x).flatten(1)).relu())
        return found


def test_sums_beyond_32_bits_are_exact(tmp_path: Path) -> None:
    """Biases have 64 bits, also where a layer has none: without one kernels add up in 32."""
    torch.manual_seed(0)
    data = [1 + 0.01 * torch.rand(6, 3, 8, 8)]

    check = shipped_check(Large, ("w8aint16s",), tmp_path / "out", data)

    assert check.kinds == {"INT8": 3}
    assert check.max_difference <= 1e-6 * check.spread
    model = read_model((tmp_path / "out" / FILE).read_bytes())
    from ai_edge_litert import schema_py_generated as schema

    tensors = model.subgraphs[0].tensors
    kinds = {schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.FULLY_CONNECTED}
    layers = [
        x
        for x in model.subgraphs[0].operators
        if model.operatorCodes[x.opcodeIndex].builtinCode in kinds
    ]
    assert len(layers) == 3
    expected = [schema.TensorType.INT16, schema.TensorType.INT8, schema.TensorType.INT64]
    for operator in layers:
        assert [tensors[i].type for i in operator.inputs] == expected
        assert tensors[operator.outputs[0]].type == schema.TensorType.INT16
        # As the format's specification says: a zero point of 0, and a bias in units of sums.
        read, weight, bias = (tensors[i].quantization for i in operator.inputs)
        assert list(read.zeroPoint) == [0]
        assert list(bias.scale) == pytest.approx(read.scale[0] * weight.scale, rel=1e-6)


LINEAR, CONVOLUTION, DEPTHWISE = (
    AssignedLayer("layer", kind, shape, Precision.parse("w8"))
    for kind, shape in (
        ("linear", (8, 64)), ("conv2d", (8, 4, 3, 3)), ("conv2d", (8, 1, 3, 3)),
    )
)  # fmt: skip


@pytest.mark.parametrize(
    ("layer", "precision", "why"),
    [
        (LINEAR, "w8aint16", "inputs of 16 bits are static and symmetric: aint16s"),
        (LINEAR, "w8aint16d", "inputs of 16 bits are static and symmetric: aint16s"),
        (CONVOLUTION, "w8aint16sd", "inputs of 16 bits are static and symmetric: aint16s"),
        (LINEAR, "w2aint16s", "weights have 3 to 8 bits"),
        (CONVOLUTION, "w2aint16s", "weights have 3 to 8 bits"),
        (DEPTHWISE, "w4aint16s", "a depthwise convolution of 4 bits computes garbage"),
        (DEPTHWISE, "w3aint16s", "a depthwise convolution of 4 bits computes garbage"),
        (LINEAR, "wint16aint16s", "symmetric integers of 2 to 8 bits"),
        (LINEAR, "w8zaint16s", "symmetric integers of 2 to 8 bits"),
        (LINEAR, "w4g32aint16s", "scales are of a channel"),
    ],
)
def test_what_its_kernels_of_16_bits_lack_is_refused(
    layer: AssignedLayer, precision: str, why: str
) -> None:
    """With the layer's name and the reason, before anything is written."""
    asked = replace(layer, precision=Precision.parse(precision))

    with pytest.raises(PrecisionError, match=f"'layer' at .*{why}"):
        LiteRt().check([asked])


@pytest.mark.parametrize("layer", [LINEAR, CONVOLUTION, DEPTHWISE])
def test_what_its_kernels_of_16_bits_take_is_held(layer: AssignedLayer) -> None:
    """Everything that ran and agreed."""
    four = () if layer is DEPTHWISE else ("w3aint16s", "w4aint16s", "w4taint16s")
    for spelling in (*four, "w5aint16s", "w7aint16s", "w8aint16s", "w8taint16s"):
        assert LiteRt().refusal(layer, Precision.parse(spelling)) == ""


def test_bytes_count_a_bias_of_64_bits() -> None:
    """Four bytes a channel more than beside inputs of 8 bits."""
    bits = {
        text: LiteRt().stored_bits(LINEAR, Precision.parse(text)) for text in ("w8a8s", "w8aint16s")
    }

    assert bits["w8aint16s"] - bits["w8a8s"] == 8 * 32
