"""Channels that can be moved: biases make up for it, and the network stays the same."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mpq.network.examples import Calibration
from mpq.network.modules import share_parameters
from mpq.network.reparametrized import reparametrized
from mpq.quantization.precision import Precision
from mpq.transforms import Found, Shift, Transforming
from tests.transforms.networks import OUTLIER, Block, Words, jittered, planes


def found(net: nn.Module, x: Tensor) -> Found:
    """What the transformation makes of a network."""
    on = Transforming(share_parameters(net), Calibration.of([x]), Precision.parse("w4a4"))
    return Shift().found(on)


def apart(net: nn.Module, other: nn.Module, x: Tensor) -> float:
    """Largest difference of outputs, relative to the largest output."""
    with torch.no_grad():
        read = x.double() if x.is_floating_point() else x
        before, after = (copy.deepcopy(m).double()(read) for m in (net, other))
    return float((before - after).abs().max() / before.abs().max())


def far_net() -> nn.Sequential:
    """One channel of what the first layer reads lies far from 0, and so do all of the second's."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        net.get_parameter("0.bias")[OUTLIER] += 50
        net.get_parameter("1.bias").add_(20)
    return net


@given(net=planes(), seed=st.integers(0, 9))
def test_random_convolutional_networks_stay_the_same(net: nn.Module, seed: int) -> None:
    """Whatever is moved is exact."""
    x = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(seed))

    assert apart(net, reparametrized(net, found(net, x).changes), x) < 1e-5


def test_ranges_have_their_middle_at_zero() -> None:
    """Of all examples that were looked at; the outputs stay."""
    net, x = far_net(), torch.randn(64, 8)

    changes = found(net, x)

    other = reparametrized(net, changes.changes)
    assert changes.num_sites == 2
    assert apart(net, other, x) < 1e-5
    with torch.no_grad():
        first = other.get_submodule("0")(x)
        second = other.get_submodule("1")(first)
    for read in (first, second):
        torch.testing.assert_close(read.amax(0), -read.amin(0), atol=1e-4, rtol=1e-4)


def test_values_are_moved_through_attention() -> None:
    """Its weights add up to 1, so that the output projection meets the values' shift."""
    net, x = jittered(Block(16, nn.LayerNorm)), torch.randn(8, 5, 16)
    with torch.no_grad():
        net.get_parameter("attention.qkv.bias")[32:] += 30

    changes = found(net, x)

    names = [change.parameter for change in changes.changes]
    assert {"attention.qkv.bias", "attention.out.bias"} <= set(names)
    assert apart(net, reparametrized(net, changes.changes), x) < 1e-5


def test_what_nothing_gains_by_stays() -> None:
    """Channels around 0: no change, though there is a place for one."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4)).eval()
    x = torch.randn(32, 8)

    changes = found(net, torch.cat([x, -x]))

    assert (changes.num_sites, changes.changes) == (1, ())


@pytest.mark.parametrize(
    ("net", "why"),
    [
        (nn.Sequential(nn.RMSNorm(4), nn.Linear(4, 3)), "reads what mul gives"),
        (nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3, bias=False)), "has no bias"),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)), "reads what relu gives"),
        (nn.Sequential(nn.Linear(4, 3)), "reads what the network's input gives"),
    ],
    ids=["rms", "reader", "relu", "input"],
)
def test_what_cannot_be_moved_is_told(net: nn.Module, why: str) -> None:
    """The last layer's weight, and the reason."""
    changes = found(net.eval(), torch.randn(8, 4))

    assert changes.changes == ()
    assert why in changes.why_not[f"{len(net) - 1}.weight"]  # type: ignore[arg-type]


def test_a_language_model_without_biases_has_no_place() -> None:
    """RMSNorm has no bias to take a shift."""
    changes = found(jittered(Words(is_tied=False)), torch.randint(13, (8, 7)))

    assert {c.parameter for c in changes.changes} <= {
        f"blocks.{i}.attention.{part}.bias" for i in (0, 1) for part in ("qkv", "out")
    }
