"""PB-LLM: shares of salient weights of a tiny network, by magnitude, by trying everything."""

from math import ceil, log2

import numpy as np
import pytest

import mpq
from tests.recipes.reference import LAYERS, Floats, data, least, tiny, weights_of

PERCENTS = (5, 10, 20, 30)


def error(w: Floats, percent: float) -> float:
    """Relative squared error of signs times a mean magnitude, without the salient weights."""
    order = np.argsort(-(w**4 / (w**2).mean(axis=1, keepdims=True)), axis=None, kind="stable")
    count, costs = ceil(percent * w.size / 100), list[float]()
    for share in (0, *(0.25 * 2**i for i in range(8))):
        taken = ceil(share * w.size / 100)
        if taken > count:
            continue
        left = np.ones(w.size, dtype=bool)
        left[order[:taken]] = False
        kept = left.reshape(w.shape)
        scale = (np.abs(w) * kept).sum(1, keepdims=True) / np.maximum(kept.sum(1, keepdims=True), 1)
        errors = (w - np.where(w > 0, scale, -scale)) ** 2
        worst = np.argsort(-np.where(kept, errors, np.inf), axis=None, kind="stable")
        costs.append(float(errors.ravel()[worst[count:]].sum()))
    return float(min(costs) / (w**2).sum())


def bits(w: Floats, percent: float) -> float:
    """Signs, a scale for each row, salient weights, and where they are."""
    count, (rows, inputs) = ceil(percent * w.size / 100), w.shape
    places = count * ceil(log2(inputs)) + rows * inputs.bit_length()
    return float(w.size + 32 * rows + 16 * count + min(places, w.size))


@pytest.mark.parametrize("limit", [8.6, 9.4, 11.2])
def test_shares_of_a_tiny_network(limit: float) -> None:
    """As a reference finds them, each weight to its sign."""
    weights = [w.double().numpy() for w in weights_of(tiny())]
    loss = np.array([[error(w, percent) for percent in PERCENTS] for w in weights])
    cost = np.array([[bits(w, percent) for percent in PERCENTS] for w in weights])
    task = mpq.Task(tiny(), data, data, rounding="nearest")

    found = mpq.search(task, {"effective_bits": limit}, recipe="pb-llm", keep=["rounding"])

    chosen = [str(found.assignment.precisions[name].weight.branch) for name in LAYERS]
    total = sum(w.size for w in weights)
    expected = least(loss, cost, limit * total)
    assert chosen == [f"s{PERCENTS[column]}%" for column in expected]
    assert len(set(chosen)) > 1
