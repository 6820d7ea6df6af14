"""Layers with a forward of their own, against the same network written with plain layers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mpq
from mpq.errors import ModelError
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.network.own_forward import has_own_forward
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation

NATS = (
    "sketch", "fisher", "first-order", "output-gradient", "hessian-form",
    "hessian-trace:num_probes=2", "hessian-eigenvalue:max_iterations=3",
)  # fmt: skip
CHOICES = tuple(map(Precision.parse, ("w3", "w4a8", "w4a8d", "fp32")))


class ScaledEmbedding(nn.Embedding):
    """As Gemma's and BART's."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        return super().forward(input) * 4


class PositionsOf(nn.Embedding):
    """As BART's: the first argument is token ids, of which only the shape is used."""

    def forward(self, input_ids: Tensor, cache_length: int = 0) -> Tensor:
        ids = torch.arange(cache_length, cache_length + input_ids.shape[1])
        return super().forward(ids.expand(len(input_ids), -1) + 2)


class PositionsForShape(nn.Embedding):
    """As Pegasus': the first argument is a shape, the output has no examples."""

    def forward(self, shape: torch.Size) -> Tensor:  # type: ignore[override]
        return super().forward(torch.arange(shape[1]))


class ScaledLinear(nn.Linear):
    """Equalised learning rate."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        return F.linear(input, self.weight * 0.25, self.bias)


class TwoArguments(nn.Linear):
    """Reads a gate as well, which has the examples, too."""

    def forward(self, *, hidden: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(hidden) * gate


class SamePadded(nn.Conv2d):
    """Pads, then convolves, as TensorFlow's networks do."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        return super().forward(F.pad(input, (0, 1, 0, 1)))


