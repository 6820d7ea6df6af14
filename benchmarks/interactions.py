"""Losses with interactions: what is proved, in what time, and what the additive optimum loses.

    python benchmarks/interactions.py

ResNet-20 and the vision transformer with the sketch's own interactions, at five budgets; then five
random problems of 54 layers by 4 precisions. Their factor is of low rank plus noise, much like the
networks': an error halves with every precision, layers differ by a factor of 2.2, examples are
heavy-tailed, and errors of different layers correlate by .17 in root mean square (the networks':
about .15). One budget, that of 3 bits everywhere. The best known is the best of the exact
solver, stopped after a minute, and of longer local searches from other seeds. Both exact solvers
stop after a minute. Prints JSON; one thread. Needs the published networks: set MPQ_DATA, or have
them in ../shared/data.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import scipy
import torch

from mpq.cli.loading import load_callable, load_model, load_object
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.interactions import Interactions
from mpq.problem.problem import Problem
from mpq.quantization.precision import Precision
from mpq.sensitivity import ESTIMATORS, Estimation
from mpq.solvers import BranchAndBound, Lagrangian, LocalSearch, OuterApproximation
from mpq.workflows.setup import Prepared
from mpq.workflows.task import Task

ROOT = Path(__file__).parents[1]
NETWORKS = {
    "resnet20": ("resnet20_cifar10", "cifar10/resnet20.safetensors"),
    "vit": ("vit_mnist", "mnist/vit_mnist.safetensors"),
}
PRECISIONS = ("w2", "w3", "w4", "w5", "w6", "w8")
BITS = {"w3": (1, 1), "w3.5": (1, 2), "w4": (2, 2), "w5": (3, 3), "w6": (4, 4)}
SEEDS = range(5)
RANK = 20


def main() -> None:
    torch.set_num_threads(1)
    found = {name: real(name) for name in NETWORKS}
    found["54 layers x 4"] = {f"seed {seed}": against_best_known(seed) for seed in SEEDS}
    versions = {m.__name__: m.__version__ for m in (np, scipy, torch)}
    command = " ".join(["python", *sys.argv])
    print(json.dumps({"command": command, "versions": versions, **found}, indent=1))


def real(network: str) -> dict[str, Any]:
    """A network at every budget."""
    example, weights = NETWORKS[network]
    spec = ROOT / "examples" / f"{example}.py"
    model = load_model(f"{spec}:make_net", load_object(f"{spec}:DATA") / weights)
    task = Task(
        model,
        load_callable(f"{spec}:calibration"),
        load_callable(f"{spec}:held_out"),
        candidates=list(PRECISIONS),
    )
    prepared = Prepared.of(task)
    estimate = ESTIMATORS.build("sketch", 0).estimate(
        Estimation(prepared.network, prepared.calibration, prepared.quantizer, prepared.candidates)
    )
    table = prepared.pricing.table("weight_bytes", prepared.candidates)
    uniform = table.values.sum(axis=0)
    found: dict[str, Any] = {"layers": len(table.layers), "precisions": len(PRECISIONS)}
    for name, columns in BITS.items():
        limit = float(np.mean(uniform[list(columns)]))
        found[name] = solved(
            Problem(
                estimate.table,
                Constraints((Budget.of(table, limit),), prepared.ties),
                interactions=estimate.interactions,
            ),
            with_outer_approximation=network == "resnet20",
        )
    return found


def solved(problem: Problem, with_outer_approximation: bool) -> dict[str, Any]:
    """By the exact solvers and by the local search, beside the additive optimum."""
    exact, near = BranchAndBound().solve(problem), LocalSearch().solve(problem)
    additive = Lagrangian().solve(problem.additive()).columns
    assert additive is not None
    other = {"outer_approximation": OuterApproximation()} if with_outer_approximation else {}
    return {
        "branch_and_bound": outcome(exact),
        **{name: outcome(solver.solve(problem)) for name, solver in other.items()},
        "local_search": {**outcome(near), "above_exact": near.loss / exact.loss - 1},
        "additive_optimum_above_exact": problem.loss_of(additive) / exact.loss - 1,
    }


def against_best_known(seed: int) -> dict[str, Any]:
    """The local search as it is, and everything else for longer."""
    problem = synthetic(seed)
    exact, near = BranchAndBound().solve(problem), LocalSearch().solve(problem)
    longer = [LocalSearch(num_restarts=2000, seed=other).solve(problem).loss for other in (1, 2, 3)]
    best = min(exact.loss, near.loss, *longer)
    additive = Lagrangian().solve(problem.additive()).columns
    assert additive is not None
    return {
        "best_known": best,
        "branch_and_bound": outcome(exact),
        "local_search": {**outcome(near), "above_best_known": near.loss / best - 1},
        "additive_optimum_above_best_known": problem.loss_of(additive) / best - 1,
    }


def outcome(solution: Any) -> dict[str, Any]:
    """What is to be compared."""
    return {
        "status": solution.status.name,
        "loss": solution.loss,
        "bound": solution.bound,
        "gap": solution.gap,
        "seconds": round(solution.seconds, 2),
    }


def synthetic(seed: int, layers: int = 54, examples: int = 512) -> Problem:
    """Errors of low rank and noise, half of each."""
    rng = np.random.default_rng(seed)
    bits = np.array([2.0, 3.0, 4.0, 5.0])
    latent = rng.standard_normal((examples, RANK)) / np.arange(1, RANK + 1) ** 0.5
    loading = rng.standard_normal((layers, 1, RANK)) + 1.7 * rng.standard_normal((layers, 4, RANK))
    common = np.einsum("sk,lbk->slb", latent, loading)
    common /= np.sqrt(np.mean(common**2, axis=0))
    scale = 0.1 * np.exp(rng.normal(0, 0.8, (layers, 1))) * 2.0 ** (2 - bits)
    weight = np.exp(0.8 * rng.standard_normal((examples, 1, 1)))
    noise = rng.standard_normal(common.shape)
    factor = (weight * np.sqrt(0.5) * (common + noise) * scale).astype(np.float32)
    names = tuple(f"layer{i}" for i in range(layers))
    precisions = tuple(Precision.parse(f"w{int(b)}") for b in bits)
    loss = 0.5 * np.mean(factor.astype(np.float64) ** 2, axis=0)
    sizes = np.floor(1000 * rng.lognormal(0, 1.2, (layers, 1))) * bits
    return Problem(
        CostTable("loss", "nats", names, precisions, loss),
        Constraints(
            (
                Budget.of(
                    CostTable("weight", "bits", names, precisions, sizes),
                    3.0 * sizes[:, 0].sum() / 2,
                ),
            )
        ),
        interactions=Interactions(factor, 0.3),
    )


if __name__ == "__main__":
    main()
