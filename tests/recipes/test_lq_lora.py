"""LQ-LoRA: bits and group sizes of a tiny network, by Fisher information and trying everything."""

from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import mpq
from tests.recipes.reference import LAYERS, data, least, tiny, weights_of

CONFIGS = [(bits, size) for bits in (3, 4) for size in (2, 4, 8)]


def levels(bits: int) -> Tensor:
    """NormalFloat: quantiles of the normal distribution on both sides, and 0."""
    half = 2 ** (bits - 1)
    outermost = 1 - (1 / (4 * half - 2) + 1 / (4 * half)) / 2
    above, below = (
        [NormalDist().inv_cdf(p) for p in np.linspace(0.5, outermost, n + 1)[1:]]
        for n in (half, half - 1)
    )
    return torch.tensor(sorted([-x for x in below] + [0.0] + above)) / max(above)


def normal_float(w: Tensor, bits: int, size: int) -> Tensor:
    """To the nearest level, at the largest magnitude of each group, in 16 bits."""
    parts = []
    for part in w.split(size, dim=1):
        scale = part.abs().amax(1, keepdim=True).half().float()
        codes = ((part / scale)[..., None] - levels(bits)).abs().argmin(-1)
        parts.append(levels(bits)[codes] * scale)
    return torch.cat(parts, dim=1)


def losses() -> list[list[float]]:
    """``[L, C]``: Fisher information of the data's labels x squared error."""
    net = tiny()
    weights = [net.get_parameter(f"{name}.weight") for name in LAYERS]
    squares = [torch.zeros_like(w) for w in weights]
    for x, labels in data():
        for each, label in zip(x, labels, strict=True):
            slopes = torch.autograd.grad(F.cross_entropy(net(each), label), weights)
            squares = [s + g.square() for s, g in zip(squares, slopes, strict=True)]
    pairs = list(zip(weights_of(net), squares, strict=True))
    return [[float((s * (normal_float(w, *c) - w).square()).sum()) for c in CONFIGS]
            for w, s in pairs]  # fmt: skip


@pytest.mark.parametrize("share", [0.2, 0.45, 0.7])
def test_bits_and_sizes_of_a_tiny_network(share: float) -> None:
    """Without the product, which few weights leave no room for, and with scales in 16 bits."""
    shapes = [w.shape for w in weights_of(tiny())]
    cost = np.array([[o * (k * bits + 16 * -(-k // size)) for bits, size in CONFIGS]
                     for o, k in shapes])  # fmt: skip
    limit = cost.min(1).sum() + share * (cost.max(1).sum() - cost.min(1).sum())
    candidates = [f"wnf{bits}g{size}" for bits, size in CONFIGS]
    task = mpq.Task(tiny(), data, data, candidates=candidates, rounding="nearest")

    # A result counts whole bytes of every weight, which these are, and biases.
    found = mpq.search(
        task, {"weight_bytes": limit // 8 + 4 * 33}, recipe="lq-lora", keep=["rounding"]
    )

    chosen = [found.assignment.precisions[name].weight for name in LAYERS]
    columns = least(np.array(losses()), np.ceil(cost / 8), limit // 8)
    assert [(f.number.bits, f.group_size) for f in chosen] == [CONFIGS[c] for c in columns]
