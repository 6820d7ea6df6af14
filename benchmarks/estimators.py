"""Every estimator on three real networks: which one predicts what random assignments lose.

    python benchmarks/estimators.py resnet20 weights
    python benchmarks/estimators.py vit pairs

Runs ``mpq.compare`` with random assignments near every budget, measured on held-out examples: so
many that over 100 are near 4, 5 and 6 bits (on ResNet-20 and the small Llama most of these lose
more than 0.5 nats and do not count). Writes estimators.csv, estimators.md, predictions.csv and
predictions.png into benchmarks/estimators/<network>-<candidates>; a killed run goes on where it
was. Prints JSON: rank correlations of every estimator, over all budgets and over 4, 5 and 6 bits,
and what its optima lose in units of what the best published estimator's lose. Needs the published
networks: set MPQ_DATA, or have them in ../shared/data.
"""

import argparse
import json
import sys
from math import exp, log
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import mpq
from mpq import Calibration
from mpq.cli.loading import load_callable, load_model, load_object
from mpq.report.estimators import EstimatorComparison
from mpq.report.rank_agreement import RankAgreement

ROOT = Path(__file__).parents[1]
NETWORKS = {
    "resnet20": ("resnet20_cifar10", "cifar10/resnet20.safetensors"),
    "vit": ("vit_mnist", "mnist/vit_mnist.safetensors"),
    "llama": ("llama_stories", "llm/stories260K.fp32.safetensors"),
}
NUM_RANDOM = {"resnet20": 150, "vit": 35, "llama": 75}  # a budget
NUM_RANDOM_PAIRS = 15
MAIN_LIMITS = tuple(f"weight_bytes=1x:w{bits}" for bits in (4, 5, 6))
HELD_OUT_EXAMPLES = 1017
CANDIDATES = {
    "weights": (
        ["w2", "w3", "w4", "w5", "w6", "w8"],
        [f"weight_bytes={limit}" for limit in ("1x:w3", "0.875x:w4", "1x:w4", "1x:w5", "1x:w6")],
    ),
    "pairs": (
        ["w4a4", "w4a8", "w8a4", "w8a8"],
        [f"bit_operations={share}x:w8a8" for share in (0.35, 0.5, 0.7)],
    ),
}
OURS = ("sketch", "sketch:interactions=false")
PUBLISHED = (
    "hessian-trace",
    "fisher",
    "output-gradient",
    "first-order",
    "measured",
    "measured:score=sqnr",
    "relevance",
    "activation-entropy",
    "histogram-kl",
    "orthogonality",
    "layer-input-modification",
    "z-score",
    "zero-cost:proxy=snip",
    "zero-cost:proxy=synflow",
    "zero-cost:proxy=fisher",
    "zero-cost:proxy=grasp",
    "layer-output",
    "weight-error",
)

OF_PAIRS = ("hessian-trace", "fisher", "output-gradient", "first-order", "measured")
"""The published estimators that price activations by what they do to the output."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("candidates", choices=CANDIDATES)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = run(arguments.network, arguments.candidates)
    command = " ".join(["python", *sys.argv])
    print(json.dumps({"command": command, "torch": torch.__version__, **found}, indent=1))


def run(network: str, candidates: str) -> dict[str, Any]:
    """Compares, writes the files, and says who is best."""
    example, weights = NETWORKS[network]
    spec = ROOT / "examples" / f"{example}.py"
    precisions, limits = CANDIDATES[candidates]
    folder = ROOT / "benchmarks" / "estimators" / f"{network}-{candidates}"
    task = mpq.Task(
        load_model(f"{spec}:make_net", load_object(f"{spec}:DATA") / weights),
        load_callable(f"{spec}:calibration"),
        Calibration(load_callable(f"{spec}:held_out"), stop=HELD_OUT_EXAMPLES),
        candidates=precisions,
        rounding="nearest",
    )
    comparison = mpq.compare(
        task,
        limits,
        estimators=(*OURS, *(PUBLISHED if candidates == "weights" else OF_PAIRS)),
        num_random=NUM_RANDOM[network] if candidates == "weights" else NUM_RANDOM_PAIRS,
        folder=folder,
    )
    comparison.save(folder)
    return summary(comparison)


def summary(comparison: EstimatorComparison) -> dict[str, Any]:
    """Rank correlations, and losses of optima against the best published one at each budget."""
    solved = {
        s.estimator: {one.limit: one.divergence for one in s.solved} for s in comparison.scores
    }
    published = [name for name, losses in solved.items() if losses and name not in OURS]
    best = {limit: min(solved[name][limit] for name in published) for limit in comparison.limits}
    wholes = {
        name: exp(fmean(log(losses[limit]) for limit in comparison.limits))
        for name, losses in solved.items()
        if losses
    }
    winner = min(published, key=wholes.__getitem__)
    return {
        "num_calibration": comparison.num_calibration,
        "num_held_out": comparison.num_held_out,
        "spearman": {s.estimator: comparison.agreement(s).spearman for s in comparison.scores},
        "assignments_below_max_loss": comparison.agreement(comparison.scores[0]).num_trials,
        **near_4_5_and_6_bits(comparison),
        "best_published": winner,
        "optima_to_best_published": {name: wholes[name] / wholes[winner] for name in wholes},
        "ours_to_best_published": {
            name: {
                **{
                    limit: solved[name][limit] / solved[winner][limit]
                    for limit in comparison.limits
                },
                "geometric_mean": wholes[name] / wholes[winner],
            }
            for name in OURS
        },
        "ours_to_best_at_each_budget": {
            name: {limit: solved[name][limit] / best[limit] for limit in comparison.limits}
            for name in OURS
        },
        "errors": {s.estimator: s.error for s in comparison.scores if s.error},
    }


def near_4_5_and_6_bits(comparison: EstimatorComparison) -> dict[str, Any]:
    """Rank correlations over these budgets alone."""
    trials = comparison.trials
    asked = [
        i
        for i, trial in enumerate(trials)
        if trial.limit in MAIN_LIMITS and trial.divergence < comparison.max_loss
    ]
    measured = [trials[i].divergence for i in asked]
    found = {
        s.estimator: RankAgreement.of([s.predicted[i] for i in asked], measured).spearman
        for s in comparison.scores
        if s.predicted and asked
    }
    return {"spearman_at_4_5_6_bits": found, "assignments_at_4_5_6_bits": len(asked)}


if __name__ == "__main__":
    main()
