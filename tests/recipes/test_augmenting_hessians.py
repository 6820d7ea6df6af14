"""Augmenting Hessians: the order of ten tensors of a tiny network, and how many are lowered."""

from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import mpq
from mpq.recipes import recipe_of
from mpq.workflows.objective import Objective
from tests.recipes.reference import LAYERS, data, rounded, tiny

Step = list[list[int]]


def forward(x: Tensor, bits: Step | None = None, changes: Any = None) -> Tensor:
    """Logits with weights and inputs at these bits, or with something added to each of them."""
    net: Any = tiny()
    v = x
    for k in range(5):
        w, b = net[2 * k].weight.detach(), net[2 * k].bias.detach()
        if bits is not None:
            w, v = rounded(w, bits[k][0]), affine(v, bits[k][1], k)
        if changes is not None:
            w, v = w + changes[2 * k], v + changes[2 * k + 1]
        v = F.linear(v, w.to(v), b.to(v))
        v = v.tanh() if k < 4 else v
    return v


def affine(v: Tensor, bits: int, k: int) -> Tensor:
    """To nearest, from the least to the largest that layer ``k`` reads in the original network."""
    read = tiny()[: 2 * k](torch.cat([x for x, _ in data()])).detach()
    low, high = float(read.min().clamp(max=0)), float(read.max().clamp(min=0))
    scale: float = (high - low) / (2**bits - 1)
    zero = round(-low / scale)
    return (((v / scale).round() + zero).clamp(0, 2**bits - 1) - zero) * scale


@cache
def order() -> list[int]:
    """Weights (even) and inputs (odd) by what each loses at 3 bits, others there or at 8."""
    net: Any = tiny()
    x, y = (torch.cat(parts) for parts in zip(*data(), strict=True))
    own = [t for k in range(5) for t in (net[2 * k].weight.detach(), net[: 2 * k](x).detach())]
    errors = {b: [(rounded(t, b) if i % 2 == 0 else affine(t, b, i // 2)) - t
                  for i, t in enumerate(own)] for b in (3, 8)}  # fmt: skip
    sizes = [t.numel() for t in own]

    def loss(flat: Tensor) -> Tensor:
        changes = [c.reshape(t.shape) for c, t in zip(flat.split(sizes), own, strict=True)]
        return F.cross_entropy(forward(x.double(), changes=changes), y)

    zeros, starts = torch.zeros(sum(sizes)).double(), np.cumsum([0, *sizes])
    hessian: Any = torch.autograd.functional.hessian(loss, zeros, vectorize=True)

    def lost(bits: tuple[int, int]) -> list[float]:
        flat = [errors[bits[i % 2]][i].double().flatten() for i in range(10)]
        along, found = hessian @ torch.cat(flat), []
        for i, d in enumerate(flat):
            at = slice(starts[i], starts[i + 1])
            block = hessian[at, at]
            between = float(d @ (along[at] - block @ d))
            trace = max(float(block.diagonal().mean()), 0)
            found.append(trace * float(d @ d) / 2 + max(between, 0) / 2)
        return found

    most, fewer = lost((8, 8)), {0: lost((3, 8)), 1: lost((8, 3))}
    rises = [sum(fewer[i % 2][i // 2 * 2 :][:2]) - sum(most[i // 2 * 2 :][:2]) for i in range(10)]
    return [int(i) for i in np.argsort(rises)]


def steps() -> Iterator[Step]:
    """From all at 8 bits, one tensor after the other to 3."""
    bits = [[8, 8] for _ in range(5)]
    yield [list(pair) for pair in bits]
    for i in order():
        bits[i // 2][i % 2] = 3
        yield [list(pair) for pair in bits]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the estimate is, which is the same at every limit."""
    return tmp_path_factory.mktemp("kept")


def searched(kept: Path, *limits: Any, **options: Any) -> Step:
    """Bits of weights and inputs by the recipe; enough probes tell the order."""
    recipe = recipe_of("augmenting-hessians")
    many = recipe.sensitivity.replace("num_probes=50", "num_probes=300")
    candidates = [f"w{w}a{a}" for w, a in product((3, 8), (3, 8))]
    task = mpq.Task(tiny(), data, data, candidates=candidates, cache=kept)
    found = mpq.search(task, *limits, recipe=recipe, sensitivity=many, **options)
    chosen = (found.assignment.precisions[name] for name in LAYERS)
    return [[p.weight.number.bits, p.activation.number.bits] for p in chosen]


@pytest.mark.parametrize("limit", [3500, 6000, 9000])
def test_the_budget_ends_the_order(limit: float, kept: Path) -> None:
    """As a reference finds it that knows the whole Hessian of weights and inputs."""
    sizes = [tiny().get_parameter(f"{name}.weight").numel() for name in LAYERS]
    costs = [
        (sum(s * w * a for s, (w, a) in zip(sizes, step, strict=True)), step) for step in steps()
    ]
    expected = next(step for cost, step in costs if cost <= limit)

    assert searched(kept, {"bit_operations": limit}) == expected


@pytest.mark.parametrize("most", [0.002, 0.004, 0.013])
def test_bisection_on_what_is_measured(most: float, kept: Path) -> None:
    """The last step of the order that bisection finds to lose no more."""
    x = torch.cat([x for x, _ in data()])
    p, every = tiny()(x).log_softmax(1).detach(), list(reversed(list(steps())))
    low, high = 0, len(every) - 1  # the last, all at 8 bits, is good enough
    while low < high:
        middle = (low + high) // 2
        q = forward(x, every[middle]).log_softmax(1)
        lost = float(F.kl_div(q, p, log_target=True, reduction="batchmean"))
        low, high = (low, middle) if lost <= most else (middle + 1, high)

    found = searched(kept, objective=Objective("bit_operations", max_measured_loss=most))

    assert found == every[high]
    assert 0 < high < 10, "neither end is what is looked for"
