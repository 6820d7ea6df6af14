"""Calibration without data: the sketch on made-up examples against the sketch on real ones.

    python benchmarks/data_free.py > benchmarks/data_free.json

For ResNet-20 (distilled images, noise) and the small Llama (its own text, random tokens), weights
only: Spearman's rank correlation of the sketch's additive table with that from all real calibration
examples (over all cells, and over the layers at one precision, averaged over precisions), and the
KL divergence on held-out examples of the assignments that the ILP finds within the weight bytes of
a uniform 4 and 5 bits. Means over five seeds of the sketch's signs (geometric for the divergence);
``make_cpu_seconds`` is what making the examples took. Distilling stops after 150 of 500 steps, when
images are closer to the remembered statistics than real ones. Needs the published weights and data:
set MPQ_DATA, or have them in ../shared/data.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from mpq import ESTIMATORS, SOLVERS, Calibration, Precision, Problem
from mpq.cli.loading import load_callable, load_model, load_object
from mpq.hardware_profiles import Pricing
from mpq.network.modules import share_parameters
from mpq.network.network import Network
from mpq.network.synthetic import DATA_SOURCES
from mpq.network.synthetic.distilled import RememberedStatistics
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.limits import uniform_cost
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation
from mpq.workflows.evaluate import Reference
from mpq.workflows.evaluator import Evaluator

EXAMPLES = Path(__file__).parents[1] / "examples"
CHOICES = tuple(Precision.parse(f"w{bits}") for bits in (2, 3, 4, 5, 6, 8))
BUDGET_BITS = (4, 5)
SEEDS = range(5)


@dataclass(frozen=True)
class Case:
    """A network, and what it is calibrated on.

    Args:
        file: The example.
        weights: In the data folder.
        num_real: Real examples of a calibration as small as the made-up ones.
        sources: Label to data source.
    """

    file: str
    weights: str
    num_real: int
    sources: Mapping[str, str]


CASES = {
    "resnet20": Case(
        "resnet20_cifar10.py",
        "cifar10/resnet20.safetensors",
        256,
        {
            "distilled": "batch-norm:num_examples=256,batch_size=64,steps=150",
            "noise": "noise:num_examples=256,batch_size=64",
        },
    ),
    "llama": Case(
        "llama_stories.py",
        "llm/stories260K.fp32.safetensors",
        32,
        {
            "self-generated": "self-generated:num_examples=64",
            "random tokens": "random-tokens:num_examples=64",
        },
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sensitivity", default="sketch")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "sensitivity": arguments.sensitivity,
        **{name: run(case, arguments.sensitivity) for name, case in CASES.items()},
    }
    print(json.dumps(result, indent=1))


def run(case: Case, sensitivity: str) -> dict[str, Any]:
    """One row for every calibration of one network."""
    file = EXAMPLES / case.file
    model = load_model(f"{file}:make_net", load_object(f"{file}:DATA") / case.weights)
    real = Calibration(load_callable(f"{file}:calibration"))
    network = Network.of(model, real)
    quantizer = Quantizer(ActivationRanges.calibrate(network, real, CHOICES))
    held_out = Calibration(load_callable(f"{file}:held_out"))
    evaluator = Evaluator(network, quantizer, Reference(model, held_out))

    def tables(data: Calibration) -> list[CostTable]:
        estimators = (ESTIMATORS.build(sensitivity, seed) for seed in SEEDS)
        return [e.estimate(Estimation(network, data, quantizer, CHOICES)).table for e in estimators]

    truth = np.mean([table.values for table in tables(real)], axis=0)
    rows = {}
    for label, make_s, data in calibrations(case, model, real):
        found = tables(data)
        rows[label] = {
            "examples": data.num_examples,
            "make_cpu_seconds": make_s,
            **looks(model, data),
            "spearman_of_cells": statistics.fmean(spearman(t.values, truth) for t in found),
            "spearman_of_layers": statistics.fmean(
                spearman(t.values[:, b], truth[:, b]) for t in found for b in range(len(CHOICES))
            ),
            **{f"kl_nats_w{bits}": solved(evaluator, found, bits) for bits in BUDGET_BITS},
        }
        print(label, rows[label], file=sys.stderr)
    uniform = {
        f"kl_nats_w{bits}": evaluator.measure(evaluator.uniform(CHOICES[bits - 2])).divergence
        for bits in BUDGET_BITS
    }
    return {"uniform": uniform, **rows}


def calibrations(
    case: Case, model: nn.Module, real: Calibration
) -> list[tuple[str, float, Calibration]]:
    """Label, processor seconds that it took to make them, examples."""
    some = Calibration(load_callable(f"{EXAMPLES / case.file}:calibration"), 0, case.num_real)
    made = [("real", 0.0, real), (f"real, {case.num_real}", 0.0, some)]
    for label, source in case.sources.items():
        start = time.process_time()
        data = DATA_SOURCES.build(source).calibration(model)
        made.append((label, time.process_time() - start, data))
    return made


def looks(model: nn.Module, data: Calibration) -> dict[str, float]:
    """How natural the first batch is: distance from BatchNorm's statistics, or nats per token."""
    (x,) = data.first().args
    with torch.no_grad():
        if x.is_floating_point():
            return {"distance": float(RememberedStatistics(share_parameters(model)).distance(x))}
        logits = model(x)[:, :-1].flatten(0, 1)
        return {"nats_per_token": float(F.cross_entropy(logits, x[:, 1:].flatten()))}


def spearman(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    """Rank correlation of two arrays' numbers."""
    ranks = [pd.Series(values.ravel()).rank() for values in (first, second)]
    return float(ranks[0].corr(ranks[1]))


def solved(evaluator: Evaluator, tables: list[CostTable], bits: int) -> float:
    """Geometric mean over tables of the measured KL of the best assignment in a budget."""
    weight_bytes = Pricing(evaluator.network.layers).table("weight_bytes", CHOICES)
    budget = Budget.of(weight_bytes, uniform_cost(weight_bytes, Precision.parse(f"w{bits}")))
    measured = []
    for table in tables:
        problem = Problem(table, Constraints((budget,)))
        precisions = SOLVERS.build("ilp").solve(problem).precisions(problem)
        measured.append(evaluator.measure(precisions).divergence)
    return statistics.geometric_mean(measured)


if __name__ == "__main__":
    main()
