"""Costs of converting between formats: how long the integer program takes to prove the best.

    python benchmarks/conversions.py

Chains of layers, a pair for every two neighbours: 20 layers at 3 precisions, 54 at 6, 200 at 4,
with one budget and with two, both with pairs. In ``two kinds`` the last third of the precisions is
floating point, and converting costs where one layer is and its neighbour is not: two by two,
however many precisions there are. In ``all differ`` every pair of precisions has a random cost of
its own, 0 on the diagonal. Losses fall and costs rise with the precision, both log-normal over
layers; a conversion takes about a quarter of an average layer at the cheapest precision, and the
constant is as much as such a layer. The limit lies halfway between the uniform networks of the
cheapest and of the most expensive precision. Beside it, what the answer without pairs would really
use, as a share of the first limit.
Three seeds each, HiGHS, one thread, stopped after a minute. Prints JSON; CPU time beside wall time.
"""

import json
import os
import sys
import time
from itertools import pairwise
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import highspy
import numpy as np
import numpy.typing as npt
import pulp

from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable, PairwiseCost
from mpq.problem.limits import uniform_cost
from mpq.problem.problem import Problem
from mpq.quantization.precision import Precision
from mpq.solvers import IntegerLinearProgram, Lagrangian

PRECISIONS = tuple(map(Precision.parse, ("w2a8", "w3a8", "w4a8", "w8a8", "bf16", "fp32")))
SIZES = ((20, 3), (54, 6), (200, 4))
SEEDS = range(3)
TIME_LIMIT_S = 60.0


def main() -> None:
    found = {
        f"{layers} layers x {size}, {kind}, {budgets} budget{'s' * (budgets > 1)}": [
            measured(seed, layers, size, kind, budgets) for seed in SEEDS
        ]
        for layers, size in SIZES
        for kind in ("two kinds", "all differ")
        for budgets in (1, 2)
    }
    version = highspy.Highs().version()
    versions = {"highspy": version, "numpy": np.__version__, "pulp": pulp.__version__}
    command = " ".join(["python", *sys.argv])
    print(json.dumps({"command": command, "versions": versions, **found}, indent=1))


def measured(seed: int, layers: int, size: int, kind: str, budgets: int) -> dict[str, Any]:
    """One problem."""
    problem = chain(seed, layers, size, kind, budgets)
    wall, cpu = time.perf_counter(), time.process_time()
    found = IntegerLinearProgram("HiGHS", TIME_LIMIT_S).solve(problem)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    plain = Lagrangian(time_limit_s=TIME_LIMIT_S).solve(without_pairs(problem))
    assert found.columns is not None
    assert plain.columns is not None
    budget = problem.budgets[0]
    changes = int((np.diff(kinds(size)[found.columns]) != 0).sum())
    return {
        "seed": seed,
        "status": found.status.name.lower(),
        "cpu_seconds": round(cpu, 2),
        "wall_seconds": round(wall, 2),
        "gap": found.gap,
        "changes_of_kind": changes,
        "used_share_of_limit": budget.used(found.columns) / budget.limit,
        "used_share_without_pairs": budget.used(plain.columns) / budget.limit,
        "loss_over_that_without_pairs": found.loss / plain.loss,
    }


def chain(seed: int, layers: int, size: int, kind: str, budgets: int) -> Problem:
    """Neighbours that convert."""
    rng = np.random.default_rng(seed)
    names = tuple(f"layer{i}" for i in range(layers))
    weight = rng.lognormal(0, 1, (layers, 1))
    loss = weight * 4.0 ** -np.arange(size) * rng.lognormal(0, 0.3, (layers, size))
    tables = []
    for name in ("latency", "energy")[:budgets]:
        rising = np.sort(rng.uniform(1, 1 + size, (layers, size)), axis=1)
        values = rng.lognormal(0, 0.7, (layers, 1)) * rising
        amount = 0.25 * float(values[:, 0].mean())
        pairs = tuple(
            PairwiseCost(first, second, amount * shape_of(kind, size, rng))
            for first, second in pairwise(names)
        )
        constant = float(values[:, 0].mean())
        unit = "seconds" if name == "latency" else "joules"
        tables.append(CostTable(name, unit, names, PRECISIONS[:size], values, constant, pairs))
    limits = [
        0.5 * (uniform_cost(t, t.precisions[0]) + uniform_cost(t, t.precisions[-1])) for t in tables
    ]
    table = CostTable("loss", "nats", names, PRECISIONS[:size], loss)
    return Problem(table, Constraints(tuple(map(Budget.of, tables, limits))))


def kinds(size: int) -> npt.NDArray[np.bool_]:
    """``[B]`` whether a precision is floating point: the last third."""
    return np.arange(size) >= size - size // 3


def shape_of(kind: str, size: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """``[B, B]`` what converting takes, in units of an average one."""
    if kind == "all differ":
        return rng.uniform(0, 2, (size, size)) * (1 - np.eye(size))
    is_float = kinds(size)
    return (is_float[:, None] != is_float).astype(np.float64) * rng.uniform(0.5, 1.5)


def without_pairs(problem: Problem) -> Problem:
    """As if converting cost nothing."""
    tables = [budget.tables[0] for budget in problem.budgets]
    plain = [
        CostTable(t.name, t.unit, t.layers, t.precisions, t.values, t.constant) for t in tables
    ]
    limits = [budget.limit for budget in problem.budgets]
    return Problem(problem.loss, Constraints(tuple(map(Budget.of, plain, limits))))


if __name__ == "__main__":
    main()
