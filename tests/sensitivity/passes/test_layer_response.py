"""A layer computed alone, against torch's functions."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation
from mpq.sensitivity.passes.layer_response import response, response_changes


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_weight_takes_the_place_of_the_layers_own() -> None:
    """The bias stays."""
    layer_module, x, weight = nn.Linear(4, 3), torch.randn(2, 4), torch.randn(3, 4)

    found = response(layer_module, x, weight)

    torch.testing.assert_close(found, F.linear(x, weight, layer_module.bias))


@pytest.mark.parametrize(
    ("layer_module", "x"),
    [
        (nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular", groups=2), (2, 4, 5, 5)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), (2, 4, 5, 5)),
        (nn.Conv1d(4, 4, 3, groups=4, bias=False), (2, 4, 9)),
    ],
)
def test_convolutions_respond_as_they_are_called(
    layer_module: nn.Module, x: tuple[int, ...]
) -> None:
    """Padding, groups and stride are the module's."""
    read = torch.randn(x)

    found = response(layer_module, read)

    torch.testing.assert_close(found, layer_module(read).detach())


def test_hooks_are_not_called_and_nothing_is_left_behind() -> None:
    """Parameters are the same objects, no gradient is recorded."""
    layer_module, x = nn.Linear(4, 3), torch.randn(2, 4)
    calls: list[int] = []
    layer_module.register_forward_hook(lambda *_: calls.append(1))
    before = dict(layer_module.named_parameters())

    found = response(layer_module, x, torch.randn(3, 4))

    assert not calls
    assert not found.requires_grad
    assert {n: id(p) for n, p in layer_module.named_parameters()} == {
        n: id(p) for n, p in before.items()
    }


def test_a_failure_leaves_the_layer_as_it_was() -> None:
    """An input that does not fit raises; the weight is the layer's own afterwards."""
    layer_module = nn.Linear(4, 3)
    weight = layer_module.weight

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        response(layer_module, torch.randn(2, 5), torch.randn(3, 4))

    assert layer_module.weight is weight


def test_half_precision_is_widened() -> None:
    """A bfloat16 layer responds in float32, a float64 layer in float64, ids stay ids."""
    half = nn.Linear(4, 3).to(torch.bfloat16)
    double, table = nn.Linear(4, 3).double(), nn.Embedding(5, 2).to(torch.bfloat16)
    x = torch.randn(2, 4)

    assert response(half, x.to(torch.bfloat16)).dtype == torch.float32
    assert response(double, x.double()).dtype == torch.float64
    assert response(table, torch.tensor([1, 2])).dtype == torch.float32


def test_changes_are_those_of_weight_and_input_together() -> None:
    """One per candidate that changes something."""
    layer_module, x = nn.Linear(4, 3), torch.randn(2, 4)
    data, quantizer = Calibration([x]), Quantizer(ActivationRanges({}))
    candidates = tuple(map(Precision.parse, ("fp32", "w3a4d", "w3")))
    network = Network.of(nn.Sequential(layer_module).eval(), data)
    on = Estimation(network, data, quantizer, candidates)

    found = dict(response_changes(on, "0", x, response(layer_module, x)))

    assert list(found) == [1, 2]
    for column, change in found.items():
        weight = quantizer.weight("0", layer_module, candidates[column].weight)
        rounded = quantizer.activation("0", layer_module, x, candidates[column].activation)
        expected: Tensor = (F.linear(rounded, weight) - F.linear(x, layer_module.weight)).detach()
        torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-6)
