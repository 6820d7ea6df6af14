"""Layers with a forward of their own as standard ONNX: what torch computes, on decoded codes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.backends.onnx.qdq import FILE, OnnxQdq
from mpq.backends.openvino import OpenVino
from mpq.backends.shipping import ship
from mpq.backends.target import Target
from tests.backends.onnx.networks import Words, examples, in_turn, made

pytest.importorskip("onnx", reason="graphs are written with mpq[onnx]")
pytest.importorskip("onnxscript", reason="torch exports with mpq[onnx]")
pytest.importorskip("onnxruntime", reason="runs the graphs; mpq[onnx]")


class Padding(nn.Conv2d):
    """Pads more on one side first, as TensorFlow does."""

    def forward(self, x: Tensor) -> Tensor:
        """See above."""
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Standardized(nn.Conv2d):
    """Computes with a weight of mean 0 and deviation 1."""

    def forward(self, x: Tensor) -> Tensor:
        """See above."""
        spread, mean = torch.std_mean(self.weight, (1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / spread, self.bias, padding=1)


class Scaled(nn.Linear):
    """Computes with a fifth of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        """See above."""
        return F.linear(x, self.weight * 0.2, self.bias)


class ScaledTable(nn.Embedding):
    """Gives four times its rows."""

    def forward(self, ids: Tensor) -> Tensor:
        """See above."""
        return super().forward(ids) * 4


class Pictures(nn.Module):
    """All layers but the last have a forward of their own; a BatchNorm is folded into one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = Padding(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8)
        self.body, self.hidden = Standardized(8, 12, 3), Scaled(12, 33)
        self.hidden.register_forward_pre_hook(lambda _, args: (args[0] * 2,))
        self.head = nn.Linear(33, 7)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.body(self.norm(self.stem(x)).relu()).relu()
        found: Tensor = self.head(self.hidden(x.mean((2, 3))).relu())
        return found


class Sentences(Words):
    """The first and the last layer have a forward of their own, and share their weight."""

    def __init__(self) -> None:
        super().__init__()
        table = ScaledTable(22, 32)
        self.embedding, self.head = table, Scaled(32, 22, bias=False)
        self.head.weight = table.weight


class Enlarging(nn.Module):
    """Says in a call how large a transposed convolution's output is, and lays it out flat."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, 2, 1)
        self.up = nn.ConvTranspose2d(8, 4, 3, 2, 1)
        self.head = nn.Linear(256, 7)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        y = self.up(self.down(x).relu(), output_size=x.shape[-2:])
        found: Tensor = self.head(y.flatten(1))
        return found


CASES = [
    (OnnxQdq(), Pictures, ("w4za8s", "w8a8", "fp8", "w8g9")),
    (OnnxQdq(), Sentences, ("w4a8",)),
    (OnnxQdq(), Enlarging, ("w4za8s", "w8a8")),
    (OpenVino(), Pictures, ("w2z", "w4a16", "fp32", "w3")),
    (OpenVino(), Enlarging, ("w4", "w8a16")),
]
NAMES = ("pictures", "words", "sizes", "openvino", "sizes in openvino")


@pytest.mark.parametrize(("target", "kind", "mix"), CASES, ids=NAMES)
@pytest.mark.usefixtures("same_process")
def test_the_runtime_computes_the_simulation(
    target: Target, kind: type[nn.Module], mix: tuple[str, ...], tmp_path: Path
) -> None:
    """With the layers' own arithmetic between the codes and the product."""
    if target.name == "openvino":
        pytest.importorskip("openvino", reason="runs the graph; mpq[openvino]")
    model = made(kind)
    assignment = in_turn(model, target, mix)

    check = ship(target, target.name, assignment, tmp_path / "out", model, examples(model))

    assert check.max_weight_difference == 0.0
    assert check.median_difference < 1e-5 * check.spread


@pytest.mark.usefixtures("same_process")
def test_no_floats_lie_beside_the_codes(tmp_path: Path) -> None:
    """Every constant of the file is read by a node."""
    onnx = pytest.importorskip("onnx")
    model = made(Pictures)
    assignment = in_turn(model, OnnxQdq(), ("w4",))

    ship(OnnxQdq(), "onnx-qdq", assignment, tmp_path / "out", model, examples(model))

    graph = onnx.load(tmp_path / "out" / FILE).graph
    assert {x.name for x in graph.initializer} <= {x for node in graph.node for x in node.input}
