"""The augmented Hessian against a dense Hessian of all weights and inputs."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.errors import InputError
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.problem.cost_table import INPUTS, WEIGHTS
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import AugmentedHessian, Estimation, HessianTrace
from mpq.sensitivity.augmented_hessian import terms_between
from mpq.sensitivity.curvature.hessian_products import objective

CHOICES = tuple(map(Precision.parse, ("w2a8", "w4a4d", "w4a8", "w2a4d", "w32a4d", "fp32")))


@pytest.fixture
def on() -> Estimation:
    """Two layers with a nonlinearity between, examples with targets in two batches."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).eval()
    x, y = examples()
    data = Calibration([(x[:2], y[:2]), (x[2:], y[2:])])
    network = Network.of(model, data)
    quantizer = Quantizer(ActivationRanges.calibrate(network, data, CHOICES))
    return Estimation(network, data, quantizer, CHOICES)


def examples() -> tuple[Tensor, Tensor]:
    """Six, with targets."""
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(6, 4, generator=generator), torch.randint(0, 3, (6,), generator=generator))


def everything(on: Estimation) -> tuple[Tensor, list[list[Tensor]]]:
    """Dense Hessian of the summed cross entropy, and at every candidate the changes of tensors."""
    model: Any = on.network.module
    x, y = examples()
    read = [x, model[:2](x).detach()]
    own = [model[i].weight.detach() for i in (0, 2)]
    shapes = [own[0].shape, read[0].shape, own[1].shape, read[1].shape]
    changes: list[list[Tensor]] = [[] for _ in CHOICES]
    for choice, found in zip(CHOICES, changes, strict=True):
        for k, name in enumerate(("0", "2")):
            weight = on.rounded_weight(name, choice.weight) - own[k]
            given = on.rounded_input(name, read[k], choice.activation) - read[k]
            found += [weight.flatten().double(), given.flatten().double()]

    def loss(change: Tensor) -> Tensor:
        w0, x0, w1, x1 = (c.reshape(s) for c, s in zip(
            change.split([s.numel() for s in shapes]), shapes, strict=True))  # fmt: skip
        hidden = F.linear(x.double() + x0, own[0].double() + w0, model[0].bias.double()).tanh()
        out = F.linear(hidden + x1, own[1].double() + w1, model[2].bias.double())
        return F.cross_entropy(out, y, reduction="sum")

    size = sum(s.numel() for s in shapes)
    hessian: Any = torch.autograd.functional.hessian(loss, torch.zeros(size, dtype=torch.float64))
    return hessian, changes


def dense_terms(on: Estimation) -> Any:
    """``[4, B]`` of both layers' weights and inputs: own change, and the others' by the Hessian."""
    hessian, changes = everything(on)
    expected = np.zeros((4, len(CHOICES)))
    for b, parts in enumerate(changes):
        sizes = [len(part) for part in parts]
        along, start = (hessian @ torch.cat(parts)).split(sizes), 0
        for t, part in enumerate(parts):
            block = hessian[start : start + len(part), start : start + len(part)]
            expected[t, b] = float(part @ (along[t] - block @ part)) / 6
            start += len(part)
    return expected


def test_terms_between_are_those_of_the_dense_hessian(on: Estimation) -> None:
    """A tensor's change against those of all others, without its own block; over two batches."""
    expected = dense_terms(on)

    found = terms_between(on, objective(on.network, "cross-entropy"))

    np.testing.assert_allclose(found[WEIGHTS], expected[::2], rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(found[INPUTS], expected[1::2], rtol=1e-3, atol=1e-7)


def test_the_table_adds_them_to_the_traces(on: Estimation) -> None:
    """What others take back is not counted on; a candidate that rounds nothing costs nothing."""
    options = (7, "hessian", "cross-entropy")
    terms = dense_terms(on).clip(min=0)
    expected = HessianTrace(*options).estimate(on).table.values + (terms[::2] + terms[1::2]) / 2

    found = AugmentedHessian(*options).estimate(on).table

    np.testing.assert_allclose(found.values, expected, rtol=1e-3, atol=1e-7)
    assert (found.values[:, -1] == 0).all()
    assert (dense_terms(on) < 0).any(), "there is something that is not counted on"


def test_a_single_layer_has_no_other(on: Estimation) -> None:
    """Weights of one layer alone: the trace is all there is; options are checked."""
    model, data = nn.Sequential(nn.Linear(4, 3)).eval(), Calibration([examples()])
    network, choices = Network.of(model, data), (Precision.parse("w2"), Precision.parse("w4"))
    alone = Estimation(network, data, on.quantizer, choices)

    found = AugmentedHessian().estimate(alone).table.values

    np.testing.assert_allclose(found, HessianTrace().estimate(alone).table.values, rtol=1e-6)
    with pytest.raises(InputError, match="loss is one of"):
        AugmentedHessian(loss="kl")
