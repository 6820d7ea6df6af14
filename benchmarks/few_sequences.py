"""What more probes are worth where the calibration examples are few, on a trained Llama.

    python benchmarks/few_sequences.py > benchmarks/few_sequences.json

The sketch of NUM_SEQUENCES sequences with each of NUM_PROBES probes per batch, for NUM_DRAWS draws
of the sequences and of the signs; w2 to w8 in groups of 64, nearest, at budgets between them, by
the additive table alone. By number of probes:

- ``error``: the spread of the table around that of NUM_BEST probes for the same sequences, in the
  mean over cells relative to it (the root of the mean square);
- ``loss``: what the solver's answers lose on MEASURED other sequences, in nats, and ``above_best``:
  how much more that is, on the mean over draws, than what the answers by NUM_BEST probes lose, with
  its standard error over draws.

Needs the published network: set MPQ_DATA, or have it in ../shared/data.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import torch
from spot_check import given

import mpq
from mpq import ESTIMATORS, Calibration
from mpq.problem.problem import Problem
from mpq.sensitivity import Sensitivity
from mpq.solvers import SOLVERS
from mpq.workflows.setup import Prepared

FORMATS = tuple(f"w{bits}g64" for bits in (2, 3, 4, 5, 6, 8))
NUM_SEQUENCES, NUM_DRAWS, MEASURED = 6, 8, 64
NUM_PROBES, NUM_BEST = (1, 2, 3, 4, 6, 8), 48
BUDGETS = ("1x:w3g64", "1x:w4g64", "1x:w5g64")


def main() -> None:
    torch.set_num_threads(1)
    start = time.process_time()
    model, source = given("llama")
    found = [draw(model, Calibration(source), seed) for seed in range(NUM_DRAWS)]
    about = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__}
    counts = {"sequences": NUM_SEQUENCES, "draws": NUM_DRAWS, "best": NUM_BEST}
    rows = {count: summary(found, count) for count in (*NUM_PROBES, NUM_BEST)}
    seconds = {"processor_seconds": time.process_time() - start}
    print(json.dumps({**about, **counts, "budgets": BUDGETS, "probes": rows, **seconds}, indent=1))


def draw(model: torch.nn.Module, data: Calibration, seed: int) -> dict[int, dict[str, Any]]:
    """Number of probes to the table and to what its answers lose, for one draw of sequences."""
    every = torch.cat([batch.args[0] for batch in data])
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))
    few, others = every[order[:NUM_SEQUENCES]], every[order[NUM_SEQUENCES:][:MEASURED]]
    task = mpq.Task(
        model, list(few.split(4)), list(others.split(16)), candidates=FORMATS, rounding="nearest"
    )
    prepared = Prepared.untransformed(task)
    found = {}
    for count in (*NUM_PROBES, NUM_BEST):
        sketch = ESTIMATORS.build(f"sketch:num_probes={count}", seed).estimate(prepared.asked)
        losses = [loss(prepared, sketch, budget) for budget in BUDGETS]
        found[count] = {"table": sketch.table.values, "losses": losses}
    return found


def loss(prepared: Prepared, sketch: Sensitivity, budget: str) -> float:
    """What the answer to one budget loses on the other sequences."""
    constraints = prepared.constraints(mpq.problem.limits.parse_limits({"weight_bytes": budget}))
    problem = Problem(sketch.table, constraints)
    columns = SOLVERS.build("lagrangian").solve(problem).columns
    assert columns is not None
    return prepared.on_held_out.measure(problem.precisions_of(columns)).divergence


def summary(found: list[dict[int, dict[str, Any]]], count: int) -> dict[str, Any]:
    """Over draws."""
    apart = [each[count]["table"] / each[NUM_BEST]["table"] - 1 for each in found]
    losses = np.array([each[count]["losses"] for each in found])  # [draws, budgets]
    above = losses / np.array([each[NUM_BEST]["losses"] for each in found]) - 1
    return {
        "error": float(np.sqrt(np.mean(np.square(apart)))),
        "loss": losses.mean(axis=0).tolist(),
        "above_best": above.mean(axis=0).tolist(),
        "standard_error": (above.std(axis=0, ddof=1) / len(found) ** 0.5).tolist(),
    }


if __name__ == "__main__":
    main()
