"""How the sketch's rank correlation depends on its temperature, and on the signs that are drawn.

    python benchmarks/temperatures.py > benchmarks/temperatures.json

Spearman's rank correlation with the loss measured on held-out examples, over the random assignments
of ``benchmarks/estimators.py`` near 4, 5 and 6 bits that lose less than 0.5 nats (taken from its
folder, or measured), for several seeds of the signs. Needs the published networks: set MPQ_DATA, or
have them in ../shared/data.
"""

import json
import statistics
import sys
from typing import Any

import numpy as np
import torch
from estimators import CANDIDATES, HELD_OUT_EXAMPLES, MAIN_LIMITS, NETWORKS, NUM_RANDOM, ROOT

import mpq
from mpq import Calibration
from mpq.cli.loading import load_callable, load_model, load_object
from mpq.report.estimators import EstimatorComparison
from mpq.report.rank_agreement import RankAgreement
from mpq.sensitivity import Estimation, OutputSketch
from mpq.workflows.setup import Prepared

TEMPERATURES = (1.0, 1.5, 2.0)
SEEDS = range(4)


def main() -> None:
    torch.set_num_threads(1)
    found = {name: measure(name) for name in NETWORKS}
    command = " ".join(["python", *sys.argv])
    print(json.dumps({"command": command, "torch": torch.__version__, **found}, indent=1))


def measure(name: str) -> dict[str, Any]:
    """Every temperature on one network."""
    example, weights = NETWORKS[name]
    spec = ROOT / "examples" / f"{example}.py"
    precisions, limits = CANDIDATES["weights"]
    task = mpq.Task(
        load_model(f"{spec}:make_net", load_object(f"{spec}:DATA") / weights),
        load_callable(f"{spec}:calibration"),
        Calibration(load_callable(f"{spec}:held_out"), stop=HELD_OUT_EXAMPLES),
        candidates=precisions,
        rounding="nearest",
    )
    comparison = mpq.compare(
        task, limits, estimators=["weight-error"], num_random=NUM_RANDOM[name],
        folder=ROOT / "benchmarks" / "estimators" / f"{name}-weights",
    )  # fmt: skip
    prepared = Prepared.of(task)
    rows: dict[str, Any] = {}
    for temperature in TEMPERATURES:
        found = [correlation(prepared, comparison, temperature, seed) for seed in SEEDS]
        rows[f"temperature {temperature}"] = {
            "spearman_by_seed": found, "mean": statistics.fmean(found)
        }  # fmt: skip
    return rows


def correlation(
    prepared: Prepared, comparison: EstimatorComparison, temperature: float, seed: int
) -> float:
    """Of one sketch."""
    estimator = OutputSketch(temperature=temperature, seed=seed)
    found = estimator.estimate(
        Estimation(prepared.network, prepared.calibration, prepared.quantizer, prepared.candidates)
    )
    assert found.interactions is not None
    predicted, measured = [], []
    for trial in comparison.trials:
        if trial.limit in MAIN_LIMITS and trial.divergence < comparison.max_loss:
            columns = np.array(trial.columns)
            additive = found.table.values[np.arange(len(columns)), columns].sum()
            predicted.append(float(additive) + found.interactions.excess(columns))
            measured.append(trial.divergence)
    return RankAgreement.of(predicted, measured).spearman


if __name__ == "__main__":
    main()
