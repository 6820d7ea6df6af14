"""A network computes in other precisions within a block, and is left as found."""

from collections import OrderedDict
from contextlib import suppress

import pytest
import torch
from torch import nn

from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer, quantized


def test_a_network_is_left_as_found_where_rounding_a_weight_fails() -> None:
    """No hook and no rounded weight of the layers before the one that fails stays."""
    torch.manual_seed(0)
    layers = OrderedDict[str, nn.Module](first=nn.Linear(4, 3), second=nn.Linear(3, 2))
    model, data = nn.Sequential(layers).eval(), Calibration([torch.randn(5, 4)])
    precisions = dict.fromkeys(("first", "second"), Precision.parse("w4a8"))
    network = Network.of(model, data)
    ranges = ActivationRanges.calibrate(network, data, tuple(precisions.values()))
    quantizer = Quantizer(ranges)
    modules = [network.layer_module(name) for name in precisions]
    weights = [module.weight for module in modules]
    # The range of the first weight is known already, that of the second one cannot be found.
    quantizer.weight("first", layers["first"], precisions["first"].weight)
    broken = Quantizer(ranges, "no such method", _grids=quantizer._grids)

    with pytest.raises(ValueError, match="no such method"), quantized(network, precisions, broken):
        pass

    assert not any(module._forward_pre_hooks for module in modules)
    assert all(x.weight is weight for x, weight in zip(modules, weights, strict=True))


@pytest.mark.parametrize("precision", ["w8a8", "w8a8d", "fp8"])
@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_an_input_without_numbers_needs_no_range(precision: str, shape: tuple[int, int]) -> None:
    """Such as that of an expert that no token was sent to, neither now nor at calibration."""
    quantizer = Quantizer(ActivationRanges({}))
    nothing = torch.empty(shape)

    found = quantizer.activation(
        "expert", nn.Linear(3, 2), nothing, Precision.parse(precision).activation
    )

    assert found.shape == shape


@pytest.mark.parametrize("fails", [False, True])
def test_a_network_computes_as_before_after_the_block(fails: bool) -> None:
    """Its inputs are rounded within the block and not after it, whatever ended the block."""
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(4, 3)).eval(), Calibration([torch.randn(5, 4)])
    precisions = {"0": Precision.parse("w4a4")}
    network, x = Network.of(model, data), torch.randn(6, 4)
    quantizer = Quantizer(ActivationRanges.calibrate(network, data, tuple(precisions.values())))
    before, module = network.module(x), network.layer_module("0")

    with suppress(RuntimeError), quantized(network, precisions, quantizer):
        within = network.module(x)
        if fails:
            raise RuntimeError

    assert not torch.equal(within, before)
    assert torch.equal(network.module(x), before)
    assert not module._forward_pre_hooks
