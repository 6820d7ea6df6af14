"""AMQ: the best of all assignments, where all can be measured."""

from copy import deepcopy
from itertools import product

import torch
from torch.nn import functional as F

import mpq
from tests.recipes.reference import LAYERS, data, rounded, tiny

BITS = (3, 8)


def best_of_all(limit: float) -> list[int]:
    """The least divergence of the whole network within a limit, each assignment measured."""
    net = tiny()
    x = torch.cat([x for x, _ in data()])
    sizes = [net.get_parameter(f"{name}.weight").numel() for name in LAYERS]
    losses: dict[tuple[int, ...], torch.Tensor] = {}
    with torch.no_grad():
        original = net(x).log_softmax(1)
        for bits in product(BITS, repeat=5):
            if sum(s * b for s, b in zip(sizes, bits, strict=True)) > limit:
                continue
            quantized = deepcopy(net)
            for name, b in zip(LAYERS, bits, strict=True):
                weight = quantized.get_parameter(f"{name}.weight")
                weight.copy_(rounded(weight, b))
            found = quantized(x).log_softmax(1)
            losses[bits] = F.kl_div(found, original, log_target=True, reduction="batchmean")
    best = min(losses, key=lambda bits: float(losses[bits]))
    return list(best)


def test_bits_of_a_tiny_network() -> None:
    """With as many measurements as there are assignments nothing is left to the predictor."""
    task = mpq.Task(tiny(), data, data, candidates=["w3", "w8"])
    limit = 237 * 4.6

    found = mpq.search(
        task, {"bit_operations": limit * 24}, recipe="amq",
        solver="surrogate:is_measured=true,num_trials=32",
    )  # fmt: skip

    bits = [found.assignment.precisions[name].weight.number.bits for name in LAYERS]
    assert bits == best_of_all(limit)
