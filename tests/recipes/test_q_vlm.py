"""Q-VLM: bits of blocks, by entropy of what their layers give and trying everything."""

import numpy as np
import pytest
from torch import Tensor

import mpq
from tests.recipes.five_blocks import Net, data
from tests.recipes.reference import Floats, least, rounded

BITS = (4, 6, 8)
BLOCKS = [(f"blocks.{i}.up", f"blocks.{i}.down") for i in range(5)] + [("head",)]


def entropies() -> dict[str, float]:
    """Of every layer's output, in 256 bins over its range."""
    net, found, handles = Net(), dict[str, float](), []

    def look(name: str, y: Tensor) -> None:
        counts, _ = np.histogram(y.detach().double().numpy(), bins=256)
        p = counts[counts > 0] / counts.sum()
        found[name] = float(-(p * np.log(p)).sum())

    for name in (name for block in BLOCKS for name in block):
        layer = net.get_submodule(name)
        handles.append(layer.register_forward_hook(lambda _, __, y, name=name: look(name, y)))
    net(next(data()))
    return found


def losses() -> Floats:
    """``[blocks, B]``: relative squared errors of weights, times the entropy."""
    net, importance = Net(), entropies()
    rows = []
    for block in BLOCKS:
        row = np.zeros(len(BITS))
        for name in block:
            w = net.get_parameter(f"{name}.weight").detach()
            errors = [float((rounded(w, b) - w).square().sum() / w.square().sum()) for b in BITS]
            row += importance[name] * np.array(errors)
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("share", [0.25, 0.6])
def test_bits_of_blocks(share: float) -> None:
    """The least sum within a limit."""
    cost = np.outer([96, 96, 96, 96, 96, 18], BITS).astype(float)
    limit = cost.min(1).sum() + share * (cost.max(1).sum() - cost.min(1).sum())
    task = mpq.Task(Net(), data, data, candidates=[f"w{bits}" for bits in BITS])

    found = mpq.search(task, {"bit_operations": limit * 24}, recipe="q-vlm")

    columns = least(losses(), cost, limit)
    for block, column in zip(BLOCKS, columns, strict=True):
        bits = {found.assignment.precisions[name].weight.number.bits for name in block}
        assert bits == {BITS[column]}
