"""EvoPress: the bits that an evolution of its own comes to."""

import random
from copy import deepcopy

import torch
from torch.nn import functional as F

import mpq
from tests.recipes.reference import LAYERS, data, rounded, tiny

BITS = (2, 3, 4, 5, 6)


def evolved(limit: float) -> list[int]:
    """From uniform 4 bits: of 16 children with one to three switches the best one, if better."""
    net, x, draw = tiny(), torch.cat([x for x, _ in data()]), random.Random(7)
    sizes = [net.get_parameter(f"{name}.weight").numel() for name in LAYERS]
    original = net(x).detach().log_softmax(1)

    def loss(bits: list[int]) -> float:
        quantized = deepcopy(net).requires_grad_(False)
        for name, b in zip(LAYERS, bits, strict=True):
            weight = quantized.get_parameter(f"{name}.weight")
            weight.copy_(rounded(weight, b))
        found = quantized(x).log_softmax(1)
        return float(F.kl_div(found, original, log_target=True, reduction="batchmean"))

    best = [4] * 5
    for _ in range(40):
        children = [best]
        while len(children) < 17:
            child = list(best)
            for _ in range(min(draw.randint(1, 3), draw.randint(1, 3))):
                child[draw.choice([i for i in range(5) if child[i] > 2])] -= 1
                child[draw.choice([i for i in range(5) if child[i] < 6])] += 1
            if sum(s * b for s, b in zip(sizes, child, strict=True)) <= limit:
                children.append(child)
        best = min(children, key=loss)
    return best


def test_bits_of_a_tiny_network() -> None:
    """Both come to the same, with other draws, on weights to nearest."""
    candidates = [f"w{bits}" for bits in BITS]
    task = mpq.Task(tiny(), data, data, candidates=candidates, rounding="nearest")
    limit = 237 * 4.2

    found = mpq.search(
        task, {"bit_operations": limit * 24}, recipe="evopress",
        solver="level-switch:is_measured=true,num_trials=400",
    )  # fmt: skip

    bits = [found.assignment.precisions[name].weight.number.bits for name in LAYERS]
    assert bits == evolved(limit)
