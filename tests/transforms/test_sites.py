"""Channels that can be scaled: whatever the factors, the network stays the same."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mpq.network.examples import Calibration
from mpq.network.modules import share_parameters
from mpq.network.reparametrized import reparametrized
from mpq.transforms.sites import Sites, merged
from tests.transforms.networks import Block, Shortcut, Words, jittered, planes


def sites_of(net: nn.Module, x: Tensor) -> Sites:
    """Of a network whose parameters have the names that the user gave them."""
    return Sites.of(share_parameters(net), Calibration.of([x]).first())


def scaled(net: nn.Module, sites: Sites, seed: int) -> nn.Module:
    """All free channels with random factors, up to a few hundred and its inverse."""
    draws = np.random.default_rng(seed)
    changes = [
        change
        for site in sites.sites
        for change in site.changes(
            np.where(site.is_free, np.exp(draws.normal(scale=2, size=site.size)), 1.0)
        )
    ]
    return reparametrized(net, merged(changes))


def apart(net: nn.Module, other: nn.Module, x: Tensor) -> float:
    """Largest difference of outputs, relative to the largest output."""
    with torch.no_grad():
        # In float64, so that what is found is no rounding.
        before, after = (copy.deepcopy(m).double()(_double(x)) for m in (net, other))
    return float((before - after).abs().max() / before.abs().max())


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


@given(net=planes(), seed=st.integers(0, 9))
def test_random_convolutional_networks_stay_the_same(net: nn.Module, seed: int) -> None:
    """Grouped, depthwise, transposed, shared, beside shortcuts: every fold is exact."""
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))

    other = scaled(net, sites_of(net, x), seed)

    assert apart(net, other, x) < 1e-5


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm])
def test_language_models_stay_the_same(is_tied: bool, norm: type[nn.Module]) -> None:
    """Values of heads, gated feed-forward networks and norms have sites; a tied head has none."""
    net, ids = jittered(Words(is_tied, norm)), torch.randint(13, (2, 7))

    sites = sites_of(net, ids)

    assert apart(net, scaled(net, sites, 0), ids) < 1e-5
    assert {site.name for site in sites.sites} >= {
        "blocks.0.norm1.weight",
        "blocks.0.attention.qkv.weight",
        "blocks.0.norm2.weight",
        "blocks.0.gated.up.weight",
    }
    assert ("head.weight" in sites.readers) is not is_tied
    told = "used otherwise" if is_tied else None
    assert told is None or told in sites.why_not["words.weight"]


def test_only_values_of_one_projection_are_free() -> None:
    """Queries and keys go through a softmax; values, the last third, do not."""
    net = jittered(Block(16, nn.LayerNorm))

    sites = sites_of(net, torch.randn(2, 5, 16))

    (site,) = (s for s in sites.sites if s.name == "attention.qkv.weight")
    assert site.is_free.tolist() == [False] * 32 + [True] * 16


def test_multi_head_attention_has_its_values() -> None:
    """torch's own attention is looked into, though a single operation computes it otherwise."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.attention(x, x, x)[0]
            return found

    net, x = jittered(Net()), torch.randn(2, 5, 8)
    before = torch.backends.mha.get_fastpath_enabled()

    sites = sites_of(net, x)

    assert sites.readers == ("attention.out_proj.weight",)
    assert apart(net, scaled(net, sites, 0), x) < 1e-5
    assert torch.backends.mha.get_fastpath_enabled() == before


@pytest.mark.parametrize(
    ("between", "why"),
    [
        ([nn.ReLU6()], "reads what hardtanh gives"),
        ([nn.GELU()], "reads what gelu gives"),
        ([Shortcut(nn.Linear(6, 6))], "a sum (a shortcut)"),
        ([nn.LayerNorm(6, elementwise_affine=False)], "native_layer_norm without a weight"),
    ],
    ids=["relu6", "gelu", "shortcut", "norm"],
)
def test_what_does_not_commute_is_told(between: list[nn.Module], why: str) -> None:
    """The reader has no site, and the reason is what stands between."""
    net = jittered(nn.Sequential(nn.Linear(4, 6), *between, nn.Linear(6, 3)))
    last = f"{len(between) + 1}.weight"

    sites = sites_of(net, torch.randn(2, 4))

    assert last not in sites.readers
    assert why in sites.why_not[last]


def test_a_channel_that_is_an_output_is_not_free() -> None:
    """What the network returns may not change, also where a layer reads it as well."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            hidden = self.first(x)
            return self.second(hidden), hidden[:, :2]

    sites = sites_of(jittered(Net()), torch.randn(2, 4))

    (site,) = sites.sites
    assert site.is_free.tolist() == [False, False, True, True, True, True]


def test_parts_of_an_lstm_are_named() -> None:
    """Its matrices have no site, and the reason is said of each."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.head(self.lstm(x)[0])
            return found

    sites = sites_of(jittered(Net()), torch.randn(2, 5, 4))

    assert set(sites.why_not) == {"lstm.weight_ih_l0", "lstm.weight_hh_l0", "head.weight"}
    assert "is read by" in sites.why_not["lstm.weight_hh_l0"]
