"""ResNet-20 on CIFAR-10, weights only: the search against uniform precisions and random search.

    python benchmarks/resnet20_weights_only.py > benchmarks/resnet20_weights_only.json

For each budget (the weight bytes of a uniform 3, 4, 5, 6 bits): KL divergence and accuracy on the
1,017 held-out images of the search's result, of every uniform precision, and of the best of 50
random assignments that use 97 % to 100 % of the same bytes (the best by KL on the held-out images
themselves, which favours it). Times in units of one forward pass over the calibration images.
Needs the published weights and images: set MPQ_DATA, or have them in ../shared/data.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpq import ESTIMATORS, SOLVERS, Calibration, Precision, Problem
from mpq._support.arrays import Columns
from mpq.cli.loading import load_callable, load_model, load_object
from mpq.hardware_profiles import Pricing
from mpq.network.network import Network
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.limits import uniform_cost
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import ORIGINAL
from mpq.quantization.quantizer import Quantizer
from mpq.report.measurement import Measurement
from mpq.sensitivity import Estimation
from mpq.workflows.evaluate import Reference
from mpq.workflows.evaluator import Evaluator

EXAMPLE = Path(__file__).parents[1] / "examples" / "resnet20_cifar10.py"
CHOICES = tuple(Precision.parse(f"w{bits}") for bits in (2, 3, 4, 5, 6, 8))
BUDGET_BITS = (3, 4, 5, 6)
NUM_RANDOM = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sensitivity", default="sketch")
    parser.add_argument("--solver", default="auto")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    model = load_model(
        f"{EXAMPLE}:make_net", load_object(f"{EXAMPLE}:DATA") / "cifar10/resnet20.safetensors"
    )
    print(json.dumps(run(model, arguments.sensitivity, arguments.solver), indent=1))


def run(model: torch.nn.Module, sensitivity: str, solver: str) -> dict[str, Any]:
    """Everything that is printed."""
    data = Calibration(load_callable(f"{EXAMPLE}:calibration"))
    held_out = Calibration(load_callable(f"{EXAMPLE}:held_out"))
    network = Network.of(model, data)
    forward_s = statistics.median(_forward_seconds(network, data) for _ in range(5))
    quantizer = Quantizer(ActivationRanges.calibrate(network, data, CHOICES))

    start = time.perf_counter()
    found = ESTIMATORS.build(sensitivity).estimate(Estimation(network, data, quantizer, CHOICES))
    estimate_s = time.perf_counter() - start

    evaluator = Evaluator(network, quantizer, Reference(model, held_out))
    table = Pricing(network.layers).table("weight_bytes", CHOICES)
    uniform = {str(p): _row(evaluator.measure(evaluator.uniform(p))) for p in CHOICES}
    budgets, solve_s = [], 0.0
    for bits in BUDGET_BITS:
        limit = uniform_cost(table, Precision.parse(f"w{bits}"))
        problem = Problem(
            found.table, Constraints((Budget.of(table, limit),)), interactions=found.interactions
        )
        solution = SOLVERS.build(solver).solve(problem)
        solve_s += solution.seconds
        assert solution.columns is not None
        result = evaluator.measure(solution.precisions(problem))
        random = [_measure(evaluator, c) for c in _random_choices(table, limit, seed=bits)]
        best = min(random, key=lambda measured: measured.divergence)
        budgets.append(
            {
                "limit_bytes": limit,
                "used_bytes": table.total(solution.columns),
                "predicted_nats": solution.loss,
                "status": solution.status.name.lower(),
                "result": _row(result),
                f"uniform_w{bits}": uniform[f"w{bits}a32"],
                f"best_of_{NUM_RANDOM}_random": _row(best),
                "median_random_kl_nats": statistics.median(m.divergence for m in random),
                "kl_ratio_to_uniform": result.divergence / uniform[f"w{bits}a32"]["kl_nats"],
                "kl_ratio_to_best_random": result.divergence / best.divergence,
            }
        )
    return {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "sensitivity": sensitivity,
        "solver": solver,
        "calibration_images": data.num_examples,
        "original": _row(evaluator.measure(evaluator.uniform(ORIGINAL))),
        "uniform": uniform,
        "budgets": budgets,
        "forward_seconds": forward_s,
        "estimate_in_forward_passes": estimate_s / forward_s,
        "solve_in_forward_passes_per_budget": solve_s / len(BUDGET_BITS) / forward_s,
    }


def _forward_seconds(network: Network, data: Calibration) -> float:
    start = time.perf_counter()
    with torch.no_grad():
        for batch in network.batches(data):
            network.outputs(batch)
    return time.perf_counter() - start


def _row(measured: Measurement) -> dict[str, Any]:
    return {"kl_nats": measured.divergence, "accuracy": measured.accuracy}


def _measure(evaluator: Evaluator, candidate: Columns) -> Measurement:
    names = [layer.name for layer in evaluator.network.layers]
    return evaluator.measure(dict(zip(names, (CHOICES[c] for c in candidate), strict=True)))


def _random_choices(table: CostTable, limit: float, seed: int) -> list[Columns]:
    """Random assignments that use 97 % to 100 % of the limit: random ones, repaired at random."""
    rng = np.random.default_rng(seed)
    found: list[Columns] = []
    while len(found) < NUM_RANDOM:
        candidate = rng.integers(len(CHOICES), size=len(table.layers))
        for _ in range(10_000):
            used = table.total(candidate)
            if 0.97 * limit <= used <= limit:
                found.append(candidate)
                break
            layer = rng.integers(len(candidate))
            step = -1 if used > limit else 1
            candidate[layer] = np.clip(candidate[layer] + step, 0, len(CHOICES) - 1)
    return found


if __name__ == "__main__":
    main()
