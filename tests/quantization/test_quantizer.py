"""A network computes in other precisions within a block, and is left as found."""

import math
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from mpq.errors import ModelError
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.blocks import round_blocks
from mpq.quantization.number_format import NumberFormat
from mpq.quantization.numerics import Numerics
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer, quantized
from mpq.quantization.range_method import RangeMethod
from mpq.quantization.ranges import RANGE_METHODS, MinMax


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


@pytest.mark.parametrize(
    ("layer_module", "shape", "num_token_axes"),
    [
        (nn.Linear(6, 2), (5, 6), 1),
        (nn.Linear(6, 2), (5, 3, 6), 1),
        (nn.Linear(6, 2), (5, 3, 2, 6), 1),
        (nn.Conv1d(3, 2, 1), (5, 3, 6), 2),
        (nn.Conv2d(3, 2, 1), (5, 3, 4, 6), 3),
        (nn.ConvTranspose2d(3, 2, 1), (5, 3, 4, 6), 3),
        (nn.Conv3d(3, 2, 1), (5, 3, 2, 4, 6), 4),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
@pytest.mark.parametrize("spelling", ["w8a8d", "w8a8sd", "w8a4d"])
def test_a_token_has_a_scale_of_its_own(
    layer_module: nn.Module, shape: tuple[int, ...], num_token_axes: int, spelling: str
) -> None:
    """The last axis of a linear layer, and a whole example of a convolution; and nothing finer."""
    quantizer, told = Quantizer(ActivationRanges({})), Precision.parse(spelling).activation
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x *= torch.logspace(-2, 2, x.numel()).reshape(shape)  # every part has a range of its own

    found = quantizer.activation("layer", layer_module, x, told)

    size = math.prod(shape[-num_token_axes:])
    for token, rounded in zip(x.reshape(-1, size), found.reshape(-1, size), strict=True):
        levels = 2**told.number.bits
        if told.symmetric:
            scale = max(-float(token.min()) / (levels // 2), float(token.max()) / (levels // 2 - 1))
        else:
            scale = (max(float(token.max()), 0) - min(float(token.min()), 0)) / (levels - 1)
        codes = rounded / scale
        assert torch.allclose(codes, codes.round(), atol=1e-3)  # on its grid
        assert bool(((rounded - token).abs() <= scale * 1.0001).all())  # and near
        assert len(set(codes.round().tolist())) > 1


@dataclass(frozen=True)
class Counted(RangeMethod):
    """As ``minmax``; counts how often a range is searched for."""

    name: ClassVar[str] = "counted"
    summary: ClassVar[str] = "for this test"
    asked: ClassVar[list[int]] = []

    def ends(
        self, rows: torch.Tensor, number: NumberFormat, symmetric: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``RangeMethod.ends``."""
        self.asked.append(len(rows))
        return MinMax().ends(rows, number, symmetric)


def test_a_range_is_searched_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each layer and format, whatever is then asked for; formats without a scale have none."""
    monkeypatch.setattr(Counted, "asked", [])
    monkeypatch.setitem(RANGE_METHODS._own, "counted", Counted)
    quantizer, layer_module = Quantizer(ActivationRanges({}), "counted"), nn.Linear(4, 3)

    for _ in range(2):
        for spelling in ("w4", "w8", "fp16", "bf16", "fp32"):
            told = Precision.parse(spelling).weight
            for name in ("first", "second"):
                quantizer.weight(name, layer_module, told)
                if told.number.needs_scale:
                    quantizer.codes(name, layer_module, told)

    assert Counted.asked == [3, 3, 3, 3]


LLAMA = Numerics(float_inputs="llama.cpp")


@pytest.mark.parametrize(
    ("spelling", "numerics", "block"),
    [
        ("w4a32", LLAMA, 32), ("w8ta32", LLAMA, 32), ("w4g32a32", LLAMA, 32),
        ("w4a32", Numerics(), None), ("w4a8", LLAMA, None), ("w4a16", LLAMA, None),
        ("wfp8a32", LLAMA, None), ("w16a32", LLAMA, None), ("fp32", LLAMA, None),
    ],
)  # fmt: skip
def test_llama_rounds_what_integer_weights_read(
    spelling: str, numerics: Numerics, block: int | None
) -> None:
    """In blocks, where the precision leaves the input alone; a network computes with just that."""
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(64, 3)).eval(), Calibration([torch.randn(5, 2, 64)])
    precision, x = Precision.parse(spelling), torch.randn(4, 2, 64)
    network = Network.of(model, data)
    ranges = ActivationRanges.calibrate(network, data, (precision,))
    quantizer = Quantizer(ranges, numerics=numerics)

    assert quantizer.float_block(precision, 64) == block
    with quantized(network, {"0": precision}, quantizer):
        found = network.module(x)

    module = network.layer_module("0")
    weight = quantizer.weight("0", module, precision.weight)
    read = quantizer.activation("0", module, x, precision.activation)
    read = read if block is None else round_blocks(x, block)
    bias = module.get_parameter("bias")
    assert torch.equal(found, nn.functional.linear(read, weight, bias))
    assert precision.activation.is_exact or not torch.equal(read, x)


def test_gradients_pass_straight_through() -> None:
    """As if the input had not been rounded; the rounded weight is what they are multiplied by."""
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(4, 3)).eval(), Calibration([torch.randn(5, 4)])
    precision, x = Precision.parse("w4a4"), torch.randn(6, 4, requires_grad=True)
    network = Network.of(model, data)
    quantizer = Quantizer(ActivationRanges.calibrate(network, data, (precision,)))

    with quantized(network, {"0": precision}, quantizer):
        weight = network.layer_module("0").get_parameter("weight").detach().clone()
        outputs = network.module(x)
        (outputs * torch.arange(3.0)).sum().backward()
        with torch.no_grad():
            same = network.module(x)

    assert x.grad is not None
    assert torch.equal(x.grad, (torch.arange(3.0) @ weight).expand(6, 4))
    assert torch.equal(outputs, same)


def test_what_has_no_range_is_named() -> None:
    """A static format needs one; ids, a dynamic format and fp32 need none."""
    quantizer, layer_module, x = Quantizer(ActivationRanges({})), nn.Linear(4, 3), torch.ones(2, 4)

    def rounded(spelling: str, read: torch.Tensor) -> torch.Tensor:
        told = Precision.parse(spelling).activation
        return quantizer.activation("first", layer_module, read, told)

    assert rounded("w8a32", x) is x
    assert rounded("w8a8d", x).shape == x.shape
    ids = torch.arange(4)
    assert rounded("w8a8", ids) is ids
    with pytest.raises(ModelError) as caught:
        rounded("w8a8", x)
    assert str(caught.value) == (
        "layer 'first' has no calibrated activation range for int8; calibrate with the precisions "
        "that are used"
    )


class Own(nn.Linear):
    """A forward of its own, with the weight standardised."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  the name that torch has
        return nn.functional.linear(input, self.weight / self.weight.std(), self.bias)


class AlsoUsed(nn.Module):
    """A layer whose weight a function reads as well, a matrix without a layer, and others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.own = nn.Linear(6, 6), Own(6, 6)
        self.matrix = nn.Parameter(torch.randn(6, 6))
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.steps = nn.LSTM(6, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.own(torch.tanh(self.first(x))) * self.first.weight.norm()
        x, _ = self.steps(x @ self.matrix)
        found: Tensor = self.attention(x, x, x)[0]
        return found


@pytest.fixture
def varied() -> tuple[Network, dict[str, Precision], Quantizer]:
    """All kinds of layers in 3 bits, inputs in 8."""
    torch.manual_seed(0)
    data = Calibration([torch.randn(5, 4, 6)])
    network = Network.of(AlsoUsed().eval(), data)
    precisions = {layer.name: Precision.parse("w3a8") for layer in network.layers}
    ranges = ActivationRanges.calibrate(network, data, tuple(precisions.values()))
    return network, precisions, Quantizer(ranges)


def test_weights_rounded_while_they_are_called(
    varied: tuple[Network, dict[str, Precision], Quantizer],
) -> None:
    """The outputs are those of weights that are rounded all the time, bit by bit."""
    network, precisions, quantizer = varied
    x = torch.randn(3, 4, 6)
    with torch.no_grad(), quantized(network, precisions, quantizer):
        expected = network.module(x)

    with torch.no_grad(), quantized(network, precisions, quantizer, one_at_a_time=True):
        between = {name: network.layer_module(name).weight for name in precisions}
        found = network.module(x)

    assert network.reach.also_used == ("first",)
    assert len(precisions) >= 7
    assert torch.equal(found, expected)
    assert not torch.equal(found, network.module(x))
    kept = {name for name, w in between.items() if w is network.layer_module(name).weight}
    assert kept == precisions.keys() - {"first"}


def test_a_call_that_fails_leaves_the_weight(
    varied: tuple[Network, dict[str, Precision], Quantizer],
) -> None:
    """Within the block and afterwards."""
    network, precisions, quantizer = varied
    layer, weight = network.layer_module("own"), network.layer_module("own").weight

    with quantized(network, precisions, quantizer, one_at_a_time=True):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            layer(torch.zeros(2, 5))
        assert layer.weight is weight

    assert not layer._forward_pre_hooks
    assert not layer._forward_hooks
