"""MixLLM: output features of all layers by what the loss rises with each alone at 4 bits."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import mpq
from tests.recipes.reference import LAYERS, data, tiny, weights_of


def affine(w: Tensor, bits: int) -> Tensor:
    """To nearest with a zero point, a scale in 16 bits for every row."""
    low, high = w.amin(1, keepdim=True).clamp(max=0), w.amax(1, keepdim=True).clamp(min=0)
    scale = ((high - low) / ((1 << bits) - 1)).half().float()
    zero = (-low / scale).round()
    return (((w / scale).round() + zero).clamp(0, 2**bits - 1) - zero) * scale


def gains() -> list[tuple[float, int, int]]:
    """Of every feature what 8 bits save, by squared gradients of each example; for a weight."""
    net, found = tiny(), []
    weights = [net.get_parameter(f"{name}.weight") for name in LAYERS]
    squares = [torch.zeros_like(w) for w in weights]
    for x, labels in data():
        for each, label in zip(x, labels, strict=True):
            slopes = torch.autograd.grad(F.cross_entropy(net(each), label), weights)
            squares = [s + g.square() / 32 for s, g in zip(squares, slopes, strict=True)]
    for i, (w, s) in enumerate(zip(weights_of(net), squares, strict=True)):
        rows = [(s * (affine(w, bits) - w).square()).sum(1) / 2 for bits in (4, 8)]
        saved = (rows[0] - rows[1]) / w.shape[1]
        found += [(float(gain), i, row) for row, gain in enumerate(saved)]
    return sorted(found, reverse=True)


@pytest.mark.parametrize("count", [3, 9, 20])
def test_the_most_salient_features_have_8_bits(count: int) -> None:
    """Of all layers together, as many as the limit holds."""
    weights = weights_of(tiny())
    first = {(i, row) for _, i, row in gains()[:count]}
    total = 4 * sum(w.numel() for w in weights) + 4 * sum(weights[i].shape[1] for i, _ in first)

    found = mpq.search(
        mpq.Task(tiny(), data, data, candidates=["w4zg128", "w8zg128"]),
        {"bit_operations": total * 24}, recipe="mixllm",
    )  # fmt: skip

    for i, name in enumerate(LAYERS):
        weight = found.assignment.precisions[name].weight
        own = [weight.number.bits] * len(weights[i])
        if weight.channels is not None:
            own = [weight.channels.numbers[c].bits for c in weight.channels.columns]
        assert own == [8 if (i, row) in first else 4 for row in range(len(weights[i]))]
