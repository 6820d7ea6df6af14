"""Layers before a choice: what a change of it costs, from a sample of them."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq import ESTIMATORS, Calibration, Precision
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation, Sensitivity
from mpq.sensitivity.jumps import MAX_LAYERS, raised_by_jumps
from mpq.sensitivity.spot_check import spot_check

CANDIDATES = tuple(map(Precision.parse, ("w2", "w4", "w6", "w8", "fp32")))


class Routed(nn.Module):
    """A layer, and one of three experts by what a router says of it."""

    def __init__(self, is_hard: bool) -> None:
        super().__init__()
        self.inner, self.router = nn.Linear(16, 16), nn.Linear(16, 3)
        self.experts = nn.ModuleList([nn.Linear(16, 16) for _ in range(3)])
        self.is_hard = is_hard

    def forward(self, x: Tensor) -> Tensor:
        """As many features."""
        x = torch.relu(self.inner(x))
        weight = (self.router(x) * 4).softmax(-1)
        if self.is_hard:
            weight = F.one_hot(weight.argmax(-1), 3) * weight.amax(-1, keepdim=True)
        parts = [w[:, None] * e(x) for w, e in zip(weight.unbind(1), self.experts, strict=True)]
        return torch.stack(parts).sum(0)


class Stacked(nn.Module):
    """Routers, one behind the other, each of which chooses or mixes."""

    def __init__(self, *is_hard: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Routed(each) for each in is_hard])
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        for block in self.blocks:
            x = F.layer_norm(x + 2 * block(x), (16,))
        found: Tensor = self.head(x)
        return found


def asked(model: nn.Module) -> Estimation:
    """The question of a network at four precisions and the original one."""
    torch.manual_seed(1)
    data = [torch.randn(64, 16) for _ in range(8)]
    network, calibration = Network.of(model.eval(), data), Calibration.of(data)
    ranges = ActivationRanges.calibrate(network, calibration, CANDIDATES)
    finest = "mse:num_shrinks=40,num_halvings=0"
    return Estimation(network, calibration, Quantizer(ranges, finest), CANDIDATES)


def estimate(on: Estimation, name: str) -> Sensitivity:
    """By the estimator of a name."""
    return ESTIMATORS.build(name, 0).estimate(on)


def test_many_layers_before_a_choice_are_raised_to_what_they_lose() -> None:
    """On the mean, where the sketch is several times too cheap; other layers stay the sketch's."""
    on = asked(Stacked(True, True, True))
    before = [x.is_before_choice and not x.is_choosing for x in on.network.layers]
    after = [not (x.is_before_choice or x.is_choosing) for x in on.network.layers]

    found, sketch, measured = (estimate(on, x) for x in ("auto", "sketch", "measured"))

    was, now = (
        np.log(each.table.values[before, :3] / measured.table.values[before, :3]).mean(axis=0)
        for each in (sketch, found)
    )
    assert np.exp(was)[2] < 0.2
    assert (np.abs(now) < np.log(2)).all()
    np.testing.assert_array_equal(found.table.values[after], sketch.table.values[after])
    assert found.check is not None
    assert len(found.check.raised) == sum(before)
    assert found.check.sampled
    assert any("their predictions were raised" in told for told in found.check.sentences)
    assert found.check.forward_passes < np.prod(on.shape)


def test_a_choice_that_does_not_turn_raises_nothing() -> None:
    """Layers before it are looked at, and lose what is predicted."""
    on = asked(Stacked(False, False, False))

    jumps = raised_by_jumps(on, estimate(on, "sketch").table, on.names)

    assert (jumps.raised, len(jumps.sampled)) == ((), min(MAX_LAYERS, len(on.names)))
    np.testing.assert_array_equal(jumps.table.values, estimate(on, "sketch").table.values)


def test_few_layers_before_a_choice_are_measured() -> None:
    """At every precision, as those that choose."""
    on = asked(Stacked(True))

    found, measured = estimate(on, "auto"), estimate(on, "measured")

    row = on.names.index("blocks.0.inner")
    np.testing.assert_allclose(found.table.values[row], measured.table.values[row], rtol=1e-9)


@pytest.mark.parametrize("name", ["sketch", "fisher"])
def test_other_estimators_name_what_they_cannot_know(name: str) -> None:
    """A search with them says which layers may be too cheap."""
    on = asked(Stacked(True))

    told = spot_check(on, estimate(on, name).table).sentences

    assert any("blocks.0.inner can turn such a choice, and may be predicted" in x for x in told)
