"""What is read at every layer is what autograd has there, in a quantized network, too."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from mpq.errors import ModelError
from mpq.network.examples import Batch, Calibration
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer, quantized
from mpq.quantization.rounding import quantize_activation
from mpq.sensitivity.passes.backward_pass import Tap, read_gradients
from tests.sensitivity.functions import Function


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Kept:
    """Keeps everything that is read, call by call."""

    def __init__(self, reads_inputs: bool = True) -> None:
        self.reads_inputs = reads_inputs
        self.inputs: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.outputs: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def read_input(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""
        self.inputs.setdefault(tap.name, []).append((x, g))

    def read_output(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""
        self.outputs.setdefault(tap.name, []).append((x, g))


def read(
    model: nn.Module,
    x: Tensor,
    u: Tensor,
    precisions: Mapping[str, Precision] | None = None,
    reads_inputs: bool = True,
) -> tuple[Kept, Tensor]:
    """What one pass tells, and its outputs; ``u`` is where the backward pass starts."""
    network, held, kept = Network.of(model.eval(), [x]), precisions or {}, Kept(reads_inputs)
    ranges = ActivationRanges.calibrate(network, Calibration([x]), held.values())
    with quantized(network, held, Quantizer(ranges)):
        outputs = read_gradients(network, Batch((x,)), kept, lambda f: u.reshape(f.shape))
    assert all(parameter.grad is None for parameter in network.module.parameters())
    return kept, outputs


def same(found: tuple[Tensor, Tensor], *expected: Tensor | None) -> None:
    """Both tensors, up to rounding; neither carries a graph."""
    for tensor, other in zip(found, expected, strict=True):
        assert other is not None
        assert not tensor.requires_grad
        torch.testing.assert_close(tensor, other.detach())


def test_inputs_and_gradients_are_those_of_autograd() -> None:
    """Of every layer's input and output, against tensors that keep their gradient."""
    layers = {"a": nn.Linear(5, 4), "b": nn.Linear(4, 3)}
    model = Function(lambda m, x: m.b(m.a(x).tanh()), **layers)
    x, u = torch.randn(7, 5), torch.randn(7, 3)

    kept, outputs = read(model, x, u)

    leaf = x.clone().requires_grad_()
    first = layers["a"](leaf)
    hidden = first.tanh()
    last = layers["b"](hidden)
    for tensor in (first, hidden, last):
        tensor.retain_grad()
    last.backward(u)
    torch.testing.assert_close(outputs, last.detach()[:, None])
    assert not outputs.requires_grad
    assert {name: len(calls) for name, calls in kept.inputs.items()} == {"a": 1, "b": 1}
    same(kept.inputs["a"][0], leaf, leaf.grad)
    same(kept.inputs["b"][0], hidden, hidden.grad)
    same(kept.outputs["a"][0], leaf, first.grad)
    same(kept.outputs["b"][0], hidden, last.grad)


def test_layers_that_read_one_tensor_have_a_share_each() -> None:
    """Rounding one layer's input leaves the other's as it is: gradients are not added up."""
    layers = {"a": nn.Linear(5, 3), "b": nn.Linear(5, 3, bias=False)}
    model = Function(lambda m, x: m.a(x) * 2 + m.b(x).relu() + x[:, :3], **layers)
    x, u = torch.randn(7, 5), torch.randn(7, 3)

    kept, _ = read(model, x, u)

    passed = u * (layers["b"](x) > 0)
    same(kept.inputs["a"][0], x, 2 * u @ layers["a"].weight)
    same(kept.inputs["b"][0], x, passed @ layers["b"].weight)
    same(kept.outputs["a"][0], x, 2 * u)
    same(kept.outputs["b"][0], x, passed)


def test_a_layer_is_read_once_per_call() -> None:
    """In the order in which the backward pass reaches the calls: the last one first."""
    layer, x, u = nn.Linear(4, 4), torch.randn(6, 4), torch.randn(6, 4)

    kept, _ = read(Function(lambda m, x: m.a(m.a(x).tanh()), a=layer), x, u)

    hidden = layer(x).tanh()
    back = (u @ layer.weight) * (1 - hidden**2)
    same(kept.outputs["a"][0], hidden, u)
    same(kept.outputs["a"][1], x, back)
    same(kept.inputs["a"][0], hidden, u @ layer.weight)
    same(kept.inputs["a"][1], x, back @ layer.weight)


def test_inputs_are_not_read_where_not_wanted() -> None:
    """Their gradients take memory."""
    kept, _ = read(nn.Linear(5, 3), torch.randn(7, 5), torch.randn(7, 3), reads_inputs=False)

    assert kept.inputs == {}
    assert list(kept.outputs) == [""]


