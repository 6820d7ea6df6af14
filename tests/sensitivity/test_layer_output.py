"""Layer output errors against second moments of inputs and counts of ids."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation
from mpq.sensitivity.layer_output import LayerOutput

WEIGHT = Precision.parse("w3")
INPUT = Precision.parse("w32a4d")
BOTH = Precision.parse("w3a4d")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Tool:
    """A network, its data, its quantizer."""

    def __init__(self, model: nn.Module, data: Sequence[Any], *candidates: Precision) -> None:
        self.data = Calibration(data)
        self.network = Network.of(model.eval(), self.data)
        self.candidates = candidates
        self.quantizer = Quantizer(ActivationRanges.calibrate(self.network, self.data, candidates))

    def losses(self, relative: bool = True) -> dict[str, list[float]]:
        """Layer name to its losses."""
        found = LayerOutput(relative).estimate(
            Estimation(self.network, self.data, self.quantizer, self.candidates)
        )
        assert found.table.name == "layer-output"
        assert found.table.unit == ("relative" if relative else "squared_output")
        return dict(zip(found.table.layers, found.table.values.tolist(), strict=True))

    def weight_error(self, name: str) -> Tensor:
        """Of ``WEIGHT``."""
        weight = self.network.weight(name)
        rounded = self.quantizer.weight(name, self.network.layer_module(name), WEIGHT.weight)
        return (rounded - weight).double()


class Chain(nn.Module):
    """Positions of numbers through two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.first(x).relu())
        return out


def test_weight_error_is_the_trace_with_the_second_moment() -> None:
    """``tr(dW X^T X dW^T)`` over examples and positions, divided by the output's squared norm."""
    model, x = Chain(), torch.randn(7, 3, 4)
    tool = Tool(model, [x[:5], x[5:]], WEIGHT)
    read = {"first": x, "head": model.first(x).relu().detach()}

    found = tool.losses()

    for name, inputs in read.items():
        rows = inputs.reshape(-1, inputs.shape[-1]).double()
        change = tool.weight_error(name)
        trace = float((change @ (rows.T @ rows) @ change.T).trace())
        power = float(model.get_submodule(name)(inputs).detach().double().square().sum())
        assert found[name] == pytest.approx([trace / power], rel=1e-4)


class Grouped(nn.Module):
    """A grouped, strided, dilated convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, stride=2, dilation=2, padding=2, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x).mean(dim=(2, 3))
        return out


def test_convolution_has_a_second_moment_per_group() -> None:
    """Of the columns that ``unfold`` gives."""
    model, x = Grouped(), torch.randn(5, 4, 7, 7)
    tool = Tool(model, [x], WEIGHT)

    found = tool.losses()["conv"]

    columns = F.unfold(x.double(), 3, dilation=2, padding=2, stride=2).reshape(5, 2, 18, -1)
    moments = torch.einsum("ngkp,nglp->gkl", columns, columns)
    change = tool.weight_error("conv").reshape(2, 3, 18)  # 3 output channels a group
    trace = float(torch.einsum("gok,gkl,gol->", change, moments, change))
    power = float(model.conv(x).detach().double().square().sum())
    assert found == pytest.approx([trace / power], rel=1e-4)


def test_embedding_has_counts_of_ids_as_second_moment() -> None:
    """A row's error counts as often as the row is read."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 3)

        def forward(self, ids: Tensor) -> Tensor:
            out: Tensor = self.head(self.table(ids))
            return out

    model, ids = Words(), torch.randint(0, 5, (6, 3))
    tool = Tool(model, [ids[:4], ids[4:]], WEIGHT, INPUT)

    found = tool.losses()["table"]

    counts = torch.bincount(ids.flatten(), minlength=7).double()
    rows = tool.weight_error("table").square().sum(dim=1)
    power = model.table.weight.detach().double().square().sum(dim=1)
    assert found == pytest.approx([float(counts @ rows / (counts @ power)), 0.0], rel=1e-4)


def test_input_error_is_that_of_the_rounded_input() -> None:
    """``|W dx|^2``; with a rounded weight as well, the error of both together."""
    model, x = nn.Linear(4, 3), torch.randn(6, 4)
    tool = Tool(model, [x], INPUT, BOTH)

    found = tool.losses()[""]

    rounded = tool.quantizer.activation("", model, x, INPUT.activation)
    weight = tool.quantizer.weight("", model, WEIGHT.weight)
    power = float(model(x).detach().square().sum())
    alone = float(
        (F.linear(rounded, model.weight) - F.linear(x, model.weight)).detach().square().sum()
    )
    both = float((F.linear(rounded, weight) - F.linear(x, model.weight)).detach().square().sum())
    assert found == pytest.approx([alone / power, both / power], rel=1e-4)


def test_scale_of_a_layer_does_not_matter() -> None:
    """Ten times the weights, the same relative error."""
    x, model, larger = torch.randn(6, 4), nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        larger.weight.copy_(8 * model.weight)

    found, scaled = (Tool(m, [x], WEIGHT).losses()[""] for m in (model, larger))

    assert found == pytest.approx(scaled, rel=1e-4)


def test_zero_output_costs_nothing() -> None:
    """Every format holds zeros."""
    model = nn.Linear(4, 3, bias=False)
    nn.init.zeros_(model.weight)

    found = Tool(model, [torch.randn(2, 4)], BOTH).losses()[""]

    assert found == [0.0]


def test_absolute_error_is_per_example() -> None:
    """Without the division, the mean over examples, whatever the batches."""
    model, x = nn.Linear(4, 3), torch.randn(6, 4)
    tool = Tool(model, [x[:2], x[2:]], WEIGHT)

    found = tool.losses(relative=False)[""]

    expected = float((x.double() @ tool.weight_error("").T).square().sum()) / 6
    assert found == pytest.approx([expected], rel=1e-4)
