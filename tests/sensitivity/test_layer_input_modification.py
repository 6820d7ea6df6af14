"""Layer input modification against cosines written out, on blocks of known effect."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation, LayerInputModification, WeightError
from mpq.sensitivity.layer_input_modification import layer_input_modifications


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def modifications(model: nn.Module, data: list[Any]) -> dict[str, float]:
    """Layer name to its importance."""
    calibration = Calibration(data)
    network = Network.of(model.eval(), calibration)
    found = layer_input_modifications(
        Estimation(network, calibration, Quantizer(ActivationRanges({})), ())
    )
    return dict(zip((layer.name for layer in network.layers), found, strict=True))


class Block(nn.Module):
    """A residual block of two layers, that returns a tuple and takes its input by name."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, states: Tensor, scale: Tensor | None = None) -> tuple[Tensor, None]:
        return states + self.down(self.up(states).relu()), None


class Stack(nn.Module):
    """An embedding, two blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for block in self.blocks:
            x, _ = block(states=x, scale=None)
        out: Tensor = self.head(x)
        return out


def test_layers_have_their_blocks_modification() -> None:
    """One minus the mean cosine over positions, in batches of different sizes."""
    model, ids = Stack().eval(), torch.randint(0, 7, (5, 6))

    found = modifications(model, [ids[:3], ids[3:]])

    x = model.table(ids).detach().double()
    for index in range(2):
        y = model.blocks[index].double()(x)[0].detach()
        a, b = x.numpy().reshape(-1, 4), y.numpy().reshape(-1, 4)
        cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        for layer in ("up", "down"):
            name = f"blocks.{index}.{layer}"
            assert found[name] == pytest.approx(1 - cosines.mean(), rel=1e-5)
        x = y
    assert found["table"] == found["head"] == 1.0


class Scale(nn.Module):
    """Multiplies by a number, in place or not, with a layer of no effect inside."""

    def __init__(self, factor: float, in_place: bool) -> None:
        super().__init__()
        self.fc, self.factor, self.in_place = nn.Linear(4, 2), factor, in_place

    def forward(self, x: Tensor) -> Tensor:
        self.fc(x)
        return x.mul_(self.factor) if self.in_place else x * self.factor


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(("factor", "expected"), [(3.0, 0.0), (-0.5, 2.0), (0.0, 1.0)])
def test_modification_of_a_scaling(factor: float, expected: float, in_place: bool) -> None:
    """Nothing if the direction stays, 2 if it turns around, 1 if nothing is left of it."""
    model = nn.Sequential(nn.Linear(3, 4), Scale(factor, in_place), nn.Linear(4, 3))

    found = modifications(model, [torch.randn(5, 3)])["1.fc"]

    assert found == pytest.approx(expected, abs=1e-12)


def test_pixels_have_their_channels_as_numbers() -> None:
    """A block that swaps the two channels of an image turns (1, 0) by a right angle."""

    class Swap(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            self.conv(x)
            return x.flip(1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.swap, self.head = Swap(), nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.swap(x).mean(dim=(2, 3)))
            return out

    x = torch.zeros(2, 2, 4, 5)
    x[:, 0] = 1.0

    assert modifications(Net(), [x])["swap.conv"] == pytest.approx(1.0)


def test_layer_alone_is_its_own_block() -> None:
    """Where it returns what it takes in shape; a network of one layer has no block."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 3))
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.eye(4))

    found = modifications(model, [torch.randn(5, 4)])

    assert found == pytest.approx({"0": 0.0, "1": 1.0}, abs=1e-6)
    assert modifications(nn.Linear(4, 4), [torch.randn(5, 4)]) == {"": 1.0}


def test_table_is_importance_times_rounding_error() -> None:
    """In the unit ``relative``."""
    model, data = Stack().eval(), Calibration([torch.randint(0, 7, (5, 6))])
    network, quantizer = Network.of(model, data), Quantizer(ActivationRanges({}))
    candidates = tuple(map(Precision.parse, ("w2", "w4a8d")))

    found = (
        LayerInputModification().estimate(Estimation(network, data, quantizer, candidates)).table
    )

    errors = WeightError().estimate(Estimation(network, data, quantizer, candidates)).table.values
    importance = np.array(
        layer_input_modifications(Estimation(network, data, Quantizer(ActivationRanges({})), ()))
    )[:, None]
    np.testing.assert_allclose(found.values, importance * errors)
    assert (found.name, found.unit) == ("layer-input-modification", "relative")