class Standardized(nn.Conv2d):
    """Weight-standardised convolution."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        flat = weight.flatten(1)
        mean, std = (f(flat, 1).reshape(-1, 1, 1, 1) for f in (torch.mean, torch.std))
        y: Tensor = super()._conv_forward(input, (weight - mean) / (std + 1e-5), bias)
        return y


class Net(nn.Module):
    """Layers by name, and a function of them."""

    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def on_network(model: nn.Module, data: list[Any]) -> Estimation:
    """What an estimator takes."""
    examples = Calibration.of(data)
    network = Network.of(model.eval(), examples)
    ranges = ActivationRanges.calibrate(network, examples, CHOICES)
    return Estimation(network, examples, Quantizer(ranges), CHOICES)


def table(name: str, model: nn.Module, data: list[Any]) -> npt.NDArray[np.float64]:
    """``[L, B]``."""
    return mpq.ESTIMATORS.build(name, 0).estimate(on_network(model, data)).table.values


def _ids() -> Tensor:
    return torch.randint(0, 9, (5, 4), generator=torch.Generator().manual_seed(1))


def _plain_and_own(own: nn.Module, plain: nn.Module) -> tuple[nn.Module, nn.Module]:
    plain.load_state_dict(own.state_dict())
    return own, plain


def scaled_embedding() -> tuple[nn.Module, nn.Module, Tensor]:
    """The scale behind the table, or within it."""
    head = nn.Linear(6, 3)
    own = Net(
        lambda m, x: m.head(m.table(x).tanh().mean(1)), table=ScaledEmbedding(9, 6), head=head
    )
    plain = Net(
        lambda m, x: m.head((m.table(x) * 4).tanh().mean(1)),
        table=nn.Embedding(9, 6), head=nn.Linear(6, 3),
    )  # fmt: skip
    return *_plain_and_own(own, plain), _ids()


def positions() -> tuple[nn.Module, nn.Module, Tensor]:
    """Positions that are found within, or outside of the layer."""
    layers = {"token": nn.Embedding(9, 6), "head": nn.Linear(6, 3)}
    others = {"token": nn.Embedding(9, 6), "head": nn.Linear(6, 3)}
    own = Net(
        lambda m, x: m.head((m.token(x) + m.place(x)).tanh().mean(1)),
        place=PositionsOf(8, 6), **layers,
    )  # fmt: skip
    plain = Net(
        lambda m, x: m.head(
            (m.token(x) + m.place(torch.arange(2, 2 + x.shape[1]).expand(x.shape))).tanh().mean(1)
        ),
        place=nn.Embedding(8, 6), **others,
    )  # fmt: skip
    return *_plain_and_own(own, plain), _ids()


def positions_for_shape() -> tuple[nn.Module, nn.Module, Tensor]:
    """A table that no example has a part in, against one row of ids for all."""
    layers = {"token": nn.Embedding(9, 6), "head": nn.Linear(6, 3)}
    others = {"token": nn.Embedding(9, 6), "head": nn.Linear(6, 3)}
    own = Net(
        lambda m, x: m.head((m.token(x) + m.place(x.shape)).tanh().mean(1)),
        place=PositionsForShape(8, 6), **layers,
    )  # fmt: skip
    plain = Net(
        lambda m, x: m.head((m.token(x) + m.place(torch.arange(x.shape[1])[None])).tanh().mean(1)),
        place=nn.Embedding(8, 6), **others,
    )  # fmt: skip
    return *_plain_and_own(own, plain), _ids()


def scaled_linear() -> tuple[nn.Module, nn.Module, Tensor]:
    """The scale on the weight, or (with the bias apart) on the product."""
    own = Net(
        lambda m, x: m.head(m.fc(x).tanh()), fc=ScaledLinear(5, 6, bias=False), head=nn.Linear(6, 3)
    )
    plain = Net(
        lambda m, x: m.head((m.fc(x) * 0.25).tanh()),
        fc=nn.Linear(5, 6, bias=False), head=nn.Linear(6, 3),
    )  # fmt: skip
    return *_plain_and_own(own, plain), torch.randn(7, 5)


def two_arguments() -> tuple[nn.Module, nn.Module, Tensor]:
    """All arguments are cut into examples, also those given by name."""

    def by_name(m: Any, x: Tensor) -> Tensor:
        y: Tensor = m.head(m.fc(hidden=m.first(x), gate=x.sigmoid()).tanh())
        return y

    def written_out(m: Any, x: Tensor) -> Tensor:
        y: Tensor = m.head((m.fc(m.first(x)) * x.sigmoid()).tanh())
        return y

    own = Net(by_name, first=nn.Linear(5, 5), fc=TwoArguments(5, 5), head=nn.Linear(5, 3))
    plain = Net(written_out, first=nn.Linear(5, 5), fc=nn.Linear(5, 5), head=nn.Linear(5, 3))
    return *_plain_and_own(own, plain), torch.randn(7, 5)


def same_padded() -> tuple[nn.Module, nn.Module, Tensor]:
    """The padding within the layer, or before it; a BatchNorm is folded either way."""

    def pooled(m: Any, x: Tensor) -> Tensor:
        y: Tensor = m.head(m.norm(m.conv(x)).tanh().mean((2, 3)))
        return y

    def padded(m: Any, x: Tensor) -> Tensor:
        y: Tensor = m.head(m.norm(m.conv(F.pad(x, (0, 1, 0, 1)))).tanh().mean((2, 3)))
        return y

    own = Net(pooled, conv=SamePadded(2, 4, 3, 2), norm=nn.BatchNorm2d(4), head=nn.Linear(4, 3))
    plain = Net(padded, conv=nn.Conv2d(2, 4, 3, 2), norm=nn.BatchNorm2d(4), head=nn.Linear(4, 3))
    return *_plain_and_own(own, plain), torch.randn(6, 2, 6, 6)


def by_keyword() -> tuple[nn.Module, nn.Module, Tensor]:
    """``layer(input=x)`` is what ``layer(x)`` is."""
    layers = {"a": nn.Linear(5, 6), "b": nn.Linear(6, 3)}
    others = {"a": nn.Linear(5, 6), "b": nn.Linear(6, 3)}
    own = Net(lambda m, x: m.b(input=m.a(input=x).tanh()), **layers)
    plain = Net(lambda m, x: m.b(m.a(x).tanh()), **others)
    return *_plain_and_own(own, plain), torch.randn(7, 5)


def replaced_on_the_instance() -> tuple[nn.Module, nn.Module, Tensor]:
    """A ``forward`` that was set on one module, as accelerate and others do."""
    own, plain, x = scaled_linear()
    layer = nn.Linear(5, 6, bias=False)
    layer.load_state_dict(own.get_submodule("fc").state_dict())
    layer.forward = ScaledLinear.forward.__get__(layer)  # type: ignore[method-assign]
    own.add_module("fc", layer)
    return own, plain, x


def hooked() -> tuple[nn.Module, nn.Module, Tensor]:
    """A hook of the user's that changes a layer's output."""
    own, plain, x = scaled_linear()
    layer = nn.Linear(5, 6, bias=False)
    layer.load_state_dict(own.get_submodule("fc").state_dict())
    layer.register_forward_hook(lambda _, __, y: y * 0.25)
    own.add_module("fc", layer)
    return own, plain, x


PAIRS = (
    scaled_embedding, positions, positions_for_shape, scaled_linear, two_arguments, same_padded,
    by_keyword, replaced_on_the_instance, hooked,
)  # fmt: skip


@pytest.mark.parametrize("name", NATS)
@pytest.mark.parametrize("make", PAIRS)
def test_own_forward_costs_what_the_plain_layer_costs(
    make: Callable[[], tuple[nn.Module, nn.Module, Tensor]], name: str
) -> None:
    """Weights are the same numbers in both networks, so that every cell is the same."""
    torch.manual_seed(0)
    own, plain, x = make()

    found, expected = table(name, own, [x]), table(name, plain, [x])
    if name.startswith(("hessian-trace", "hessian-eigenvalue")):
        # Both model the error of an input as spread over all its numbers: padding is one of them.
        found, expected = found[:, :1], expected[:, :1]

    # Scales at the output of a layer reach its curvature, but not its weight's error: they agree
    # only if the gradient is that of the layer's own forward.
    assert expected.max() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.max())


def test_standardized_convolution_against_finite_differences() -> None:
    """The sketch's expectation is the second-order change, here by small steps of the weight."""
    torch.manual_seed(0)
    model = Net(
        lambda m, x: m.head(m.conv(x).relu().mean((2, 3))),
        conv=Standardized(2, 4, 3), head=nn.Linear(4, 3),
    ).eval()  # fmt: skip
    x = torch.randn(6, 2, 6, 6)
    on = on_network(model, [x])
    weight, rounded = on.network.weight("conv"), on.rounded_weight("conv", CHOICES[0].weight)

    found = mpq.ESTIMATORS.build("sketch:num_probes=400,temperature=1", 0).estimate(on).table.values

    step = 1e-3
    double = Net(model.function, **dict(model.named_children())).double()
    before = double(x.double()).log_softmax(-1)
    moved = (weight + step * (rounded - weight)).double()
    after = torch.func.functional_call(double, {"conv.weight": moved}, x.double())
    risen = (
        float((before.exp() * (before - after.log_softmax(-1))).sum(-1).mean().detach()) / step**2
    )
    assert found[0, 0] == pytest.approx(risen, rel=0.1)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Linear(2, 2), False),
        (nn.ConvTranspose2d(2, 2, 1), False),
        (type("Renamed", (nn.Linear,), {})(2, 2), False),
        (nn.modules.linear.NonDynamicallyQuantizableLinear(2, 2), False),
        (ScaledLinear(2, 2), True),
        (Standardized(2, 2, 1), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_plain_is_what_computes_as_torch_does(layer: nn.Module, expected: bool) -> None:
    """By the function that runs, not by the name of the class."""
    assert has_own_forward(layer) is expected


class Routed(nn.Linear):
    """Returns a tuple, as routers do."""

    def forward(self, input: Tensor) -> Any:  # noqa: A002 - torch's own name
        y = super().forward(input)
        return y.softmax(-1), y


def test_the_weight_of_a_module_that_returns_a_tuple_is_a_layer() -> None:
    """The module itself is none; the product that it computes is one."""
    model = Net(lambda m, x: m.b(m.a(x)[0]), a=Routed(4, 4), b=nn.Linear(4, 3)).eval()
    x = torch.randn(3, 4)

    found, left = Network.of(model, [x]), Network.of(model, [x], exclude=["a.*"])

    assert [layer.name for layer in found.layers] == ["a.weight", "b"]
    assert [layer.name for layer in left.layers] == ["b"]


def test_a_closure_over_another_module_is_named() -> None:
    """A copy of the model would go on reading the original's weight, whatever its precision."""
    layer = nn.Linear(4, 3)
    weight = layer.weight
    layer.forward = lambda x: F.linear(x, weight * 2)  # type: ignore[assignment, method-assign]

    with pytest.raises(ModelError, match="layer 'a' has a forward that does not read"):
        Network.of(Net(lambda m, x: m.a(x), a=layer).eval(), [torch.randn(2, 4)])


class Remembers(nn.Linear):
    """Reads ids first, then numbers."""

    def forward(self, ids: Tensor, input: Tensor) -> Tensor:  # type: ignore[override]  # noqa: A002
        assert not ids.is_floating_point()
        return super().forward(input) + ids[:, None]


def test_the_first_numbers_are_rounded_and_ids_are_not() -> None:
    """An int8 input, whatever stands before it."""
    torch.manual_seed(0)
    ids = torch.arange(5)
    own = Net(lambda m, x: m.a(ids, x), a=Remembers(4, 3))
    plain = Net(lambda m, x: m.a(x) + ids[:, None], a=nn.Linear(4, 3))
    plain.load_state_dict(own.state_dict())
    x = torch.randn(5, 4)

    found, expected = table("measured", own, [x]), table("measured", plain, [x])

    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (found[0, :3] > 0).all()


class Shifted(nn.Embedding):
    """A forward of its own."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) + 1


@pytest.mark.parametrize("seed", [0, 1, 42])
def test_table_drawn_first_after_a_seed_is_a_layer(seed: int) -> None:
    """Whether a forward reads its weight is tried with other numbers than the user's own draw."""
    torch.manual_seed(seed)
    model = nn.Sequential(Shifted(9, 6), nn.Linear(6, 3)).eval()

    found = mpq.find_layers(model, [torch.randint(0, 9, (4, 5))])

    assert [layer.name for layer in found] == ["0", "1"]


class Adapted(nn.Linear):
    """As LoRA: functions read matrices of its own, beside the layer's."""

    def __init__(self, inputs: int, outputs: int, is_merged: bool = False) -> None:
        super().__init__(inputs, outputs)
        self.down = nn.Parameter(torch.randn(2, inputs) * 0.3)
        self.up = nn.Parameter(torch.randn(outputs, 2) * 0.3)
        self.is_merged = is_merged

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        if self.is_merged:
            return F.linear(input, self.weight + self.up @ self.down, self.bias)
        return super().forward(input) + input @ self.down.T @ self.up.T


class Mixed(nn.Conv2d):
    """Mixes the channels behind the convolution, by an einsum."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.mix = nn.Parameter(torch.randn(outputs, outputs) * 0.3)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        return torch.einsum("nchw,dc->ndhw", super().forward(input), self.mix)


@pytest.mark.parametrize("kind", ["beside", "merged", "convolution", "root"])
def test_a_layer_stays_one_where_functions_read_more_of_its_parameters(kind: str) -> None:
    """LoRA in a subclass: the layer's own matrix is a layer beside those that functions read."""
    torch.manual_seed(0)
    layer = Mixed(3, 4) if kind == "convolution" else Adapted(6, 5, kind == "merged")
    head = nn.Sequential(nn.Flatten(), nn.Tanh(), nn.LazyLinear(3))
    data = [torch.randn(8, 3, 4, 4) if kind == "convolution" else torch.randn(8, 6)] * 2
    model = layer if kind == "root" else nn.Sequential(layer, *head)
    model.eval()(data[0])
    estimation = on_network(model, data)
    name = "" if kind == "root" else "0"
    assert name in {x.name for x in estimation.network.layers}
    coverage = estimation.network.coverage
    assert coverage is not None
    # A product of two weights is none with examples: both are named, and stay as they are.
    outside = {"0.up", "0.down"} if kind == "merged" else set()
    assert {x.name for x in coverage.weights_outside} == outside
    predicted = mpq.ESTIMATORS.build("sketch", 0).estimate(estimation).table.values
    measured = mpq.ESTIMATORS.build("measured", 0).estimate(estimation).table.values
    # Without the last column, fp32.
    assert predicted[:, :3] == pytest.approx(measured[:, :3], rel=0.8)


@pytest.mark.parametrize("name", ["sketch", "hessian-form", "output-gradient"])
def test_inputs_are_rounded_behind_the_hooks_of_the_user(name: str) -> None:
    """A hook that halves a layer's input is as a module before it: ranges are those of halves."""
    torch.manual_seed(0)
    first, head = nn.Linear(6, 5), nn.Linear(5, 3)
    data = [torch.randn(8, 6) for _ in range(2)]
    plain = Net(lambda m, x: m.head(m.first(x * 0.5).tanh()), first=first, head=head)
    expected = table(name, plain, data)
    first.register_forward_pre_hook(lambda _, args: (args[0] * 0.5,))
    hooked = Net(lambda m, x: m.head(m.first(x).tanh()), first=first, head=head)
    assert table(name, hooked, data) == pytest.approx(expected, rel=1e-4)
