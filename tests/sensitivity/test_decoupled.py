"""Layers measured by metrics of their own, each as that metric alone measures it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq.errors import InputError
from mpq.network.examples import Calibration
from mpq.network.metrics import METRICS
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Decoupled, Estimation, Measured
from mpq.workflows.score import Score

CHOICES = tuple(map(Precision.parse, ("w2a8", "w4a8", "fp32")))


class Images(nn.Module):
    """Two convolutions and a gate, from images to images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.ff = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.last = nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.ff(self.first(x).relu()).tanh())
        return y


@pytest.fixture
def on() -> Estimation:
    """Eight images in two batches."""
    torch.manual_seed(0)
    data = Calibration([torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8)])
    network = Network.of(Images().eval(), data, metric=METRICS.build("squared-error"))
    quantizer = Quantizer(ActivationRanges.calibrate(network, data, CHOICES))
    return Estimation(network, data, quantizer, CHOICES)


def test_every_layer_by_the_metric_of_its_group(on: Estimation) -> None:
    """The first group that fits; what the metrics alone say of these layers."""
    of_ff, others = (Measured(score).estimate(on).table.values for score in ("cosine", "decibels"))

    found = Decoupled("*ff*=cosine;*=decibels").estimate(on).table

    np.testing.assert_allclose(found.values[1], of_ff[1])
    np.testing.assert_allclose(found.values[[0, 2]], others[[0, 2]])
    assert found.unit == "relative"
    assert Decoupled("*=decibels").estimate(on).table.unit == "decibels"


def test_decibels_are_those_of_the_signal_to_noise_ratio(on: Estimation) -> None:
    """200 less the mean over images of 10 log10(signal / noise), of which torch knows the layer."""
    network: Any = on.network.module
    x = torch.cat([batch.args[0] for batch in on.data])
    expected = []
    with torch.no_grad():
        signal, weight = network(x), network.ff.weight.clone()
        for choice in CHOICES[:2]:
            read = on.rounded_input("ff", network.first(x).relu(), choice.activation)
            network.ff.weight.copy_(on.rounded_weight("ff", choice.weight))
            noise = network.last(network.ff(read).tanh()) - signal
            network.ff.weight.copy_(weight)
            ratio = signal.square().sum((1, 2, 3)) / noise.square().sum((1, 2, 3))
            expected.append(200 - float(10 * ratio.log10().mean()))

    found = Decoupled("*=decibels").estimate(on).table.values[1]

    np.testing.assert_allclose(found, [*expected, 0], rtol=1e-4)


def test_scores_of_whole_networks(on: Estimation) -> None:
    """A built-in score by its name, or the task's own; a call for every cell of the group only."""
    calls = []

    def drop(network: Network, _: Quantizer, chosen: Mapping[str, Precision]) -> float:
        calls.append((network, chosen))
        return float(len(calls)) - 2

    asked = replace(on, score_drop=drop, named_drop={"ssim": drop}.__getitem__)
    own = Decoupled("*ff*=own;*=cosine")
    assert own.asks_score

    assert own.estimate(asked).table.values[1].tolist() == [0.0, 0.0, 0.0]
    assert Decoupled("*ff*=ssim;*=cosine").estimate(asked).table.values[1].tolist() == [1, 2, 0]
    assert len(calls) == 4


def test_by_name_in_a_search() -> None:
    """The structural similarity of scikit-image, through the task."""
    torch.manual_seed(0)
    batches = [torch.randn(4, 1, 8, 8)], [torch.randn(4, 1, 8, 8)]
    task = mpq.Task(
        Images().eval(), *batches, metric="squared-error",
        candidates=["w2a8", "w8a8"], rounding="nearest", score=Score.built_in("psnr"),
    )  # fmt: skip

    found = mpq.search(task, ["weight_bytes=0.7x:w8a8"],
                       sensitivity="decoupled:groups=*ff*=ssim;*=decibels",
                       solver="swept-budgets:groups=*ff*;*,is_measured=true")  # fmt: skip

    assert 0 < found.problem.loss.values[1, 0] < 2
    assert found.solution.solver.startswith("swept-budgets")
    assert found.measured.score is not None


def test_what_it_refuses(on: Estimation) -> None:
    """Groups without a metric, metrics that nobody knows, and scores that are not there."""
    with pytest.raises(InputError, match="needs a metric for every group"):
        Decoupled("*ff*;*=cosine")
    with pytest.raises(InputError, match="has no layer of this network"):
        Decoupled("*attn*=cosine;*=cosine").estimate(on)
    with pytest.raises(InputError, match="asked through mpq.search"):
        Decoupled("*=ssim").estimate(on)
    with pytest.raises(InputError, match="there is none"):
        Decoupled("*=own").estimate(on)
