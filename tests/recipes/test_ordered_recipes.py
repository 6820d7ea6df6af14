"""Gradient-based PTQ and LRP-QViT: importances of a tiny network, and bits in that order."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import mpq
from tests.recipes.reference import (
    LAYERS,
    Floats,
    data,
    least,
    rounded,
    tiny,
    weights_of,
)

BITS = (3, 4, 8)


def snip() -> Floats:
    """Sum of |gradient x weight| of the mean cross entropy."""
    net, (x, y) = tiny(), (torch.cat(parts) for parts in zip(*data(), strict=True))
    F.cross_entropy(net(x), y).backward()
    found = [net.get_parameter(f"{name}.weight") for name in LAYERS]
    products = [w.detach() * w.grad for w in found if w.grad is not None]
    return np.array([float(product.abs().sum()) for product in products])


def relevance() -> Floats:
    """Shares of |input x gradient of the largest logit|."""
    net, x = tiny(), torch.cat([x for x, _ in data()])
    found = []
    for i in range(0, 9, 2):
        read = net[:i](x).detach().requires_grad_()
        (slope,) = torch.autograd.grad(net[i:](read).max(dim=1).values.sum(), read)
        found.append(float((read.detach() * slope).abs().sum()))
    return np.array(found) / sum(found)


CASES: dict[str, tuple[Callable[[], Floats], str]] = {
    "gradient-ptq": (snip, "zero-cost:proxy=snip,labels=targets"),
    "lrp-qvit": (relevance, "relevance:rule=gradient"),
}


@pytest.mark.parametrize("share", [0.3, 0.7])
@pytest.mark.parametrize("name", list(CASES))
def test_bits_of_a_tiny_network(name: str, share: float) -> None:
    """The least importance x relative error of all assignments in order, by trying everything."""
    importance, sensitivity = CASES[name][0](), CASES[name][1]
    weights = weights_of(tiny())
    errors = [[float((rounded(w, b) - w).square().sum() / w.square().sum()) for b in BITS]
              for w in weights]  # fmt: skip
    cost = np.array([[float(w.numel() * b * 8) for b in BITS] for w in weights])
    limit = cost.min(1).sum() + share * (cost.max(1).sum() - cost.min(1).sum())
    order = np.argsort(-importance).tolist()
    columns = least(importance[:, None] * np.array(errors), cost, limit,
                    lambda c: all(c[k] >= c[j] for k, j in pairwise(order)))  # fmt: skip
    # Inputs have 8 bits in all candidates, and a script rounds to nearest.
    task = mpq.Task(tiny(), data, data, candidates=[f"w{b}a8" for b in BITS], rounding="nearest")

    found = mpq.search(task, {"bit_operations": limit}, recipe=name, sensitivity=sensitivity,
                       keep=["rounding", "transforms", "activation_range"])  # fmt: skip

    bits = [found.assignment.precisions[layer].weight.number.bits for layer in LAYERS]
    assert bits == [BITS[c] for c in columns]
