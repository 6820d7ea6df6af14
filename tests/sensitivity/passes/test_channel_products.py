"""Products of gradients and changes, against autograd and one channel at a time."""

import pytest
import torch
from torch import Tensor, nn

from mpq.network.weight_layout import layout_of
from mpq.sensitivity.passes.channel_products import ChannelProducts
from mpq.sensitivity.passes.weight_changes import PassProducts, add_products
from mpq.sensitivity.passes.weight_gradients import PlainCall
from tests.sensitivity.passes.weights import FORMATS, KINDS, made


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def by_autograd(module: nn.Module, x: Tensor, g: Tensor, changes: Tensor) -> Tensor:
    """``[N, O, F]`` of single examples, from ``[F, O, K]``."""
    rows = []
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    for one, gradient in zip(x, g, strict=True):
        (found,) = torch.autograd.grad((module(one[None]) * gradient[None]).sum(), weight)
        by_row = layout_of(module).to_rows(found)
        rows.append(torch.stack([(by_row * change).sum(dim=1) for change in changes], dim=1))
    return torch.stack(rows)


@pytest.mark.parametrize("group", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_every_channel(kind: str, group: int) -> None:
    """Sums over channels, and their squares, of groups of examples; the last group is smaller."""
    make, data = KINDS[kind]
    module, x = make(), data()
    g = torch.randn_like(module(x))
    changes = made(module)
    each = by_autograd(module, x, g, changes.whole)
    expected = torch.stack([part.sum(dim=0) for part in each.split(group)])  # [S, O, F]

    found = ChannelProducts(len(expected), len(changes.rows), len(FORMATS), torch.device("cpu"))
    add_products([PassProducts(found, [PlainCall(module, x, g, x, g)])], changes, group)

    torch.testing.assert_close(found.whole, expected.sum(dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.squares, expected.square().sum(dim=0), rtol=1e-4, atol=1e-5)
    fourths = expected.double().square().square().sum(dim=0)
    torch.testing.assert_close(found.fourths, fourths, rtol=1e-3, atol=1e-5)


def test_calls_of_one_layer_are_added_before_channels_are_squared() -> None:
    """A recurrent layer has one weight, whose change meets all of them."""
    module, first, second = nn.Linear(6, 4), torch.randn(5, 6), torch.randn(5, 6)
    g = torch.randn(5, 4)
    changes = made(module)
    expected = by_autograd(module, first, g, changes.whole)
    expected += by_autograd(module, second, g, changes.whole)

    found = ChannelProducts(5, len(changes.rows), len(FORMATS), torch.device("cpu"))
    calls = [PlainCall(module, x, g, x, g) for x in (first, second)]
    add_products([PassProducts(found, calls)], changes, 1)

    torch.testing.assert_close(found.squares, expected.square().sum(dim=0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_that_cannot_be_split_is_spread_over_its_groups(kind: str) -> None:
    """The square of its sum counts as the sum of squares of independent signs."""
    make, data = KINDS[kind]
    module, x = make(), data()
    g = torch.randn_like(module(x))
    changes = made(module)
    expected = by_autograd(module, x, g, changes.whole).sum(dim=0)  # [O, F]

    found = ChannelProducts(5, len(changes.rows), len(FORMATS), torch.device("cpu"))
    add_products([PassProducts(found, [PlainCall(module, x, g, None, None)])], changes, 1)

    squares = found.whole.square().sum(dim=0)
    torch.testing.assert_close(squares, expected.sum(dim=0).square(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.squares, expected.square(), rtol=1e-4, atol=1e-5)
