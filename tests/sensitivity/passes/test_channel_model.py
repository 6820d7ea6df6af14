"""Prices of channels by a model of few numbers, and how far their own are drawn to it."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mpq.network.layer import Layer
from mpq.network.weight_layout import layout_of
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import ORIGINAL, Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity.passes.backward_pass import Tap
from mpq.sensitivity.passes.channel_model import ChannelModel, tempered
from mpq.sensitivity.passes.weight_changes import WeightChanges

FORMATS = [Precision.parse(text).weight for text in ("w2", "w4")]
LAYERS: dict[str, tuple[Callable[[], nn.Module], str, int, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 4), "linear", 1, (5, 3, 6)),
    "convolution": (lambda: nn.Conv2d(4, 6, 3), "conv2d", 1, (5, 4, 6, 7)),
    "grouped": (lambda: nn.Conv1d(4, 6, 2, groups=2), "conv1d", 2, (5, 4, 8)),
}


def layer_of(module: nn.Module, kind: str, groups: int) -> Layer:
    shape = tuple(module.weight.shape)  # type: ignore[arg-type]
    return Layer("layer", kind, shape, shape[0], (), (), 0, 0, 0, groups=groups)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_model_is_its_formula(kind: str) -> None:
    """Squared gradients of an output, times squared changes by the squared inputs they meet."""
    torch.manual_seed(0)
    make, kind_name, groups, shape = LAYERS[kind]
    module, x = make(), torch.randn(shape)
    g = torch.randn_like(module(x))
    layer = layer_of(module, kind_name, groups)
    model, weight = ChannelModel([layer]), module.weight.detach()  # type: ignore[operator]
    model.add(Tap(layer, module, 5), x, g)
    changes = WeightChanges(
        "layer", module, weight, ORIGINAL.weight, FORMATS, Quantizer(ActivationRanges({}))
    )

    found = model.losses(changes)

    assert found is not None
    axis = -1 if kind == "linear" else 1
    outputs, inputs = (_squares(tensor, axis) for tensor in (g, x))
    for column, tensor_format in enumerate(FORMATS):
        rounded = changes.quantizer.weight("layer", module, tensor_format)
        change = (rounded - weight).double().square()
        for o in range(len(weight)):
            first = o // (len(weight) // groups) * weight.shape[1]
            read = inputs[first : first + weight.shape[1]]
            expected = (
                outputs[o]
                * (change[o].flatten(1) if kind != "linear" else change[o, :, None]).T
                @ read
            )
            assert found[o, column] == pytest.approx(float(expected.sum()), rel=1e-5)
    assert layout_of(module).to_rows(weight).shape[0] == len(found)


def _squares(tensor: Tensor, axis: int) -> Tensor:
    return tensor.double().movedim(axis, 0).flatten(1).square().sum(dim=1)


def test_what_it_adds_up_is_kept_and_restored() -> None:
    """As of one run over all calls."""
    module = nn.Linear(3, 2)
    layer = layer_of(module, "linear", 1)
    calls = [(torch.randn(4, 3), torch.randn(4, 2)) for _ in range(2)]
    whole, first, rest = (ChannelModel([layer]) for _ in range(3))
    for x, g in calls:
        whole.add(Tap(layer, module, 4), x, g)
    first.add(Tap(layer, module, 4), *calls[0])

    rest.restore(first.state)
    rest.add(Tap(layer, module, 4), *calls[1])

    assert {n: x.tolist() for n, x in rest.state.items()} == {
        n: x.tolist() for n, x in whole.state.items()
    }
    assert ChannelModel([]).state  # there is always something to restore


def test_layers_that_it_does_not_know() -> None:
    """An embedding's channels are read by few examples each."""
    table = nn.Embedding(5, 3)
    layer = layer_of(table, "embedding", 1)
    model = ChannelModel([layer])
    model.add(Tap(layer, table, 2), torch.tensor([[0], [1]]), torch.randn(2, 1, 3))
    changes = WeightChanges(
        "layer", table, table.weight.detach(), ORIGINAL.weight, FORMATS,
        Quantizer(ActivationRanges({})),
    )  # fmt: skip

    assert model.losses(changes) is None


@pytest.mark.parametrize("num_examples", [32, 4000])
def test_noisy_prices_are_drawn_to_the_model(num_examples: int) -> None:
    """By as much as brings them nearest to the truth; sums over channels stay."""
    rng = np.random.default_rng(0)
    truth = np.exp(rng.normal(0, 2, (300, 1)) + np.array([3.0, 0.0]))
    model = truth * np.exp(rng.normal(0, 0.3, truth.shape))
    squares = truth * rng.chisquare(1, (num_examples, *truth.shape))
    own = squares.mean(axis=0)
    variance = ((squares**2).mean(axis=0) / own**2 - 1) / num_examples

    found = tempered(own, variance, model)

    def error(tried: np.ndarray) -> float:
        logs = np.log(tried / truth)
        return float(np.var(logs - logs.mean(axis=0)))

    np.testing.assert_allclose(found.sum(axis=0), own.sum(axis=0), rtol=1e-12)
    assert error(found) <= 1.02 * min(error(own), error(model))
    if num_examples == 4000:
        np.testing.assert_allclose(found, own, rtol=0.2)


def test_what_loses_nothing_stays_so() -> None:
    """A channel or a format without a loss, and a model that says nothing."""
    own = np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 0.0]])

    found = tempered(own, np.full_like(own, 0.1), np.ones_like(own))

    assert found[:, 0].tolist() == [0, 0, 0]
    assert found[2, 1] == 0
    assert tempered(own, own, np.zeros_like(own)) is own
