"""The target ``onnx-qdq``: files of standard operators that ONNX Runtime runs as simulated."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpq.backends.onnx.qdq import FILE, SETTINGS_FILE, OnnxQdq
from mpq.backends.shipping import ExportCheck, ship
from mpq.errors import ModelError, PrecisionError
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import ORIGINAL, Precision

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


class Images(nn.Module):
    """Plain, grouped, depthwise and transposed convolutions, a shortcut, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(12, 12, 3, padding="same", groups=12)
        self.beside = nn.Conv2d(8, 12, 1)
        self.up = nn.ConvTranspose2d(12, 4, 2, 2)
        self.hidden, self.head = nn.Linear(4, 33), nn.Linear(33, 7)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.norm(self.stem(x)).relu()
        x = (self.depthwise(self.grouped(x).relu()) + self.beside(x)).relu()
        found: Tensor = self.head(self.hidden(self.up(x).mean((2, 3))).relu())
        return found


class Words(nn.Module):
    """Ids: an embedding that is the last layer, too, attention, a block."""

    def __init__(self, is_tied: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(22, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.up, self.down = nn.Linear(32, 70), nn.Linear(70, 32)
        self.head = nn.Linear(32, 22, bias=False)
        if is_tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of every position."""
        x = self.embedding(ids)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        found: Tensor = self.head(x + self.down(nn.functional.gelu(self.up(x))))
        return found


def made(kind: Any, *args: Any) -> nn.Module:
    """The same every time."""
    torch.manual_seed(0)
    model: nn.Module = kind(*args).eval()
    return model


def examples(model: nn.Module) -> list[Tensor]:
    """Two batches, the second of a number that is no multiple of the file's."""
    draws = torch.Generator().manual_seed(1)
    if isinstance(model, Words):
        return [torch.randint(22, (n, 6), generator=draws) for n in (8, 5)]
    return [torch.randn(n, 3, 8, 8, generator=draws) for n in (8, 5)]


def in_turn(model: nn.Module, mix: tuple[str, ...]) -> Assignment:
    """One precision after the other; layers that share a parameter have one."""
    data = Calibration(examples(model))
    network, precisions = Network.of(model, data), [Precision.parse(text) for text in mix]
    ranges = ActivationRanges.calibrate(network, data, precisions, "minmax")
    layers: list[AssignedLayer] = []
    known: dict[str, Precision] = {}
    for layer in network.layers:
        wanted = known.get(layer.weight_of or "", precisions[len(layers) % len(precisions)])
        held = wanted == ORIGINAL or not OnnxQdq().refusal(layer, wanted)
        known[layer.name] = precision = wanted if held else ORIGINAL
        reads_ids = layer.kind == "embedding"
        ends = None if reads_ids else ranges.of(layer.name, precision.activation)
        layers.append(AssignedLayer(layer.name, layer.kind, layer.weight_shape, precision, ends))
    return Assignment(tuple(layers), weight_range="minmax", folded=network.folded)


def shipped(
    folder: Path, model: nn.Module, mix: tuple[str, ...], target: OnnxQdq | None = None
) -> ExportCheck:
    """Exported, and run by ONNX Runtime."""
    target = target or OnnxQdq()
    return ship(target, "onnx-qdq", in_turn(model, mix), folder, model, examples(model))


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
    quantized = sum(x.precision != ORIGINAL for x in in_turn(model, mix).layers)
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
