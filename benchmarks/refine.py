"""The sketch taken anew at the incumbent: what refining gains on held-out examples.

    python benchmarks/refine.py > benchmarks/refine.json

For each network and budget: held-out loss of the first assignment, and of the one that is left
after at most three rounds (a round is kept only if the loss on the calibration examples fell),
also in units of what the best published estimator's assignment loses, as found by
``benchmarks/estimators.py`` (its files are read). Needs the published networks: set MPQ_DATA, or
have them in ../shared/data.
"""

import json
import sys
from math import exp, log
from statistics import fmean
from typing import Any

import pandas as pd
import torch
from estimators import CANDIDATES, HELD_OUT_EXAMPLES, NETWORKS, ROOT

from mpq import ESTIMATORS, SOLVERS, Calibration
from mpq.cli.loading import load_callable, load_model, load_object
from mpq.problem.limits import Limit
from mpq.solvers.queries.solve import solve
from mpq.workflows.refine import refine
from mpq.workflows.search import estimated
from mpq.workflows.setup import Prepared
from mpq.workflows.task import Task

ROUNDS = 3


def main() -> None:
    torch.set_num_threads(1)
    found = {name: measure(name) for name in NETWORKS}
    ratios = [r["refined_to_best_published"] for rows in found.values() for r in rows.values()]
    print(
        json.dumps(
            {
                "command": " ".join(["python", *sys.argv]),
                "torch": torch.__version__,
                **found,
                "refined_to_best_published": {
                    "geometric_mean": exp(fmean(map(log, ratios))),
                    "worst": max(ratios),
                },
            },
            indent=1,
        )
    )


def measure(name: str) -> dict[str, Any]:
    """Every budget of one network."""
    example, weights = NETWORKS[name]
    spec = ROOT / "examples" / f"{example}.py"
    precisions, limits = CANDIDATES["weights"]
    task = Task(
        load_model(f"{spec}:make_net", load_object(f"{spec}:DATA") / weights),
        load_callable(f"{spec}:calibration"),
        Calibration(load_callable(f"{spec}:held_out"), stop=HELD_OUT_EXAMPLES),
        candidates=precisions,
    )
    prepared = Prepared.of(task)
    estimator, solver = ESTIMATORS.build("sketch"), SOLVERS.build("auto")
    rows = {}
    published = best_published(name)
    for limit in limits:
        constraints = prepared.constraints([Limit.parse(limit)])
        problem, _ = estimated(prepared, constraints, estimator, solver)
        first = solve(solver, problem)
        last, rounds = refine(
            estimator, solver, problem, first, prepared.on_calibration, prepared.calibration, ROUNDS
        )
        before, after = (
            prepared.on_held_out.measure(solution.precisions(problem)).divergence
            for solution in (first, last)
        )
        rows[limit] = {
            "held_out_nats": before,
            "held_out_refined_nats": after,
            "refined_to_first": after / before,
            "refined_to_best_published": after / published[limit],
            "calibration_nats_of_rounds": [one.measured_loss for one in rounds],
            "rounds_kept": sum(one.is_kept for one in rounds),
        }
    return rows


def best_published(name: str) -> dict[str, float]:
    """What the optima of the best published estimator lose at every budget."""
    folder = ROOT / "benchmarks" / "estimators"
    winner = json.loads((folder / f"{name}-weights.json").read_text())["best_published"]
    table = pd.read_csv(folder / f"{name}-weights" / "estimators.csv").set_index("estimator")
    limits = CANDIDATES["weights"][1]
    return {limit: float(table[f"solved_nats at {limit}"][winner]) for limit in limits}


if __name__ == "__main__":
    main()
