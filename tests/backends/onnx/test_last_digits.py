"""Networks in which the last digits of sums grow: accepted, unlike any number that is wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mpq.backends.export_check import ExportCheck
from mpq.backends.last_digits import MOST, NUM_DRAWS, TIES, LastDigits
from mpq.backends.layerwise import traced
from mpq.backends.onnx import fidelity
from mpq.backends.onnx.loaded import written_layers
from mpq.backends.onnx.qdq import FILE, OnnxQdq
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

pytestmark = pytest.mark.usefixtures("one_trace_per_network")

DEPTH, WIDTH, GAIN = 30, 64, 2.5
TARGETS = ("onnx-qdq", "openvino")


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
        blocks = [nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)]
        self.blocks, self.head = nn.ModuleList(blocks), nn.Linear(WIDTH, 8)
        for block in blocks:
            nn.init.normal_(block.weight, std=GAIN / WIDTH**0.5)
            nn.init.normal_(block.bias, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 8]``."""
        for block in self.blocks:
            x = block(x).tanh()
        found: Tensor = self.head(x)
        return found


def chaotic() -> tuple[Chaotic, Assignment, list[Tensor]]:
    """The network, weights of 4 bits in it, and examples."""
    torch.manual_seed(0)
    model = Chaotic().eval()
    precision = Precision.parse("w4g32")
    modules = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    layers = [AssignedLayer(n, "linear", tuple(m.weight.shape), precision) for n, m in modules]
    return model, Assignment(tuple(layers)), [torch.randn(16, WIDTH)]


@pytest.fixture
def _floats_are_as_chaotic(monkeypatch: pytest.MonkeyPatch) -> None:
    """In floating point the graph is refused before; here its rounded one is asked for."""
    monkeypatch.setattr(fidelity, "SAME", 0.1)


def exported(name: str, folder: Path) -> ExportCheck:
    """The check of the network's export."""
    pytest.importorskip("openvino" if name == "openvino" else "onnxruntime")
    target: Target = OpenVino() if name == "openvino" else OnnxQdq()
    model, assignment, data = chaotic()
    return ship(target, name, assignment, folder, model, data)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.usefixtures("same_process", "_floats_are_as_chaotic")
def test_last_digits_that_grow_are_accepted(name: str, tmp_path: Path) -> None:
    """Over the tolerance, and within what the simulation moves by itself."""
    check = exported(name, tmp_path / "out")

    assert check.max_difference > 1e-4 * check.spread
    assert check.max_difference < check.accepted_difference <= MOST * check.spread


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("layer", ["blocks.0", "blocks.15", "blocks.29", "head"])
@pytest.mark.usefixtures("same_process", "_floats_are_as_chaotic")
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

    with pytest.raises(ModelError, match=f" is '{layer}', by 0.002.*nothing was written"):
        exported(name, tmp_path / "out")

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["a code", "a scale"])
@pytest.mark.usefixtures("same_process", "_floats_are_as_chaotic")
def test_a_weight_that_is_wrong_is_refused(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One code by one step, or one scale by its last bit, of fp16: whatever outputs say."""
    onnx = pytest.importorskip("onnx")
    write = OnnxQdq.write

    def with_another_weight(self: OnnxQdq, shipped: Shipped, folder: Path) -> None:
        write(self, shipped, folder)
        model = onnx.load(folder / FILE)
        makers = {name: node for node in model.graph.node for name in node.output}
        codes, scale = makers[written_layers(model)["blocks.15"]["tensor"]].input
        wrong = codes if what == "a code" else makers[scale].input[0]
        (stored,) = [x for x in model.graph.initializer if x.name == wrong]
        stored.raw_data = bytes([stored.raw_data[0] ^ 1]) + stored.raw_data[1:]
        onnx.save(model, folder / FILE)

    monkeypatch.setattr(OnnxQdq, "write", with_another_weight)

    with pytest.raises(ModelError, match="'blocks.15' at .* is decoded as another one"):
        exported("onnx-qdq", tmp_path / "out")


def test_movement_is_that_of_the_draws() -> None:
    """A layer's outputs move by its draws: the largest of several counts, and there is a limit."""
    model, x = nn.Sequential(nn.Linear(2, 2, bias=False), Scale()), torch.eye(2)
    nn.init.eye_(dict(model.named_parameters())["0.weight"])
    made = LastDigits(model, ["0"], 1e-3, [Batch((x,))], [3 * x], lambda outputs, _: outputs)
    seeds = [torch.Generator().manual_seed(seed) for seed in range(NUM_DRAWS)]
    draws = torch.stack([torch.randn((2, 2), generator=seed) for seed in seeds]).abs()

    found = made.accepted_of_worst(10.0)

    assert found == pytest.approx(3e-3 * float(x.std() * draws.max()), rel=1e-3)
    assert made.accepted_of_worst(0.01) == MOST * 0.01
    with torch.no_grad():
        expected = traced(model, lambda: model(x))
        moved = made.accepted_of_layers(Batch((x,)), expected)
    assert moved["input:0"] == 0.0
    assert moved["output:1"] == pytest.approx(3 * moved["output:0"]) == pytest.approx(found)
    assert not any(part._forward_hooks for part in model)


def test_movement_by_ties_is_the_median_of_norms_and_biases() -> None:
    """Of one draw, twice: a factor's, by which examples are multiplied."""
    model, x = Scale(), torch.tensor([[1.0], [2.0], [4.0]])
    made = LastDigits(model, [], 1e-3, [Batch((x,))], [3 * x], lambda outputs, _: outputs)
    draw = float(torch.randn((1,), generator=torch.Generator().manual_seed(0)).abs())

    assert made.accepted_of_median() == pytest.approx(TIES * 3e-3 * 2 * draw, rel=1e-3)
