"""Weights whose channels differ in bits, written for tools that have one width for a weight."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq import BACKENDS
from mpq.backends.divided import DIVIDE, WIDEN, SideBySide, of_whole_weights
from mpq.backends.text import Text
from mpq.errors import InputError, PrecisionError
from mpq.network.examples import Calibration
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.precision import Precision

TOOLS = [
    part.name
    for part in BACKENDS
    if part.writes_files and not issubclass(part, Text) and part.name != "c"
]
"""All but what needs no weights, and what holds channels of different bits."""


class Net(nn.Module):
    """Layers that can be divided, and some that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.conv = nn.Conv1d(8, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm1d(6)
        self.grouped = nn.Conv1d(6, 6, 1, groups=2)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, 9)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(self.embed(x).mT)).mT
        x = x + self.attention(x, x, x, need_weights=False)[0]
        found: Tensor = self.head(torch.relu(self.grouped(x.mT)).mT)
        return found


MIXED = {
    "embed": "w[2,4]:010101010a32",
    "conv": "w[2,3,8]:201102a8d",
    "grouped": "w[2,4]:6/2x010a32",
    "attention.q_proj": "w[3,4]g2:011010a32",
    "head": "w[2,8]z:110010110a32",
}


def network() -> nn.Module:
    torch.manual_seed(0)
    net = Net().eval()
    net.norm.running_mean.normal_()  # type: ignore[union-attr]
    return net


def assigned(net: nn.Module) -> Assignment:
    """Every layer of the search's, with channels of their own where ``MIXED`` says so."""
    data = [torch.randint(9, (4, 10)) for _ in range(2)]
    task = mpq.Task(net, data, candidates=["w8a8d", "w8"], rounding="nearest")
    found = mpq.search(task, ["effective_bits=1x:w8"]).assignment

    def changed(layer: AssignedLayer) -> AssignedLayer:
        text = MIXED.get(layer.name)
        return layer if text is None else replace(layer, precision=Precision.parse(text))

    return replace(found, layers=tuple(map(changed, found.layers)), ties=())


@pytest.mark.parametrize("way", [DIVIDE, WIDEN])
def test_what_is_written_computes_the_same(way: str) -> None:
    """Also where BatchNorm is folded, attention opened, and a layer cannot be divided."""
    net, x = network(), torch.randint(9, (4, 10))
    asked = assigned(net)
    expected = mpq.quantize(net, asked)(x)

    module, whole = of_whole_weights(net, asked, way)

    assert all(layer.precision.weight.channels is None for layer in whole.layers)
    torch.testing.assert_close(mpq.quantize(module, whole)(x), expected, rtol=1e-5, atol=1e-5)
    names = [layer.name for layer in whole.layers]
    assert ("conv.parts.2" in names) == (way == DIVIDE)
    assert {"embed", "grouped"} <= {*names}
    by_name = {layer.name: str(layer.precision) for layer in whole.layers}
    assert by_name["embed"] == "w4a32"
    if way == DIVIDE:
        assert by_name["head.parts.1"] == "w8za32"
        shapes = {layer.name: layer.weight_shape for layer in whole.layers}
        assert shapes["conv.parts.0"] == (2, 8, 3)


def test_what_has_whole_weights_stays() -> None:
    """Network and assignment come back themselves."""
    net = network()
    asked = replace(assigned(net), layers=())

    assert of_whole_weights(net, asked, DIVIDE) == (net, asked)
    with pytest.raises(InputError, match="divide: .*widen: "):
        of_whole_weights(net, asked, "glue")


