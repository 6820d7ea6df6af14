"""Ranges of inputs from the loss: what they look at, and that they are used where they help."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import mpq
from mpq.cli.console import print_result
from mpq.errors import GradientError
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.loss_range import LossWeighted
from mpq.quantization.precision import Precision
from mpq.sensitivity.passes.weighted_inputs import WeightedInputs
from mpq.workflows.calibrated_ranges import calibrated_ranges

X = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
X[:, 0] *= 30
W4A4 = Precision.parse("w4a4")


def ignoring_net() -> nn.Module:
    """Its first input is large and does nothing."""
    torch.manual_seed(0)
    first = nn.Linear(8, 16)
    with torch.no_grad():
        first.weight[:, 0] = 0
    return nn.Sequential(first, nn.ReLU(), nn.Linear(16, 4)).eval()


def task(method: str, x: torch.Tensor = X, **given: Any) -> mpq.Task:
    """A search of w8a4 alone."""
    given = {"candidates": ["w8a4"], "rounding": "nearest", **given}
    ranges = mpq.Ranges(activation=method)
    return mpq.Task(ignoring_net(), [x[:192]], [x[192:]], ranges=ranges, **given)


def test_numbers_without_a_say_have_no_say_in_the_range() -> None:
    """What meets weights of 0 alone may saturate; all that is left is large in the network."""
    plain, guided = (mpq.search(task(m), {"weight_bytes": 10_000}) for m in ("mse", "loss"))

    ends = [r.assignment.layers[0].activation_range for r in (plain, guided)]
    losses = [r.assignment.metadata.measured_loss for r in (plain, guided)]
    assert ends[0] is not None
    assert ends[1] is not None
    assert ends[1].high < ends[0].high / 3
    assert losses[0] is not None
    assert losses[1] is not None
    assert losses[1] < 0.7 * losses[0]
    assert not guided.provenance.ranges_unhelped


def test_ranges_that_help_by_chance_are_those_of_mse() -> None:
    """With a single example nothing can be tried; the result says so, saved and loaded too."""
    data = Calibration.of([X[:1]])
    network = Network.of(ignoring_net(), data)

    found = calibrated_ranges(network, data, [W4A4], "loss", 0)
    forced = calibrated_ranges(network, data, [W4A4], "loss:trial=false", 0)
    plain = calibrated_ranges(network, data, [W4A4], "mse", 0)

    assert found.ranges == plain.ranges
    assert forced.ranges != plain.ranges
    assert "single calibration example" in found.unhelped["a4"]
    assert not forced.unhelped


def test_what_was_tried_is_told(tmp_path: Path) -> None:
    """In the terminal and in result.json."""
    result = mpq.search(task("loss"), {"weight_bytes": 10_000})
    told = replace(result.provenance, ranges_unhelped={"a4": "why"})
    console = Console(record=True, width=500, file=io.StringIO())

    replace(result, provenance=told).save(tmp_path)
    print_result(replace(result, provenance=told), console)

    assert mpq.load(tmp_path).provenance.ranges_unhelped == {"a4": "why"}
    assert "ranges by mse instead of loss: a4 (why)" in console.export_text()


def test_squared_gradients_are_those_of_the_probe() -> None:
    """Of a single linear layer they are the probe's image; all layers are read, once a batch."""
    network = Network.of(ignoring_net(), Calibration.of([X]))

    samples = WeightedInputs(0)(network, Calibration.of([X[:128], X[128:]]), LossWeighted())

    sample = samples["0"]
    assert sample.weights is not None
    assert torch.equal(sample.numbers, X.flatten())
    by_channel = sample.weights.view(-1, 8).sum(dim=0)
    assert float(by_channel[0]) == 0
    assert bool((by_channel[1:] > 0).all())
    assert sample.weights.shape == sample.numbers.shape


class Rounding(nn.Module):
    """A layer that no gradient reaches, since what follows is a staircase."""

    def __init__(self) -> None:
        super().__init__()
        self.dead, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.dead(x).round())
        return out


def test_layers_without_gradients_count_all_numbers_alike() -> None:
    """As ``mse`` does, to the bit."""
    data = Calibration.of([X])
    network = Network.of(Rounding().eval(), data)

    found, plain = (
        calibrated_ranges(network, data, [W4A4], m, 0).ranges for m in ("loss:trial=false", "mse")
    )

    assert found.of("dead", W4A4.activation) == plain.of("dead", W4A4.activation)


class Detached(nn.Module):
    """A network that no gradient reaches at all."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            out: torch.Tensor = self.fc(x)
        return out


def test_a_network_without_gradients_is_refused() -> None:
    data = Calibration.of([X])
    network = Network.of(Detached().eval(), data)

    with pytest.raises(GradientError):
        calibrated_ranges(network, data, [W4A4], "loss", 0)
