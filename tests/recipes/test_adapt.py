"""AdaPT: histograms of a tiny network's weights, and one threshold for all layers."""

import numpy as np
import pytest
import torch
from torch import Tensor

import mpq
from tests.recipes.reference import LAYERS, data, rounded, tiny, weights_of

BITS = (2, 3, 4, 6, 8)


def divergence(w: Tensor, bits: int) -> float:
    """KL divergence of 128 bins over the weight's range, a thousandth spread over all of them."""
    low, high = float(w.min()), float(w.max())
    shares = []
    for x in (w, rounded(w, bits)):
        place = ((x.double() - low) * 128 / (high - low)).clamp(0, 127).long().flatten()
        counts = torch.bincount(place, minlength=128).double()
        shares.append(0.999 * counts / counts.sum() + 0.001 / 128)
    p, q = shares
    return float((p * (p / q).log()).sum())


@pytest.mark.parametrize("mean", [3.1, 4.4, 6.2])
def test_bits_of_a_tiny_network(mean: float) -> None:
    """The least threshold within the limit: every layer's fewest bits that lose no more."""
    weights = weights_of(tiny())
    lost = np.array([[divergence(w, b) for b in BITS] for w in weights])
    lost -= lost.min(axis=1, keepdims=True)
    sizes, limit = np.array([w.numel() for w in weights]), 237 * mean
    for epsilon in np.unique(lost):
        columns = (lost <= epsilon).argmax(axis=1)  # bits rise along a row
        if (sizes * np.array(BITS)[columns]).sum() <= limit:
            break
    task = mpq.Task(tiny(), data, data, candidates=[f"w{b}a16" for b in BITS])

    # A number of fp16 has 11 bits to multiply.
    found = mpq.search(task, {"bit_operations": limit * 11}, recipe="adapt")

    bits = [found.assignment.precisions[name].weight.number.bits for name in LAYERS]
    assert bits == [BITS[c] for c in columns]
