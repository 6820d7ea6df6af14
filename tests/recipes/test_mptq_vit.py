"""MPTQ-ViT: steps down of a tiny network, each measured, as a few lines of torch take them."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import mpq
from tests.recipes.reference import LAYERS, data, rounded, tiny

BITS = (8, 4, 3)


def divergence(bits: list[int], x: Tensor) -> float:
    """Mean KL divergence of the network with weights at these bits."""
    net, quantized = tiny(), deepcopy(tiny())
    with torch.no_grad():
        for name, b in zip(LAYERS, bits, strict=True):
            weight = quantized.get_parameter(f"{name}.weight")
            weight.copy_(rounded(weight, b))
        p, q = (each(x).log_softmax(1) for each in (net, quantized))
    return float(F.kl_div(q, p, log_target=True, reduction="batchmean"))


def expected_bits(limit: float) -> list[int]:
    """All at 8 bits, then the step of the least rise per bit saved, measured anew every time."""
    x = torch.cat([x for x, _ in data()])
    sizes = [tiny().get_parameter(f"{name}.weight").numel() for name in LAYERS]
    bits = [8] * 5
    while sum(s * b for s, b in zip(sizes, bits, strict=True)) > limit:
        here, best, step = divergence(bits, x), float("inf"), bits
        for i in range(5):
            if bits[i] == BITS[-1]:
                continue
            lower = [*bits[:i], BITS[BITS.index(bits[i]) + 1], *bits[i + 1 :]]
            ratio = (divergence(lower, x) - here) / (sizes[i] * (bits[i] - lower[i]))
            best, step = (ratio, lower) if ratio < best else (best, step)
        bits = step
    return bits


@pytest.mark.parametrize("mean", [3.3, 4.2, 6.0])
def test_bits_of_a_tiny_network(mean: float) -> None:
    """Weights only, whose rounding a reference has in a line; without its transformations."""
    task = mpq.Task(tiny(), data, data, candidates=["w3", "w4", "w8"])
    limit = 237 * mean

    found = mpq.search(task, {"bit_operations": limit * 24}, recipe="mptq-vit", keep=["transforms"])

    bits = [found.assignment.precisions[name].weight.number.bits for name in LAYERS]
    assert bits == expected_bits(limit)
