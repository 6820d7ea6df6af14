"""The bit widths that HAWQ-V3 published for ResNet-18 follow from its published table."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.problem.solution import Status
from mpq.quantization.precision import Precision
from mpq.solvers import IntegerLinearProgram, Lagrangian, Solver
from mpq.solvers.additive.pulp_backend import available_backends

W4, W8 = map(Precision.parse, ("w4a4", "w8a8"))
RESOURCES = {"modelsize": "bytes", "bops": "bitops", "latency": "seconds"}


@pytest.fixture(scope="module")
def published(data_dir: Path) -> Any:
    """The published table, limits and answers."""
    return json.loads((data_dir / "hawqv3" / "resnet18.json").read_text())


def column(published: Any, key: str) -> list[float]:
    """One number per layer."""
    return [float(layer[key]) for layer in published["layers"]]


def table(published: Any, name: str, unit: str, at4: Any, at8: Any) -> CostTable:
    """A table of the published layers at 4 and 8 bits."""
    layers = tuple(layer["name"] for layer in published["layers"])
    return CostTable(name, unit, layers, (W4, W8), np.array([at4, at8]).T)


def cost(published: Any, resource: str) -> CostTable:
    """Bytes, bit operations or seconds, by the rule that the file states."""
    params, macs = (np.array(column(published, key)) for key in ("params", "macs"))
    at4, at8 = {
        "modelsize": (params / 2, params),
        "bops": (macs * 4 * 4, macs * 8 * 8),
        "latency": tuple(
            np.array(column(published, f"latency_ms_int{bits}_t4_b8")) / 1e3 for bits in (4, 8)
        ),
    }[resource]
    return table(published, resource, RESOURCES[resource], at4, at8)


@pytest.mark.parametrize("solver", [*map(IntegerLinearProgram, available_backends()), Lagrangian()])
@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("resource", list(RESOURCES))
def test_the_published_bit_widths_are_found(
    published: Any, resource: str, fraction: float, solver: Solver
) -> None:
    """Trace times squared rounding error, a share of the way from all 4 to all 8 bits."""
    trace = np.array(column(published, "hutchinson_trace_per_param"))
    at4, at8 = (np.array(column(published, f"delta_w_sq_int{bits}")) for bits in (4, 8))
    costs = cost(published, resource)
    low, high = costs.values.sum(axis=0)
    names = costs.layers
    ties = tuple((names[i], names[j]) for i, j in published["equal_bit_pairs"])
    problem = Problem(
        table(published, "hessian_trace", "relative", trace * at4, trace * at8),
        Constraints((Budget.of(costs, float(low + fraction * (high - low))),), ties),
    )

    solution = solver.solve(problem)

    assert solution.status is Status.OPTIMAL
    assert solution.columns is not None
    bits = [(4, 8)[candidate] for candidate in solution.columns.tolist()]
    assert bits == published["published_weight_bits"][f"{resource}_{fraction}"]