def test_one_row_for_all_examples_is_read_by_each() -> None:
    """Position ids ``[1, T]``: input and gradient have a row per example."""
    layers = {"token": nn.Embedding(9, 4), "place": nn.Embedding(5, 4)}
    places = torch.arange(5)[None]
    model = Function(lambda m, ids: m.token(ids) + m.place(places), **layers)
    ids, u = torch.randint(0, 9, (3, 5)), torch.randn(3, 5, 4)

    kept, _ = read(model, ids, u)

    assert kept.inputs == {}
    same(kept.outputs["token"][0], ids, u)
    same(kept.outputs["place"][0], places.expand(3, 5), u)


W4A2, W4A2D = map(Precision.parse, ("w4a2", "w4a2d"))


@pytest.mark.parametrize("precision", [W4A2, W4A2D], ids=str)
def test_in_a_quantized_network_the_input_is_seen_before_rounding(precision: Precision) -> None:
    """Each layer's input as it came; its output's gradient is read with the input as rounded."""
    layers = {"a": nn.Linear(5, 4), "b": nn.Linear(4, 3)}
    model = Function(lambda m, x: m.b(m.a(x).tanh()), **layers)
    x, u = torch.randn(7, 5), torch.randn(7, 3)

    kept, _ = read(model, x, u, {"a": precision, "b": precision})

    quantizer = Quantizer(ActivationRanges({}))
    first, second = (quantizer.weight(n, m, precision.weight) for n, m in layers.items())
    read_by_a, read_by_b = kept.outputs["a"][0][0], kept.outputs["b"][0][0]
    assert all(len(row.unique()) <= 4 for row in (*read_by_a, *read_by_b))
    hidden = (read_by_a @ first.T + layers["a"].bias).tanh()
    torch.testing.assert_close(kept.inputs["a"][0][0], x)
    same(kept.inputs["b"][0], hidden, u @ second)


@pytest.mark.parametrize("precision", [W4A2, W4A2D], ids=str)
def test_gradients_pass_straight_through_rounded_inputs(precision: Precision) -> None:
    """As if the input were not rounded, also outside of the range, where a clamp would stop it."""
    model = Function(lambda m, x: m.b(m.a(x)), a=nn.Linear(5, 4), b=nn.Linear(4, 3))
    x, u = torch.randn(50, 5), torch.randn(50, 3)

    kept, _ = read(model, x, u, {"b": precision})

    came, g = kept.inputs["b"][0]
    rounded = kept.outputs["b"][0][0]
    clipped = (came < rounded.min()) | (came > rounded.max())
    assert precision == W4A2D or bool(clipped.any())
    assert bool((g != 0).all())
    same(kept.outputs["a"][0], x, g)  # what leaves the rounding is what came into it


def test_rounding_within_no_grad_is_the_same() -> None:
    """The straight-through estimator changes no number."""
    model, x = nn.Linear(5, 3).eval(), torch.randn(7, 5)
    network = Network.of(model, [x])
    quantizer = Quantizer(ActivationRanges({}))

    with quantized(network, {"": W4A2D}, quantizer):
        leaf = x.clone().requires_grad_()
        tracked = network.module(leaf)
        tracked.sum().backward()
        with torch.no_grad():
            plain = network.module(x)

    rounded = quantize_activation(x, W4A2D.activation, None, 1)
    weight = quantizer.weight("", network.layer_module(""), W4A2D.weight)
    torch.testing.assert_close(plain, rounded @ weight.T + model.bias.detach())
    assert torch.equal(tracked.detach(), plain)
    torch.testing.assert_close(leaf.grad, weight.sum(dim=0).expand(7, 5))


def test_hooks_are_removed_after_a_failure() -> None:
    """An exception from the reader leaves the network as it was."""

    class Failing(Kept):
        def read_output(self, tap: Tap, x: Tensor, g: Tensor) -> None:
            raise RuntimeError("enough")

    network, x = Network.of(nn.Linear(5, 3).eval(), [torch.randn(2, 5)]), torch.randn(2, 5)
    module = network.module
    # One of its own: every pass begins with copies of its inputs.
    before = list(module._forward_pre_hooks)

    with pytest.raises(RuntimeError, match="enough"):
        read_gradients(network, Batch((x,)), Failing(), torch.ones_like)

    assert not module._forward_hooks
    assert list(module._forward_pre_hooks) == before
    assert not module(x).requires_grad


def test_output_that_depends_on_no_layer_is_an_error() -> None:
    """There is nothing to differentiate, and that is said."""
    model = Function(lambda m, x: m.a(x).detach(), a=nn.Linear(4, 3))

    with pytest.raises(ModelError, match="does not depend on any quantizable layer"):
        read(model, torch.randn(2, 4), torch.ones(2, 3))
