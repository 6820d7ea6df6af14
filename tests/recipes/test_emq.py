"""EMQ: bits of a tiny network, by the recipe's formula as a reference computes it."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import mpq
from mpq.recipes import recipe_of
from tests.recipes.reference import LAYERS, data, least, squared_errors, tiny, weights_of

RECIPE = recipe_of("emq")
BITS = (2, 4, 8)
OPERATIONS: dict[str, Any] = {
    "abs": torch.abs, "square": torch.square, "relu": torch.relu, "sigmoid": torch.sigmoid,
    "sqrt": lambda x: abs(x) ** 0.5, "log": lambda x: torch.log1p(abs(x)),
    "normalize": lambda x: (x - x.mean()) / x.std(correction=0), "sum": torch.sum,
    "mean": torch.mean, "norm": torch.linalg.vector_norm, "max": torch.max,
    "std": lambda x: x.std(correction=0), "__builtins__": {},
}  # fmt: skip


def inputs(i: int) -> dict[str, Tensor]:
    """Weight, mean gradient, root mean square of what it meets, mean square of gradients."""
    net, name = tiny(), LAYERS[i]
    x, labels = (torch.cat(parts) for parts in zip(*data(), strict=True))
    weight = net.get_parameter(f"{name}.weight")
    losses = F.cross_entropy(net(x), labels, reduction="none")
    each = torch.stack([torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in losses])
    met = net[: 2 * i](x).detach().square().mean(0).sqrt().expand(weight.shape)
    found = {"w": weight.detach(), "g": each.mean(0), "a": met, "h": each.square().mean(0)}
    return {letter: tensor.double() for letter, tensor in found.items()}


@pytest.mark.parametrize("share", [0.2, 0.4, 0.7])
def test_bits_of_a_tiny_network(share: float) -> None:
    """Importance times relative error, the least sum of all."""
    formula = RECIPE.sensitivity.removeprefix("zero-cost:formula=")
    importance = [abs(float(eval(formula, OPERATIONS, inputs(i)))) for i in range(5)]
    weights = weights_of(tiny())
    power = np.array([float(w.square().sum()) for w in weights])
    loss = np.array(importance)[:, None] * squared_errors(weights, BITS) / power[:, None]
    cost = np.array([w.numel() for w in weights])[:, None] * np.array([24.0 * b for b in BITS])
    limit = cost.min(1).sum() + share * (cost.max(1).sum() - cost.min(1).sum())
    task = mpq.Task(tiny(), data, data, candidates=["w2", "w4", "w8"])

    found = mpq.search(
        task, {"bit_operations": limit}, recipe="emq",
        sensitivity=f"{RECIPE.sensitivity},labels=targets",
    )  # fmt: skip

    bits = [found.assignment.precisions[name].weight.number.bits for name in LAYERS]
    assert bits == [BITS[c] for c in least(loss, cost, limit)]