@pytest.mark.parametrize(
    ("split", "way", "rounding"),
    [
        ("channels", DIVIDE, "coordinate-descent"),
        ("channels", WIDEN, "coordinate-descent"),
        ("columns:20", DIVIDE, "nearest"),
    ],
)
def test_a_runtime_runs_it(split: str, way: str, rounding: str, tmp_path: Path) -> None:
    """ONNX Runtime, whose outputs are compared with the simulation's, with negative scales, too."""
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 16), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Linear(16, 4)).eval()
    data = [torch.randn(16, 2, 6, 6)]
    task = mpq.Task(net, data * 2, candidates=["w2", "w8"], rounding=rounding, split=split)
    asked = mpq.search(task, ["effective_bits=5.5"]).assignment
    assert any(layer.precision.weight.channels for layer in asked.layers)
    stored = () if asked.weights is None else asked.weights.by_layer.values()
    assert any((x.scale < 0).any() for x in stored) == (rounding == "coordinate-descent")

    made = mpq.export(asked, tmp_path / way, "onnx-qdq", net, data, channels=way)

    assert made.deviation is not None
    assert made.deviation < 1e-4


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_refuses_channels_of_different_bits(name: str, tmp_path: Path) -> None:
    """By the layer's name, and with what to do; only the simulation computes with them."""
    net = nn.Sequential(nn.Linear(4, 2)).eval()
    layer = AssignedLayer("0", "linear", (2, 4), Precision.parse("w[2,8]:01a32"))

    with pytest.raises(PrecisionError, match="(?s)'0'.*--channels divide"):
        mpq.export(Assignment((layer,)), tmp_path / "made", name, net, [torch.randn(2, 4)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("w[2,8]g3:i6/3x01a32", "w8g3a32"),
        ("w[2,4,8]zg2:g6/2x010212102001020102012012012a32", "w8zg2a32"),
        ("w[2,8]:i6/2x010a32", "w8g2sfp32a32"),
        ("w[1,8]:i6/2x010a32", "w8g2sfp32a32"),
        ("w[0,1,8]:i6/2x012a32", "w8g2sfp32a32"),
        ("w[0,4]zg2:g6/2x" + "010" * 9 + "a32", "w4zg2a32"),
        ("w[0,1,4]:010120102a32", "w4a32"),
    ],
)
def test_inputs_of_different_bits_are_written_in_the_widest(text: str, expected: str) -> None:
    """With the same numbers; what shared a channel's scale has a scale for each block."""
    net, x = network(), torch.randint(9, (4, 10))
    asked = assigned(net)
    layers = (
        replace(each, precision=Precision.parse(text)) if each.name == "head" else each
        for each in asked.layers
    )
    asked = replace(asked, layers=tuple(layers))
    expected_output = mpq.quantize(net, asked)(x)

    module, whole = of_whole_weights(net, asked, WIDEN)

    by_name = {layer.name: str(layer.precision) for layer in whole.layers}
    assert by_name["head"] == expected
    torch.testing.assert_close(
        mpq.quantize(module, whole)(x), expected_output, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("layer_name", "text", "parts"),
    [
        (
            "conv",
            "w[2,4,8]:i24/3x01221001a32",
            {"conv.parts.0": (6, 3, 3), "conv.parts.2": (6, 2, 3)},
        ),
        ("conv", "w[2,8]zg3:i24/6x0110a32", {"conv.parts.0": (6, 4, 3)}),
        ("head", "w[2,8]g2:i6/4x01a32", {"head.parts.0": (9, 4), "head.parts.1": (9, 2)}),
        ("head", "w[1,8]g2:i6/4x01a32", {"head.parts.0": (9, 4), "head.parts.1": (9, 2)}),
        ("head", "w[1,8]:101010010a32", {"head.parts.0": (5, 6), "head.parts.1": (4, 6)}),
        ("conv", "w[0,4]:i24/3x01100010a32", {"conv.parts.0": (6, 3, 3)}),
        ("head", "w[0,1,8]g2:i6/2x012a32", {"head.parts.0": (9, 2), "head.parts.1": (9, 2)}),
        ("head", "w[0,2,8]z:110120110a32", {"head.parts.0": (8, 6), "head.parts.1": (1, 6)}),
        ("head", "w[0,8]:101010010a32", {"head": (9, 6)}),
    ],
)
def test_inputs_of_different_bits_are_added_up(
    layer_name: str, text: str, parts: dict[str, tuple[int, ...]]
) -> None:
    """Each width as a layer of its own inputs; the bias is in one of them."""
    net, x = network(), torch.randint(9, (4, 10))
    asked = assigned(net)
    layers = (
        replace(each, precision=Precision.parse(text)) if each.name == layer_name else each
        for each in asked.layers
    )
    asked = replace(asked, layers=tuple(layers))
    expected = mpq.quantize(net, asked)(x)

    module, whole = of_whole_weights(net, asked, DIVIDE)

    shapes = {layer.name: layer.weight_shape for layer in whole.layers}
    assert parts.items() <= shapes.items()
    assert all(layer.precision.weight.channels is None for layer in whole.layers)
    torch.testing.assert_close(mpq.quantize(module, whole)(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", ["w[2,8]:i6/2x010a8d", "w[2,8]g2:g6/2x" + "010" * 9 + "a32"])
def test_what_is_not_rounded_alike_apart_is_not_divided(text: str) -> None:
    """Scales of tokens, which are of all inputs; groups, which differ row by row."""
    net = network()
    asked = assigned(net)
    layers = (
        replace(each, precision=Precision.parse(text)) if each.name == "head" else each
        for each in asked.layers
    )

    _, whole = of_whole_weights(net, replace(asked, layers=tuple(layers)), DIVIDE)

    assert "head" in {layer.name for layer in whole.layers}


@pytest.mark.parametrize("name", [*TOOLS, "c"])
def test_every_tool_refuses_inputs_of_different_bits(name: str, tmp_path: Path) -> None:
    """By the layer's name, also what holds channels of different bits."""
    net = nn.Sequential(nn.Linear(4, 2)).eval()
    layer = AssignedLayer("0", "linear", (2, 4), Precision.parse("w[2,8]:i4/2x01a32"))

    with pytest.raises(PrecisionError, match="(?s)'0'.*inputs differ in bits.*--channels widen"):
        mpq.export(Assignment((layer,)), tmp_path / "made", name, net, [torch.randn(2, 4)])


def chain(is_conv: bool) -> tuple[nn.Module, Assignment, list[Tensor]]:
    """Layers one after the other whose channels differ in bits; the last one is left as it came."""
    torch.manual_seed(0)
    make = (lambda a, b: nn.Conv2d(a, b, 3, padding=1)) if is_conv else nn.Linear
    layers = [make(5, 8), nn.ReLU(), make(8, 6), nn.GELU(), make(6, 7), nn.Tanh(), make(7, 4)]
    net = nn.Sequential(*layers).eval()
    data = [torch.randn(4, 5, 6, 6) if is_conv else torch.randn(4, 9, 5) for _ in range(2)]
    rules = mpq.Rules(exclude=["6"])
    task = mpq.Task(net, data, candidates=["w8a8"], rounding="nearest", rules=rules)
    found = mpq.search(task, ["effective_bits=1x:w8a8"]).assignment
    texts = {"0": "w[2,3,8]:20110210a8", "2": "w[1,8]:100101a8", "4": "w[2,4]:0110010a8"}
    changed = (
        replace(x, precision=replace(x.precision, weight=Precision.parse(texts[x.name]).weight))
        for x in found.layers
    )
    return net, replace(found, layers=tuple(changed)), data


@pytest.mark.parametrize("is_conv", [False, True])
def test_channels_are_read_by_width_where_they_can(is_conv: bool) -> None:
    """No order is stored, as the next weight's columns are in it; also of one that is not rounded.

    The network that is written computes the same, rounded and as it came.
    """
    net, asked, data = chain(is_conv)
    expected = mpq.quantize(net, asked)(data[0])

    module, whole = of_whole_weights(net, asked, DIVIDE, Calibration.of(data).first())

    parts = {name: p for name, p in module.named_modules() if isinstance(p, SideBySide)}
    assert set(parts) == {"0", "2", "4"}
    assert all(part.order is None for part in parts.values())
    torch.testing.assert_close(module(data[0]), net(data[0]), rtol=1e-6, atol=1e-6)
    found = mpq.quantize(module, whole)(data[0])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", ["w8g2a32", "w[2,8]g2:010010a32", "w4+s10%a32", "w4a8c"])
def test_readers_with_scales_of_inputs_keep_the_order(text: str) -> None:
    """Groups, branches and scales of channels stand for inputs by their places."""
    net, asked, data = chain(is_conv=False)
    layers = list(asked.layers)
    layers[1] = replace(layers[1], precision=Precision.parse(text))
    asked = replace(asked, layers=tuple(layers))

    module, _ = of_whole_weights(net, asked, DIVIDE, Calibration.of(data).first())

    first = module.get_submodule("0")
    assert isinstance(first, SideBySide)
    assert first.order is not None
