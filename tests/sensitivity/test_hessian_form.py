"""The quadratic form against dense Hessians, and against the divergence that it approximates."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.errors import DataError, InputError
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation, HessianForm, OutputSketch, SensitivityEstimator
from mpq.sensitivity.curvature.hessian_products import objective
from mpq.sensitivity.hessian_form import quadratic_forms
from tests.sensitivity.bent import Bent

CHOICES = tuple(map(Precision.parse, ("w2", "w32a4d", "w2a4d", "w4a8", "fp32")))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Tool:
    """A network, its data, its quantizer."""

    def __init__(
        self, model: nn.Module, data: list[Any], candidates: tuple[Precision, ...] = CHOICES
    ) -> None:
        self.data = Calibration(data)
        self.network = Network.of(model.eval(), self.data)
        self.candidates = candidates
        ranges = ActivationRanges.calibrate(self.network, self.data, candidates)
        self.quantizer = Quantizer(ranges)

    def table(self, estimator: SensitivityEstimator) -> npt.NDArray[np.float64]:
        """``[L, B]``."""
        return estimator.estimate(
            Estimation(self.network, self.data, self.quantizer, self.candidates)
        ).table.values

    def changes(self, name: str, x: Tensor, candidate: Precision) -> Tensor:
        """What a precision changes of the weight and, for every example, of the input, flat."""
        layer_module, weight = self.network.layer_module(name), self.network.weight(name)
        of_weight = self.quantizer.weight(name, layer_module, candidate.weight) - weight
        of_input = self.quantizer.activation(name, layer_module, x, candidate.activation) - x
        return torch.cat([of_weight.flatten(), of_input.flatten()]).double()


def two_layers() -> nn.Sequential:
    """Two layers with a nonlinearity between."""
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def labelled() -> tuple[Tensor, Tensor]:
    """Examples with targets."""
    return torch.randn(6, 4), torch.randint(0, 3, (6,))


def dense_form(loss: Callable[[Tensor], Tensor], change: Tensor) -> float:
    """``change^T H change`` of the dense Hessian at no change."""
    hessian: Any = torch.autograd.functional.hessian(loss, torch.zeros_like(change))
    return float(change @ hessian @ change)


def loss_after(
    model: nn.Sequential, index: int, x: Tensor, y: Tensor | None
) -> Callable[[Tensor], Tensor]:
    """From changes of one layer's weight and input, flat, to the summed loss."""
    own = {name: value.detach().double() for name, value in model.named_parameters()}

    def logits(change: Tensor) -> Tensor:
        v = x.double()
        for i, part in enumerate(model):
            if isinstance(part, nn.Linear):
                weight = own[f"{i}.weight"]
                if i == index:
                    weight = weight + change[: weight.numel()].reshape(weight.shape)
                    v = v + change[weight.numel() :].reshape(v.shape)
                v = F.linear(v, weight, own[f"{i}.bias"])
            else:
                v = part(v)
        return v

    outputs, inputs = own[f"{index}.weight"].shape
    size = outputs * inputs + len(x) * inputs
    p = logits(torch.zeros(size, dtype=torch.float64)).softmax(dim=-1)

    def loss(change: Tensor) -> Tensor:
        log_q = logits(change).log_softmax(dim=-1)
        return (p * (p.log() - log_q)).sum() if y is None else F.nll_loss(log_q, y, reduction="sum")

    return loss


@pytest.mark.parametrize("kind", ["divergence", "cross-entropy"])
def test_every_cell_is_the_dense_form(kind: str) -> None:
    """Weights alone, inputs alone, both jointly; over batches of different sizes."""
    model, (x, y) = two_layers(), labelled()
    tool = Tool(model, [(x[:2], y[:2]), (x[2:], y[2:])])

    found = quadratic_forms(
        Estimation(tool.network, tool.data, tool.quantizer, CHOICES), objective(tool.network, kind)
    )

    read = {0: x, 2: model[:2](x).detach()}
    for row, (index, inputs) in enumerate(read.items()):
        loss = loss_after(model, index, x, None if kind == "divergence" else y)
        changes = [tool.changes(str(index), inputs, candidate) for candidate in CHOICES]
        expected = [dense_form(loss, change) / 6 for change in changes]
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-9)


