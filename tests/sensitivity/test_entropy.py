"""Entropies and divergences of histograms, against numpy and scipy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from mpq.errors import InputError
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import (
    ActivationEntropy,
    Estimation,
    HistogramKL,
    SensitivityEstimator,
    WeightError,
)
from mpq.sensitivity.passes.histogram import Bins, bins_of, divergence, entropy

CHOICES = tuple(map(Precision.parse, ("w3", "w3a4d", "w32a4d", "fp32")))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Tool:
    """A network, its data, its quantizer."""

    def __init__(self, model: nn.Module, data: Sequence[Any]) -> None:
        self.data = Calibration(data)
        self.network = Network.of(model.eval(), self.data)
        self.quantizer = Quantizer(ActivationRanges.calibrate(self.network, self.data, CHOICES))

    def losses(self, estimator: SensitivityEstimator) -> dict[str, list[float]]:
        """Layer name to its losses."""
        found = estimator.estimate(Estimation(self.network, self.data, self.quantizer, CHOICES))
        assert (found.table.name, found.table.unit) == (estimator.name, "relative")
        return dict(zip(found.table.layers, found.table.values.tolist(), strict=True))

    def weights(self, name: str) -> tuple[Tensor, Tensor]:
        """A layer's weight, and as ``w3`` holds it."""
        weight = self.network.weight(name)
        layer_module = self.network.layer_module(name)
        return weight, self.quantizer.weight(name, layer_module, CHOICES[0].weight)

    def inputs(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's input, and as ``a4d`` holds it."""
        layer_module = self.network.layer_module(name)
        return x, self.quantizer.activation(name, layer_module, x, CHOICES[1].activation)


class Net(nn.Module):
    """Ids through an embedding and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc, self.head = nn.Embedding(9, 8), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.fc(self.table(ids)).relu())
        return out

    def read(self, ids: Tensor) -> dict[str, Tensor]:
        """What the layers read."""
        x = self.table(ids).detach()
        return {"fc": x, "head": self.fc(x).relu().detach()}

    def written(self, ids: Tensor) -> dict[str, Tensor]:
        """What the layers write."""
        x = self.read(ids)
        fc, head = self.fc(x["fc"]).detach(), self.head(x["head"]).detach()
        return {"table": x["fc"], "fc": fc, "head": head}


def counts(x: Tensor, num_bins: int, like: Tensor | None = None) -> npt.NDArray[np.float64]:
    """numpy's histogram over the range of ``like``, what is outside in the outermost bins."""
    range_of = (x if like is None else like).double().numpy()
    low, high = range_of.min(), range_of.max()
    clipped = np.clip(x.double().numpy(), low, high)
    return np.asarray(np.histogram(clipped, num_bins, (low, high))[0], dtype=np.float64)


def smoothed(histogram: npt.NDArray[np.float64], share: float) -> npt.NDArray[np.float64]:
    """Shares, some spread evenly."""
    shares: npt.NDArray[np.float64] = histogram / histogram.sum()
    return (1 - share) * shares + share / len(histogram)


def test_bins_are_numpys() -> None:
    """Equal ones; the last includes its end; numbers outside count in the outermost."""
    x = torch.randn(1000)

    found = Bins(-1.0, 2.0, 7).histogram(x)

    expected = np.histogram(np.clip(x.double().numpy(), -1, 2), 7, (-1, 2))[0]
    np.testing.assert_array_equal(found, expected)


def test_equal_numbers_have_a_bin() -> None:
    """A range of no length is widened."""
    found = bins_of(0.3, 0.3, 4).histogram(torch.full((5,), 0.3))

    assert found.tolist() == [5, 0, 0, 0]


def test_entropy_is_scipys() -> None:
    """In nats; none for a single full bin, and for no numbers at all."""
    histogram = torch.tensor([3, 0, 5, 1])

    assert entropy(histogram) == pytest.approx(scipy.stats.entropy([3, 0, 5, 1]))
    assert entropy(torch.tensor([0, 7])) == entropy(torch.tensor([0, 0])) == 0.0


def test_divergence_is_scipys() -> None:
    """Of smoothed shares; none of a histogram from itself."""
    a, b = torch.tensor([3, 0, 5, 1]), torch.tensor([0, 9, 2, 7])

    found = divergence(a, b, 0.1)

    p, q = smoothed(a.double().numpy(), 0.1), smoothed(b.double().numpy(), 0.1)
    assert found == pytest.approx(scipy.stats.entropy(p, q))
    assert divergence(a, a, 0.1) == 0.0


def test_histogram_kl_of_weights_and_inputs() -> None:
    """Inputs over all batches; the two add up; ids are not rounded."""
    model, ids = Net(), torch.randint(0, 9, (7, 5))
    tool = Tool(model, [ids[:4], ids[4:]])

    found = tool.losses(HistogramKL(num_bins=20, smoothing=0.01))

    read = model.read(ids)
    for name, losses in found.items():
        pairs = [tool.weights(name), tool.inputs(name, read[name]) if name in read else None]
        weight, activation = (
            scipy.stats.entropy(
                smoothed(counts(pair[0], 20), 0.01),
                smoothed(counts(pair[1], 20, like=pair[0]), 0.01),
            )
            if pair
            else 0.0
            for pair in pairs
        )
        assert losses == pytest.approx([weight, weight + activation, activation, 0.0], rel=1e-6)


def test_activation_entropy_weighs_the_rounding_error() -> None:
    """With the entropy of the layer's output over all batches."""
    model, ids = Net(), torch.randint(0, 9, (7, 5))
    tool = Tool(model, [ids[:4], ids[4:]])

    found = tool.losses(ActivationEntropy(num_bins=20))

    errors, written = tool.losses(WeightError()), model.written(ids)
    for name, losses in found.items():
        importance = scipy.stats.entropy(counts(written[name], 20))
        expected = [importance * error for error in errors[name]]
        assert losses == pytest.approx(expected, rel=1e-6)


def test_lost_entropy_of_weights_and_inputs() -> None:
    """What rounding takes away, at least 0."""
    model, ids = Net(), torch.randint(0, 9, (7, 5))
    tool = Tool(model, [ids[:4], ids[4:]])

    found = tool.losses(ActivationEntropy(num_bins=20, loss=True))

    read = model.read(ids)
    for name, losses in found.items():
        pairs = [tool.weights(name), tool.inputs(name, read[name]) if name in read else None]
        weight, activation = (
            max(
                scipy.stats.entropy(counts(pair[0], 20))
                - scipy.stats.entropy(counts(pair[1], 20, like=pair[0])),
                0.0,
            )
            if pair
            else 0.0
            for pair in pairs
        )
        assert losses == pytest.approx([weight, weight + activation, activation, 0.0], abs=1e-9)
    assert found["fc"][0] > 0


def test_constant_output_has_no_entropy() -> None:
    """A layer that always says the same can be rounded at will."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    with torch.no_grad():
        model.get_parameter("0.weight").zero_()
        model.get_parameter("0.bias").fill_(0.5)

    found = Tool(model, [torch.randn(6, 4)]).losses(ActivationEntropy())

    assert found["0"] == [0.0] * 4


@pytest.mark.parametrize("make", [HistogramKL, ActivationEntropy])
def test_one_bin_is_refused(make: type[HistogramKL] | type[ActivationEntropy]) -> None:
    """It says nothing."""
    with pytest.raises(InputError, match="needs num_bins >= 2; got 1"):
        make(num_bins=1)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_smoothing_must_leave_something(share: float) -> None:
    """None would divide by zero, all of it would see no difference."""
    with pytest.raises(InputError, match="0 < smoothing < 1"):
        HistogramKL(smoothing=share)
