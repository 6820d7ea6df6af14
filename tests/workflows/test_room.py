"""Networks whose rounded weights do not fit beside their own are measured a layer at a time."""

import pytest
import torch
from torch import nn

from mpq._support.pages import can_stream
from mpq.network.examples import Calibration
from mpq.network.mapped import resident_bytes
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.workflows import room
from mpq.workflows.evaluate import Reference
from mpq.workflows.evaluator import Evaluator
from mpq.workflows.room import rounds_in_calls

pytestmark = pytest.mark.skipif(not can_stream(), reason="only Linux says what a process holds")
W3 = Precision.parse("w3")


def network() -> Network:
    torch.manual_seed(0)
    layers = [nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)]
    return Network.of(nn.Sequential(*layers).eval(), [torch.randn(6, 16)])


def measured(found: Network) -> tuple[float, int]:
    """The divergence, and the most layers that hold a rounded weight when one is called."""
    data = Calibration([torch.randn(6, 16, generator=torch.Generator().manual_seed(1))])
    original = {layer.name: found.weight(layer.name).data_ptr() for layer in found.layers}
    evaluator = Evaluator(found, Quantizer(ActivationRanges({})), Reference(found.module, data))
    most = 0

    def look(*_: object) -> None:
        nonlocal most
        most = max(most, sum(found.weight(n).data_ptr() != p for n, p in original.items()))

    handles = [found.layer_module(name).register_forward_hook(look) for name in original]
    divergence = evaluator.measure(dict.fromkeys(original, W3)).divergence
    for handle in handles:
        handle.remove()
    return divergence, most


def test_numbers_are_those_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, with one rounded weight at a time."""
    expected, all_at_once = measured(network())
    monkeypatch.setattr(room, "machine_bytes", lambda: resident_bytes() + 1000)

    found, at_once = measured(network())

    assert (all_at_once, at_once) == (3, 1)
    assert found == expected > 0


def test_a_weight_more_than_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted are the weights of all layers, of which each is rounded."""
    found = network()
    needed = 4 * (16 * 16 + 16 * 16 + 16 * 4)
    monkeypatch.setattr(room, "resident_bytes", lambda: 10**6)
    for left in (needed, needed - 1):
        monkeypatch.setattr(room, "machine_bytes", lambda left=left: 10**6 + left)

        assert rounds_in_calls(found) == (left < needed)
