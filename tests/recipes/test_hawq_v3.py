"""HAWQ-V3: the published bits of ResNet-18 by the recipe's solver, and those of a tiny network."""

import json
from pathlib import Path

import numpy as np
import pytest

import mpq
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.recipes import recipe_of
from tests.recipes.reference import (
    LAYERS,
    data,
    hessians,
    least,
    squared_errors,
    tiny,
    weights_of,
)

RECIPE = recipe_of("hawq-v3")


def expected_bits(bit_operations: float) -> list[int]:
    """Mean trace x squared error, the first and the last layer at 8 bits, by trying everything."""
    net, inner = tiny(), slice(1, -1)
    weights = weights_of(net)
    sizes = np.array([w.numel() for w in weights])
    traces = np.array([float(h.trace()) for h in hessians(net, list(data()))]) / sizes
    loss = traces.clip(min=0)[:, None] * squared_errors(weights, (4, 8))
    cost = sizes[:, None] * np.array([16.0, 64.0])
    ends = cost[[0, -1], 1].sum()
    columns = least(loss[inner], cost[inner], bit_operations - ends)
    return [8, *((4, 8)[c] for c in columns), 8]


@pytest.mark.parametrize("limit", [8500, 10500, 12500])
def test_bits_of_a_tiny_network(limit: float) -> None:
    """As a reference finds them that knows the whole Hessian."""
    task = mpq.Task(tiny(), data, data)

    found = mpq.search(task, {"bit_operations": limit}, recipe=RECIPE)

    bits = [found.assignment.precisions[name].weight.number.bits for name in LAYERS]
    assert bits == expected_bits(limit)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("resource", ["modelsize", "bops", "latency"])
def test_the_published_bits_of_resnet_18(resource: str, share: float, data_dir: Path) -> None:
    """Nine assignments, from the published traces, errors and costs, by the recipe's solver."""
    published = json.loads((data_dir / "hawqv3" / "resnet18.json").read_text())
    rows = {key: np.array([x[key] for x in published["layers"]], dtype=np.float64)
            for key in published["layers"][0] if key != "name"}  # fmt: skip
    names = tuple(x["name"] for x in published["layers"])
    by_bits = {
        "modelsize": [rows["params"] / 2, rows["params"]],
        "bops": [rows["macs"] * 16, rows["macs"] * 64],
        "latency": [rows["latency_ms_int4_t4_b8"], rows["latency_ms_int8_t4_b8"]],
    }[resource]
    trace = rows["hutchinson_trace_per_param"]
    losses = [trace * rows["delta_w_sq_int4"], trace * rows["delta_w_sq_int8"]]
    candidates = tuple(map(mpq.Precision.parse, RECIPE.candidates))
    loss = mpq.CostTable("loss", "relative", names, candidates, np.stack(losses, axis=1))
    cost = mpq.CostTable(resource, "bytes", names, candidates, np.stack(by_bits, axis=1))
    low, high = cost.values.sum(axis=0)
    ties = tuple((names[i], names[j]) for i, j in published["equal_bit_pairs"])
    limit = Budget.of(cost, float(low + share * (high - low)))

    found = mpq.SOLVERS.build(RECIPE.solver).solve(mpq.Problem(loss, Constraints((limit,), ties)))

    assert found.columns is not None
    bits = [candidates[column].weight.number.bits for column in found.columns.tolist()]
    assert bits == published["published_weight_bits"][f"{resource}_{share}"]
