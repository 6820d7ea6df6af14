"""Bags of embeddings, and bilinear products, opened into known kinds of layers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpq.network.modules import share_parameters
from mpq.network.network import Network
from mpq.network.opening import open_layers

IDS = torch.tensor([1, 5, 5, 0, 6, 2, 3, 0, 4])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def assert_same(module: nn.Module, *args: Tensor) -> None:
    """The opened module says what the closed one says, to 1e-5."""
    with torch.no_grad():
        found = open_layers(share_parameters(module))(*args)
        torch.testing.assert_close(found, module(*args), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 0, -2])
def test_bags_of_one_length(mode: str, padding: int | None) -> None:
    """Ids in two axes; a bag of nothing but padding is zero."""
    bag = nn.EmbeddingBag(7, 3, mode=mode, padding_idx=padding).eval()

    assert_same(bag, IDS[:8].reshape(4, 2))
    assert_same(bag, torch.zeros(2, 3, dtype=torch.long))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 5])
@pytest.mark.parametrize("offsets", [[0, 2, 6], [0, 2, 2, 9], [0, 0, 0], [0, 9, 9]], ids=str)
def test_bags_with_offsets(mode: str, padding: int | None, offsets: list[int]) -> None:
    """Unlike lengths, empty bags in the middle and at the end."""
    bag = nn.EmbeddingBag(7, 3, mode=mode, padding_idx=padding).eval()

    assert_same(bag, IDS, torch.tensor(offsets))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_the_last_offset_may_be_the_end(mode: str) -> None:
    """As in compressed rows."""
    bag = nn.EmbeddingBag(7, 3, mode=mode, include_last_offset=True).eval()

    assert_same(bag, IDS, torch.tensor([0, 4, 4, 9]))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_no_ids_at_all(mode: str) -> None:
    """Every bag is empty."""
    bag = nn.EmbeddingBag(7, 3, mode=mode).eval()

    assert_same(bag, IDS[:0], torch.tensor([0, 0]))


def test_weights_per_sample() -> None:
    """They scale the rows, with and without offsets."""
    bag = nn.EmbeddingBag(7, 3, mode="sum").eval()
    scale = torch.randn(9)

    assert_same(bag, IDS, torch.tensor([0, 2, 2, 6]), scale)
    with torch.no_grad():
        found = open_layers(share_parameters(bag))
        rows = (IDS.reshape(3, 3), None, scale.reshape(3, 3))
        torch.testing.assert_close(found(*rows), bag(*rows), atol=1e-5, rtol=0)


def test_what_a_bag_does_not_take() -> None:
    """Ids in a row without offsets, in two axes with them, weights for a mean."""
    bag = open_layers(nn.EmbeddingBag(7, 3).eval())

    with pytest.raises(ValueError, match="got 1 axes and no offsets"):
        bag(IDS)
    with pytest.raises(ValueError, match="got 2 axes and offsets"):
        bag(IDS.reshape(3, 3), torch.tensor([0]))
    with pytest.raises(NotImplementedError, match="need the mode sum; got 'mean'"):
        bag(IDS, torch.tensor([0]), torch.ones(9))


def test_a_bag_that_renormalizes_stays_closed() -> None:
    """``max_norm`` changes the weight in every pass, so that no estimate would be of it."""
    bag = nn.EmbeddingBag(7, 3, max_norm=1.0).eval()

    assert type(open_layers(bag)) is nn.EmbeddingBag


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2,), (2, 6), ()], ids=str)
def test_bilinear(bias: bool, shape: tuple[int, ...]) -> None:
    """Any axes before the features."""
    module = nn.Bilinear(3, 4, 5, bias=bias).eval()

    assert_same(module, torch.randn(*shape, 3), torch.randn(*shape, 4))


class Pair(nn.Module):
    """Rows of ids put together, and compared with numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(7, 3, mode="sum")
        self.product = nn.Bilinear(3, 4, 5)

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        y: Tensor = self.product(self.bag(ids), x)
        return y


def test_layers_of_a_network() -> None:
    """A bag is an embedding; a bilinear product has a row of weights per output."""
    model = Pair().eval()
    data: Any = [((IDS[:8].reshape(4, 2), torch.randn(4, 4)), None)]

    network = Network.of(model, data)

    found = {x.name: (x.kind, x.weight_shape, x.num_channels, x.macs) for x in network.layers}
    assert found == {
        "bag.rows": ("embedding", (7, 3), 7, 0),
        "product.product": ("linear", (5, 12), 5, 5 * 12),
    }
    assert network.num_unquantized == 5
    assert network.layers[1].fed_by == ("bag.rows",)
