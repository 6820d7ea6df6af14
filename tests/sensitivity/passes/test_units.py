"""Products and squares of blocks of inputs and of groups, against autograd and sums by hand."""

import pytest
import torch
from torch import Tensor, nn

from mpq.network.weight_layout import layout_of
from mpq.quantization.channel_bits import GROUPS, INPUTS, OUTPUTS
from mpq.sensitivity.passes.channel_products import ChannelProducts
from mpq.sensitivity.passes.gradient_squares import squared_products
from mpq.sensitivity.passes.units import Units
from mpq.sensitivity.passes.weight_changes import PassProducts, WeightChanges, add_products
from mpq.sensitivity.passes.weight_gradients import PlainCall
from tests.sensitivity.passes.weights import FORMATS, KINDS, made

UNITS = [Units(INPUTS, 4), Units(INPUTS, 1), Units(GROUPS, 4)]


def by_hand(cells: Tensor, units: Units) -> Tensor:
    """``[..., U]`` of ``[..., O, K]``, cell by cell."""
    *_, rows, inputs = cells.shape
    count = -(-inputs // units.size)
    shape = (*cells.shape[:-2], count * (rows if units.axis == GROUPS else 1))
    found = torch.zeros(shape, dtype=cells.dtype)
    for row in range(rows):
        for place in range(inputs):
            block = place // units.size + (row * count if units.axis == GROUPS else 0)
            found[..., block] += cells[..., row, place]
    return found


def single_gradients(module: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    """``[N, O, K]`` by autograd, one example at a time."""
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    found = []
    for one, gradient in zip(x, g, strict=True):
        (own,) = torch.autograd.grad((module(one[None]) * gradient[None]).sum(), weight)
        found.append(layout_of(module).to_rows(own))
    return torch.stack(found)


def of_units(changes: WeightChanges, units: Units) -> WeightChanges:
    return WeightChanges(
        changes.name, changes.layer_module, changes.original, changes.held, changes.formats,
        changes.quantizer, units,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("units", UNITS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_every_part(kind: str, units: Units, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Of groups of examples, and of a batch that cannot be split; weights come tile by tile."""
    monkeypatch.setattr("mpq.quantization.rounding.NUMBERS_AT_ONCE", 13)
    make, data = KINDS[kind]
    module, x = make(), data()
    g = torch.randn_like(module(x))
    changes = of_units(made(module), units)
    gradients = single_gradients(module, x, g)
    each = torch.stack([by_hand(gradients * c, units) for c in changes.whole], dim=-1)  # [N, U, F]
    expected = torch.stack([part.sum(dim=0) for part in each.split(2)])
    count = units.count(*changes.rows.shape)

    found, whole = (ChannelProducts(3, count, len(FORMATS), torch.device("cpu")) for _ in range(2))
    add_products([PassProducts(found, [PlainCall(module, x, g, x, g)])], changes, 2)
    add_products([PassProducts(whole, [PlainCall(module, x, g, None, None)])], changes, 2)

    torch.testing.assert_close(found.whole, expected.sum(dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.squares, expected.square().sum(dim=0), rtol=1e-4, atol=1e-5)
    fourths = expected.double().square().square().sum(dim=0)
    torch.testing.assert_close(found.fourths, fourths, rtol=1e-3, atol=1e-5)
    of_batch = each.sum(dim=0).square()
    torch.testing.assert_close(whole.squares, of_batch, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("units", [*UNITS, Units(OUTPUTS)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_squares_are_shared_out_exactly(kind: str, units: Units) -> None:
    """Fisher information and squared errors of parts add up to the layer's."""
    make, data = KINDS[kind]
    module, x = make(), data()
    g = torch.randn_like(module(x))
    plain, changes = made(module), of_units(made(module), units)
    calls = [PlainCall(module, x, g, x, g)]
    by_cell = single_gradients(module, x, g).double().square().sum(dim=0) * plain.whole.square()

    found = squared_products(calls, changes, len(x))

    if units.axis != OUTPUTS:
        torch.testing.assert_close(found, by_hand(by_cell, units).mT, rtol=1e-4, atol=1e-9)
    whole = squared_products(calls, plain, len(x)).sum(dim=0)
    torch.testing.assert_close(found.sum(dim=0), whole, rtol=1e-6, atol=0.0)
    sums = changes.squares().sum(dim=0), plain.squares().sum(dim=0)
    torch.testing.assert_close(*sums, rtol=1e-9, atol=0.0)
