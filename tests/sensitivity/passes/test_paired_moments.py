"""Moments of two networks' inputs, against windows that torch writes out."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.network.examples import Calibration
from mpq.network.modules import share_parameters
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation
from mpq.sensitivity.passes.paired_moments import paired_moments
from mpq.sensitivity.passes.probes import TEMPERATURE, Probes
from mpq.sensitivity.passes.row_weights import row_weights

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = [torch.randn(6, 4, 5, 5, generator=GENERATOR) for _ in range(2)]


class Net(nn.Module):
    """What the second convolution, in groups, and the head read is what the first one gives."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 1)
        self.grouped = nn.Conv2d(4, 6, 3, groups=2, stride=2, padding=1)
        self.head = nn.Linear(54, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.grouped(self.first(x)).flatten(1))
        return found


@pytest.fixture
def on() -> Estimation:
    torch.manual_seed(0)
    data = Calibration.of(IMAGES)
    network = Network.of(Net().eval(), data)
    ranges = ActivationRanges.calibrate(network, data, [], "minmax")
    return Estimation(network, data, Quantizer(ranges), [Precision.parse("w4")])


def changed(on: Estimation) -> Network:
    """A copy whose first layer is another one."""
    twin = replace(on.network, module=share_parameters(on.network.module))
    first = twin.layer_module("first")
    assert isinstance(first.weight, Tensor)
    first.weight = nn.Parameter(first.weight * 0.9 + 0.05, requires_grad=False)
    return twin


def patches(network: Network) -> Tensor:
    """``[G, K, N, P]`` that the grouped convolution meets."""
    with torch.no_grad():
        read = network.layer_module("first")(torch.cat(IMAGES))
    unfolded = F.unfold(read, 3, padding=1, stride=2)
    by_group: Tensor = unfolded.unflatten(1, (2, -1))
    return by_group.movedim(0, 2)


def outer(one: Tensor, other: Tensor) -> Tensor:
    return torch.einsum("gknp,glnp->gkl", one, other) / one.shape[2]


def test_plain_moments_of_a_grouped_convolution(on: Estimation) -> None:
    """Quantized by quantized, and float by quantized inputs, in this order."""
    twin = changed(on)
    x, x_q = patches(on.network), patches(twin)

    found = paired_moments(on, twin, on.network.layers[1:2], {}, positions=0)["grouped"]

    torch.testing.assert_close(found.moment, outer(x_q, x_q), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.crossed, outer(x, x_q), rtol=1e-4, atol=1e-5)


def test_guided_moments_weigh_positions_alike(on: Estimation) -> None:
    """Both moments by the same squared gradients, as large as the plain ones together."""
    twin = changed(on)
    x, x_q = patches(on.network), patches(twin)
    weights = [torch.rand(6 * 9, 2, generator=GENERATOR) for _ in range(2)]
    known = torch.cat(weights).view(12, 9, 2).movedim(2, 0)  # [G, N, P]
    plain, guided = outer(x_q, x_q), outer(x_q * known[:, None], x_q)
    traces = (m.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] for m in (plain, guided))
    factor = next(traces) / next(traces)
    expected = 0.5 * (plain + factor * guided)
    crossed = 0.5 * (outer(x, x_q) + factor * outer(x * known[:, None], x_q))

    layers = on.network.layers[1:2]
    found = paired_moments(on, twin, layers, {"grouped": weights}, positions=0)["grouped"]

    torch.testing.assert_close(found.moment, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.crossed, crossed, rtol=1e-4, atol=1e-5)


def test_of_the_same_network_both_moments_are_one(on: Estimation) -> None:
    """Also where a part of the positions is looked at, and guided by what the loss says."""
    layers = on.network.layers[1:]
    weights = row_weights(on, ["grouped", "head"], 1, 0)

    found = paired_moments(on, on.network, layers, weights, positions=1)

    assert set(found) == {"grouped", "head"}
    for moments in found.values():
        torch.testing.assert_close(moments.moment, moments.crossed)


def test_weights_of_rows_are_squared_gradients_of_the_outputs(on: Estimation) -> None:
    """As torch's own gradient of the same probe says, the mean over a group's channels."""
    probes = Probes(on.network.metric, TEMPERATURE, 0)

    found = row_weights(on, ["grouped", "head"], 0, 0)

    for batch, of_grouped, of_head in zip(on.data, found["grouped"], found["head"], strict=True):
        read = on.network.layer_module("first")(batch.args[0])
        hidden = on.network.layer_module("grouped")(read).detach().requires_grad_()
        outputs = on.network.layer_module("head")(hidden.flatten(1)).unsqueeze(1)
        probe = probes.draw(batch, None, 0, outputs.detach())
        (gradient,) = torch.autograd.grad(outputs, hidden, probe)
        squares = gradient.square().unflatten(1, (2, 3)).mean(dim=2)  # [N, G, 3, 3]
        torch.testing.assert_close(of_grouped, squares.movedim(1, -1).reshape(-1, 2))
        torch.testing.assert_close(of_head, probe.square().mean(dim=-1))


def test_the_network_is_left_as_found(on: Estimation) -> None:
    """No hook stays, though passes are stopped in the middle."""
    before = [len(m._forward_hooks) for m in on.network.module.modules()]

    paired_moments(on, changed(on), on.network.layers[:1], {})

    assert [len(m._forward_hooks) for m in on.network.module.modules()] == before
