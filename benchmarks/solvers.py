"""How fast the additive problem is solved, and to what proof: sizes of real networks and above.

    OMP_NUM_THREADS=1 python benchmarks/solvers.py

Random problems like those of networks: layers of unlike sizes (log-normal), losses that fall by
four with every bit, layers of unlike sensitivity. Prints JSON: wall and processor time, proved
relative gap, against PuLP with HiGHS and CBC on the same scaled model; several budgets; exact
frontiers and complete convex hulls; the baselines' distance from the optimum. One thread.
"""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.quantization.precision import Precision
from mpq.solvers import (
    Bisection,
    DynamicProgramming,
    Greedy,
    IntegerLinearProgram,
    Lagrangian,
    Solver,
    WaterFilling,
)
from mpq.solvers.queries.frontier import solve_frontier, solve_hull

PRECISIONS = tuple(Precision.parse(f"w{bits}a{a}") for a in (8, 4) for bits in range(2, 9))
SEEDS = (0, 1, 2)


def make(layers: int, precisions: int, budgets: int, seed: int) -> Problem:
    """Bytes are proportional to bits; other resources fall with them less regularly."""
    rng = np.random.default_rng(seed)
    names = tuple(f"layer{i}" for i in range(layers))
    chosen = PRECISIONS[:precisions]
    bits = np.linspace(2, 8, precisions)
    size = np.ceil(rng.lognormal(10, 1.2, (layers, 1)))
    loss = rng.lognormal(0, 1.5, (layers, 1)) * 4.0 ** (2 - bits)
    loss = 1e-3 * loss * rng.lognormal(0, 0.1, (layers, precisions))
    costs = [np.ceil(size * bits / 8)]
    for _ in range(budgets - 1):
        base = rng.lognormal(0, 1, (layers, 1)) * (0.2 + bits / 8)
        costs.append(1e-5 * base * rng.lognormal(0, 0.1, (layers, precisions)))
    units = ("bytes", "seconds", "joules")
    tables = [
        CostTable(f"resource{i}", unit, names, chosen, cost)
        for i, (unit, cost) in enumerate(zip(units, costs, strict=False))
    ]
    low, high = (np.array([f(c, axis=1).sum() for c in costs]) for f in (np.min, np.max))
    limits = (low + 0.4 * (high - low)).tolist()
    return Problem(
        CostTable("loss", "nats", names, chosen, loss),
        Constraints(tuple(Budget.of(t, limit) for t, limit in zip(tables, limits, strict=True))),
    )


def timed(run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What it returns, wall and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    found = run()
    return found, {
        "wall_s": round(time.perf_counter() - wall, 4),
        "processor_s": round(time.process_time() - processor, 4),
    }


def outcome(solution: Solution, seconds: dict[str, float]) -> dict[str, Any]:
    """How it ended."""
    return {
        "status": solution.status.name.lower(),
        "loss_nats": solution.loss,
        "relative_gap": solution.gap,
        **seconds,
    }


def solved(solver: Solver, problem: Problem, repeats: int = 1) -> dict[str, Any]:
    """The run of median wall time."""
    runs = [timed(lambda: solver.solve(problem)) for _ in range(repeats)]
    runs.sort(key=lambda run: run[1]["wall_s"])
    return outcome(*runs[len(runs) // 2])


def one_budget(layers: int, precisions: int, repeats: int) -> dict[str, Any]:
    problems = [make(layers, precisions, 1, seed) for seed in SEEDS]
    runs = [solved(Lagrangian(), problem, repeats) for problem in problems]
    return {
        "layers": layers,
        "precisions": precisions,
        "lagrangian": runs,
        "median_wall_s": statistics.median(run["wall_s"] for run in runs),
    }


def against_milp(layers: int, precisions: int) -> dict[str, Any]:
    """The same problem by PuLP on the whole model, scaled as ``ilp`` scales it."""
    problem = make(layers, precisions, 1, 0)
    found = {"lagrangian": solved(Lagrangian(), problem, 5)}
    for backend in ("CBC", "HiGHS"):
        found[backend] = solved(IntegerLinearProgram(backend, time_limit_s=120.0), problem)
    found["dynamic-programming"] = solved(DynamicProgramming(), problem)
    reference = found["lagrangian"]["wall_s"]
    ratios = {name: round(run["wall_s"] / reference, 1) for name, run in found.items()}
    return {"layers": layers, "precisions": precisions, **found, "times_lagrangian": ratios}


def several_budgets(layers: int, precisions: int, budgets: int, gap: float) -> dict[str, Any]:
    solver = Lagrangian(gap=gap, time_limit_s=60.0)
    runs = [solved(solver, make(layers, precisions, budgets, seed)) for seed in SEEDS]
    return {
        "layers": layers, "precisions": precisions, "budgets": budgets, "asked_gap": gap,
        "lagrangian": runs,
    }  # fmt: skip


def frontiers(layers: int, precisions: int) -> dict[str, Any]:
    problem = make(layers, precisions, 1, 0)
    table = problem.budgets[0].tables[0]
    (candidates, statuses), seconds = timed(
        lambda: solve_frontier(problem, table, Lagrangian(), 100)
    )
    (corners, _), hull_seconds = timed(lambda: solve_hull(problem, table, Lagrangian()))
    return {
        "layers": layers,
        "precisions": precisions,
        "points": len(candidates),
        "statuses": sorted({status.name.lower() for status in statuses}),
        **seconds,
        "hull": {"corners": len(corners), **hull_seconds},
    }


def baselines(layers: int, precisions: int) -> dict[str, Any]:
    """Loss in units of the proved optimum's, over limits from tight to loose."""
    rules: list[Solver] = [Greedy("up"), Greedy("down"), WaterFilling(), Bisection()]
    ratios: dict[str, list[float]] = {"-".join([s.name, *vars(s).values()]): [] for s in rules}
    for seed in SEEDS:
        problem = make(layers, precisions, 1, seed)
        table = problem.budgets[0].tables[0]
        low, high = (float(f(table.values, axis=1).sum()) for f in (np.min, np.max))
        for share in (0.1, 0.3, 0.5, 0.7, 0.9):
            limited = problem.within([f"{table.name}={low + share * (high - low)}B"])
            best = Lagrangian().solve(limited).loss
            for name, solver in zip(ratios, rules, strict=True):
                ratios[name].append(solver.solve(limited).loss / best)
    return {
        "layers": layers,
        "precisions": precisions,
        "loss_over_optimum": {
            name: {"median": round(statistics.median(r), 5), "worst": round(max(r), 5)}
            for name, r in ratios.items()
        },
    }


def main() -> None:
    Lagrangian().solve(make(10, 3, 2, 0))  # imports
    found = {
        "command": " ".join(["python", *sys.argv]),
        "versions": {name: version(name) for name in ("numpy", "scipy", "pulp", "highspy")},
        "python": platform.python_version(),
        "one_budget": [one_budget(54, 4, 9), one_budget(1000, 8, 5), one_budget(20_000, 8, 3)],
        "against_milp": [against_milp(54, 4), against_milp(1000, 8)],
        "several_budgets": [
            several_budgets(54, 4, 3, 0.0),
            several_budgets(1000, 8, 2, 0.0),
            several_budgets(1000, 8, 3, 1e-4),
            several_budgets(20_000, 8, 3, 1e-4),
        ],
        "frontiers": [frontiers(54, 4), frontiers(1000, 8)],
        "baselines": [baselines(54, 4), baselines(1000, 8)],
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
