"""HAWQ-V2: bits of weights and inputs, monotone in their traces, of a tiny network."""

from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch

import mpq
from mpq.recipes import recipe_of
from tests.recipes.reference import LAYERS, Floats, data, hessians, squared_errors, tiny, weights_of

BITS = (2, 4, 8)


def input_side() -> tuple[Floats, Floats]:
    """Mean trace of what each layer reads, and the squared error of rounding it ``[L, B]``."""
    net, traces, errors = tiny(), [], []
    (x, labels) = (torch.cat(parts) for parts in zip(*data(), strict=True))
    for i in range(0, 9, 2):
        read = net[:i](x).detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(net[i:](read), labels, reduction="sum")
        (slope,) = torch.autograd.grad(loss, read, create_graph=True)
        diagonal = [torch.autograd.grad(slope[:, k].sum(), read, retain_graph=True)[0][:, k].sum()
                    for k in range(read.shape[1])]  # fmt: skip
        traces.append(float(torch.stack(diagonal).sum()) / read.numel())
        read = read.detach()
        low, high = float(read.min().clamp(max=0)), float(read.max().clamp(min=0))
        row = []
        for b in BITS:
            scale = (high - low) / (2**b - 1)
            zero = round(-low / scale)
            codes = ((read / scale).round() + zero).clamp(0, 2**b - 1)
            row.append(float(((codes - zero) * scale - read).double().square().sum(1).mean()))
        errors.append(row)
    return np.array(traces), np.array(errors)


def expected_bits(limit: float) -> list[tuple[int, int]]:
    """The least sum of mean trace x error in both orders, by trying everything."""
    net, (input_traces, input_errors) = tiny(), input_side()
    weights, pairs = weights_of(net), list(product(BITS, BITS))
    sizes = np.array([w.numel() for w in weights])
    traces = np.array([float(h.trace()) for h in hessians(net, list(data()))]) / sizes
    of_weights = traces.clip(min=0)[:, None] * squared_errors(weights, BITS)
    of_inputs = input_traces.clip(min=0)[:, None] * input_errors
    orders = [np.argsort(-scores).tolist() for scores in (traces, input_traces)]
    # Bits along an order are so few that both are listed: 21 of five layers.
    falling = [c for c in product(range(3), repeat=5) if all(a >= b for a, b in pairwise(c))]
    best, found = np.inf, None
    for w, a in product(falling, falling):
        by_w, by_a = dict(zip(orders[0], w, strict=True)), dict(zip(orders[1], a, strict=True))
        cost = sum(sizes[i] * BITS[by_w[i]] * BITS[by_a[i]] for i in range(5))
        loss = sum(of_weights[i, by_w[i]] + of_inputs[i, by_a[i]] for i in range(5))
        if cost <= limit and loss < best:
            best, found = loss, [pairs[3 * by_w[i] + by_a[i]] for i in range(5)]
    assert found is not None
    return found


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the estimate is, which is the same at every limit."""
    return tmp_path_factory.mktemp("kept")


@pytest.mark.parametrize("limit", [3500, 6000, 9000])
def test_bits_of_a_tiny_network(limit: float, kept: Path) -> None:
    """As a reference finds them that knows the whole Hessian; enough probes tell the order."""
    recipe = recipe_of("hawq-v2")
    many = recipe.sensitivity.replace("num_probes=50", "num_probes=400")
    task = mpq.Task(tiny(), data, data, cache=kept)

    found = mpq.search(task, {"bit_operations": limit}, recipe=recipe, sensitivity=many)

    chosen = (found.assignment.precisions[name] for name in LAYERS)
    bits = [(p.weight.number.bits, p.activation.number.bits) for p in chosen]
    assert bits == expected_bits(limit)
