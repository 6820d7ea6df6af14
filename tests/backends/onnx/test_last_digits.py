"""Networks in which the last digits of sums grow: accepted, unlike any number that is wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mpq.backends.export_check import ExportCheck
from mpq.backends.last_digits import MOST, NUM_DRAWS, TIES, LastDigits
from mpq.backends.onnx.qdq import OnnxQdq
from mpq.backends.openvino import OpenVino
from mpq.backends.shipping import ship
from mpq.backends.target import Shipped, Target
from mpq.errors import ModelError
from mpq.network.examples import Batch
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.precision import Precision

pytest.importorskip("onnx", reason="graphs are written with mpq[onnx]")
pytest.importorskip("onnxscript", reason="torch exports with mpq[onnx]")
pytest.importorskip("onnxruntime", reason="runs the graphs; mpq[onnx]")

DEPTH, WIDTH, GAIN = 24, 64, 2.5
TARGETS = ("onnx-qdq", "openvino")


def _rounded_up() -> Tensor:
    """``[WIDTH, WIDTH]``: in 2 bits nearly all numbers are half as large again, and the layers more
    chaotic than in floating point, in which a graph that differs as much is refused."""
    groups = torch.full((WIDTH, WIDTH), 0.27)
    groups[:, ::32] = 1.0
    return groups * torch.randn(WIDTH, WIDTH).sign() / WIDTH**0.5


class Scale(nn.Module):
    """Multiplies by a number."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([3.0]))

    def forward(self, x: Tensor) -> Tensor:
        """See above."""
        return x * self.factor


class Chaotic(nn.Module):
    """Layers each of which moves its outputs further apart than its inputs were."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))
        self.head = nn.Linear(WIDTH, 8)
        for block in self.blocks:
            with torch.no_grad():
                block.weight.copy_(GAIN * _rounded_up())
            nn.init.normal_(block.bias, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 8]``."""
        for block in self.blocks:
            x = block(x).tanh()
        found: Tensor = self.head(x)
        return found


def chaotic() -> tuple[Chaotic, Assignment, list[Tensor]]:
    """The network, weights of 2 bits in it, and examples."""
    torch.manual_seed(0)
    model = Chaotic().eval()
    precision = Precision.parse("w2g32")
    modules = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    layers = [AssignedLayer(n, "linear", tuple(m.weight.shape), precision) for n, m in modules]
    return model, Assignment(tuple(layers), weight_range="minmax"), [torch.randn(16, WIDTH)]


def exported(name: str, folder: Path) -> ExportCheck:
    """The check of the network's export."""
    pytest.importorskip("openvino" if name == "openvino" else "onnxruntime")
    target: Target = OpenVino() if name == "openvino" else OnnxQdq()
    model, assignment, data = chaotic()
    return ship(target, name, assignment, folder, model, data)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.usefixtures("same_process")
def test_last_digits_that_grow_are_accepted(name: str, tmp_path: Path) -> None:
    """Over the tolerance, and within what the simulation moves by itself."""
    check = exported(name, tmp_path / "out")

    assert check.max_difference > 1e-4 * check.spread
    assert check.max_difference < check.accepted_difference <= MOST * check.spread


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("layer", ["blocks.0", "blocks.12", "blocks.23", "head"])
@pytest.mark.usefixtures("same_process")
def test_a_number_that_is_wrong_is_refused(
    name: str, layer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bias by a thousandth of a layer's deviation: of the last layer less than is accepted."""
    kind: Any = OpenVino if name == "openvino" else OnnxQdq
    write = kind.write

    def with_another_bias(self: Any, shipped: Shipped, folder: Path) -> None:
        write(self, shipped, folder)
        bias = dict(shipped.model.named_parameters())[f"{layer}.bias"].detach().numpy()
        other = bias.copy()
        other[0] += np.float32(2e-3)
        (file,) = [x for x in folder.iterdir() if x.suffix in {".onnx", ".bin"}]
        content = file.read_bytes()
        assert content.count(bias.tobytes()) == 1
        file.write_bytes(content.replace(bias.tobytes(), other.tobytes()))

    monkeypatch.setattr(kind, "write", with_another_bias)

    with pytest.raises(ModelError, match=f"'{layer}'.*nothing was written"):
        exported(name, tmp_path / "out")

    assert not list(tmp_path.iterdir())


def test_movement_is_that_of_the_draws() -> None:
    """A product moves by its factor's draw: the largest of several, the median of one, a limit."""
    model, x = Scale(), torch.tensor([[1.0], [2.0], [4.0]])
    last_digits = LastDigits(model, 1e-3, [Batch((x,))], [3 * x], lambda outputs, _: outputs)
    draws = [
        float(torch.randn((1,), generator=torch.Generator().manual_seed(seed)).abs())
        for seed in range(NUM_DRAWS)
    ]

    median, worst = last_digits.accepted_of_median(), last_digits.accepted_of_worst(10.0)

    assert median == pytest.approx(TIMES * 3e-3 * 2 * draws[0], rel=1e-3)
    assert worst == pytest.approx(TIMES * 3e-3 * 4 * max(draws), rel=1e-3)
    assert last_digits.accepted_of_worst(1e-3) == MOST * 1e-3
