"""Layers on several devices, and what waits for a transfer between them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq.errors import ModelError
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.problem.split import Split
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import ESTIMATORS, Estimation
from mpq.sensitivity.passes.backward_pass import Tap, tapped
from mpq.sensitivity.passes.forward_pass import read_batch

CANDIDATES = tuple(map(Precision.parse, ("w2a4", "w4a8", "w8")))


def spread() -> Network:
    """A network whose second layer is on ``meta``, its input moved within its call.

    As accelerate's hooks do it; without a gradient between devices of which one only says shapes.
    """
    torch.manual_seed(0)
    network = Network.of(
        nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).eval(), [torch.randn(6, 4)]
    )
    second = network.layer_module("1")
    second.to("meta")
    forward = second.forward
    vars(second)["forward"] = lambda x: forward(x.detach().to("meta"))
    return network


class Reader:
    """Keeps where tensors are."""

    reads_inputs = False

    def __init__(self) -> None:
        self.found: dict[str, tuple[str, str]] = {}

    def read_input(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        raise AssertionError(tap.name)

    def read_output(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        self.found[tap.name] = (x.device.type, g.device.type)
        # What would fail on two devices.
        assert tap.weight_gradients(x, g).whole().device == g.device


def test_a_forward_pass_reads_layers_where_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook sees the input before it is moved; readers get it where the output is."""
    network, reader, x = spread(), Reader(), torch.randn(6, 4)
    monkeypatch.setattr(Network, "outputs", lambda own, batch: own.module(*batch.args))

    read_batch(network, Calibration([x]).first(), reader.read_output)

    assert reader.found == {"0": ("cpu", "cpu"), "1": ("meta", "meta")}


def test_a_backward_pass_reads_layers_where_they_run() -> None:
    """The same of gradients."""
    network, reader = spread(), Reader()

    with tapped(network, 6, reader), torch.enable_grad():
        outputs = network.module(torch.randn(6, 4))
        outputs.backward(torch.ones_like(outputs))

    assert reader.found == {"1": ("meta", "meta")}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("sketch", "none"), ("sketch", "columns:4"), ("fisher", "none"), ("fisher", "columns:4"),
        ("first-order", "none"), ("layer-output", "none"), ("orthogonality", "none"),
        ("column-loss", "columns:4"),
    ],
)  # fmt: skip
def test_batches_do_not_wait_for_transfers_layer_by_layer(
    name: str, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four batches more bring at most two transfers each, not one for each of the six layers."""
    layers = [layer for _ in range(6) for layer in (nn.Linear(8, 8), nn.Tanh())]
    model, x = nn.Sequential(*layers).eval(), torch.randn(12, 8)
    network = Network.of(model, [x])
    data = [Calibration([x[:2]]), Calibration(list(x[:10].split(2)))]
    ranges = ActivationRanges.calibrate(network, Calibration([x]), CANDIDATES)
    counted: list[int] = []
    cpu = torch.Tensor.cpu

    def counting(own: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        counted[-1] += 1
        return cpu(own, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "cpu", counting)
    for examples in data:
        counted.append(0)
        estimator = ESTIMATORS.build(f"{name}:num_probes=1" if name == "sketch" else name)
        parts, quantizer = Split.parse(split), Quantizer(ranges)
        estimator.estimate(Estimation(network, examples, quantizer, CANDIDATES, split=parts))

    assert counted[1] - counted[0] <= 4 * 2 < 4 * 6


def test_within_autocast_nothing_is_estimated() -> None:
    """Refused with the reason, before anything runs."""
    model, data = nn.Linear(4, 3).eval(), Calibration([torch.randn(6, 4)])
    network = Network.of(model, data)

    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ModelError, match=r"autocast is on for cpu.*leave it, and convert"):
            Estimation(network, data, Quantizer(ActivationRanges({})), CANDIDATES)
        with pytest.raises(ModelError, match="autocast is on for cpu"):
            mpq.search(mpq.Task(model, data), {"effective_bits": 4})