def test_joint_changes_are_more_than_the_sum_of_their_parts() -> None:
    """The cross term of weight and input is part of the form."""
    tool = Tool(two_layers(), [torch.randn(6, 4)])

    weight, read, both = tool.table(HessianForm())[:, :3].T

    assert (abs(both - weight - read) > 0.01 * both).all()


def test_small_changes_cost_the_divergence() -> None:
    """At 8 bits nothing but the second order is left."""
    candidates = tuple(map(Precision.parse, ("w4", "w8", "w32a8d", "w8a8d")))
    model, x = two_layers().double(), torch.randn(40, 4, dtype=torch.float64)
    tool = Tool(model, [x], candidates)

    found = tool.table(HessianForm())

    read = {0: x, 2: model[:2](x).detach()}
    for row, (index, inputs) in enumerate(read.items()):
        loss = loss_after(model, index, x, None)
        measured = [float(loss(tool.changes(str(index), inputs, c))) / 40 for c in candidates]
        np.testing.assert_allclose(found[row, 1:], measured[1:], rtol=0.02)
        assert found[row, 0] == pytest.approx(measured[0], rel=0.3)


def test_the_sketch_estimates_the_same() -> None:
    """Its mean over many signs, in every cell."""
    tool = Tool(two_layers(), [torch.randn(6, 4).repeat(400, 1)])

    exact, sketched = tool.table(HessianForm()), tool.table(OutputSketch(num_probes=4))

    np.testing.assert_allclose(sketched, exact, rtol=0.15)


def test_a_negative_form_costs_nothing() -> None:
    """``log(1 + exp(-h^2))`` bends downwards near 0."""
    candidates = (Precision.parse("bf16"),)
    tool = Tool(Bent(), [(torch.ones(2, 1), torch.zeros(2, dtype=torch.long))], candidates)

    raw = quadratic_forms(
        Estimation(tool.network, tool.data, tool.quantizer, candidates),
        objective(tool.network, "cross-entropy"),
    )

    assert raw[0, 0] < 0
    assert tool.table(HessianForm(loss="cross-entropy")).tolist() == [[0.0]]


def test_a_shared_parameter_is_changed_layer_by_layer() -> None:
    """Each layer bears what its own use does, as if the other kept the parameter."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.second(torch.tanh(self.first(x)))
            return out

    model, x = Shared(), torch.randn(6, 4)
    candidates = (Precision.parse("w2"),)
    tool = Tool(model, [x], candidates)

    found = tool.table(HessianForm())

    weight = model.first.weight.detach().double()
    change = tool.changes("first", x, candidates[0])[: weight.numel()]

    def logits(d: Tensor, layer: int) -> Tensor:
        first, second = (weight + d.reshape(4, 4) * (layer == i) for i in range(2))
        return torch.tanh(x.double() @ first.T) @ second.T

    p = logits(torch.zeros_like(change), 0).softmax(dim=-1)

    def loss(d: Tensor, layer: int) -> Tensor:
        return -(p * logits(d, layer).log_softmax(dim=-1)).sum()

    forms = [dense_form(partial(loss, layer=i), change) for i in range(2)]
    np.testing.assert_allclose(found[:, 0], 0.5 * np.array(forms) / 6, rtol=1e-4)


def test_a_loss_needs_its_targets() -> None:
    """And must be one that there is."""
    tool = Tool(two_layers(), [torch.randn(6, 4)])

    with pytest.raises(DataError, match="needs targets"):
        tool.table(HessianForm(loss="cross-entropy"))
    with pytest.raises(InputError, match="loss is one of divergence, cross-entropy; got 'kl'"):
        HessianForm(loss="kl")
