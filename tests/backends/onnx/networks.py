"""Small networks of images and of words, and precisions in turn: for tests of standard ONNX."""

from typing import Any

import torch
from torch import Tensor, nn

from mpq.backends.target import Target
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import ORIGINAL, Precision


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


def in_turn(model: nn.Module, target: Target, mix: tuple[str, ...]) -> Assignment:
    """One precision after the other; layers that share a parameter have one."""
    data = Calibration(examples(model))
    network, precisions = Network.of(model, data), [Precision.parse(text) for text in mix]
    ranges = ActivationRanges.calibrate(network, data, precisions, "minmax")
    layers: list[AssignedLayer] = []
    known: dict[str, Precision] = {}
    for layer in network.layers:
        wanted = known.get(layer.weight_of or "", precisions[len(layers) % len(precisions)])
        held = wanted == ORIGINAL or not target.refusal(layer, wanted)
        known[layer.name] = precision = wanted if held else ORIGINAL
        reads_ids = layer.kind == "embedding"
        ends = None if reads_ids else ranges.of(layer.name, precision.activation)
        layers.append(AssignedLayer(layer.name, layer.kind, layer.weight_shape, precision, ends))
    return Assignment(tuple(layers), weight_range="minmax", folded=network.folded)
