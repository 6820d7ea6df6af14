"""QuantMCU: bits of inputs by the entropy that they lose, of a tiny network."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

import mpq
from tests.recipes.reference import LAYERS, Floats, data, least, tiny, weights_of

BITS = (2, 4, 8)


def entropy(x: Tensor, low: float, high: float) -> float:
    """In nats, of 256 equal bins."""
    counts = np.bincount(((x.double() - low) * 256 / (high - low)).clamp(0, 255).long().flatten())
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def entropies_lost() -> Floats:
    """``[L, B]``, of what every layer reads."""
    net, x, rows = tiny(), torch.cat([x for x, _ in data()]), []
    for i in range(0, 9, 2):
        read = net[:i](x).detach()
        low, high, row = float(read.min()), float(read.max()), []
        for b in BITS:
            scale = (max(high, 0.0) - min(low, 0.0)) / (2**b - 1)
            zero = round(-min(low, 0.0) / scale)
            codes = ((read / scale).round() + zero).clamp(0, 2**b - 1)
            lost = entropy(read, low, high) - entropy((codes - zero) * scale, low, high)
            row.append(max(lost, 0.0))
        rows.append(row)
    return np.array(rows)


def bit_operations() -> Floats:
    """``[L, B]`` at weights of 8 bits."""
    return np.array([[w.numel() * 8.0 * b for b in BITS] for w in weights_of(tiny())])


def found_bits(limits: dict[str, float | str]) -> list[int]:
    """What the recipe takes."""
    found = mpq.search(mpq.Task(tiny(), data, data), limits, recipe="quantmcu")
    chosen = [found.assignment.precisions[name] for name in LAYERS]
    assert all(p.weight.number.bits == 8 for p in chosen)
    return [p.activation.number.bits for p in chosen]


@pytest.mark.parametrize("limit", [6000, 9000, 12000])
def test_the_least_entropy_is_lost(limit: float) -> None:
    """Within bit operations, by trying everything."""
    expected = least(entropies_lost(), bit_operations(), limit)

    assert found_bits({"bit_operations": limit}) == [BITS[column] for column in expected]


@pytest.mark.parametrize("weight", [0.3, 0.4, 0.5])
def test_the_best_scores_are_the_answer_at_their_bit_operations(weight: float) -> None:
    """Each feature map by the paper's score alone, for a given lambda."""
    lost, cost = entropies_lost(), bit_operations()
    saved = (cost[:, -1:] - cost) / cost[:, -1].sum()
    score = -weight * lost / lost.max(1).sum() + (1 - weight) * saved
    columns = score.argmax(1)

    found = found_bits({"bit_operations": float(cost[range(5), columns].sum())})

    assert found == [BITS[column] for column in columns]


def test_peak_ram_is_met() -> None:
    """What a layer reads and what it writes, in the format of its reader, fit at once."""
    widths, lost = (6, 8, 7, 8, 7), entropies_lost()
    limit = 11.0

    def fits(c: tuple[int, ...]) -> bool:
        held = [widths[i] * BITS[c[i]] for i in range(5)]
        # The output has no reader: it is held in the format of the layer that makes it.
        both = [
            -(-a // 8) - (-b // 8) for a, b in zip(held, [*held[1:], 3 * BITS[c[4]]], strict=True)
        ]
        return max(both) <= limit

    every = [c for c in product(range(3), repeat=5) if fits(c)]
    expected = min(every, key=lambda c: sum(lost[i, j] for i, j in enumerate(c)))

    assert found_bits({"peak_ram": limit}) == [BITS[column] for column in expected]
