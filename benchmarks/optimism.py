"""How much too low prices of codes are that fit the examples, and what raising them gives.

    python benchmarks/optimism.py efficientnet_lite0 resnet20 vit llama > benchmarks/optimism.json

For networks of ``rounding_search.py`` and their calibration examples (``--seeds`` draws), on the
examples by which choices may be made (``--choosing`` there), weights only, at the bytes of uniform
3, 4 and 5 bits. ``optimism`` has the factors of the layers whose prices are most too low, as the
search's own trial found them (docs/rounding.md). Where one is beyond 2, answers are ``before``:
those of a search that does not ask about prices for unseen examples; ``after``: its own; and
``nearest``: those of a search that rounds to nearest. Losses are in nats, ratios those of
``before``, with a 95 % interval by paired bootstrap over examples. Elsewhere nothing is asked, and
both are the same answer.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from rounding_search import BUDGET_BITS, CANDIDATES, network, parts, ratio, solved

import mpq
from mpq.network.modules import share_parameters
from mpq.workflows.defaults import ESTIMATOR, SOLVER
from mpq.workflows.evaluate import Reference
from mpq.workflows.evaluator import Evaluator
from mpq.workflows.method import Method
from mpq.workflows.optimism import OPTIMISM
from mpq.workflows.setup import Prepared

LEAST_SHOWN: Final = 8
"""Layers whose factors are printed, beside all others that are beyond ``OPTIMISM``."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--bits", default=",".join(map(str, BUDGET_BITS)))
    parser.add_argument("--examples", type=int, help="of those for choosing, at most")
    given = parser.parse_args()
    torch.set_num_threads(1)
    bits = list(map(int, given.bits.split(",")))
    rows = []
    for name in given.networks:
        for seed in range(given.seeds):
            rows.append(_row(name, seed, bits, given.examples))
            print(rows[-1], file=sys.stderr, flush=True)
    header = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__}
    print(json.dumps({**header, "rows": rows}, indent=1))


def _row(name: str, seed: int, bits: list[int], most: int | None) -> dict[str, Any]:
    model, (calibration, choosing) = network(name, seed, choosing=True)
    seen, held_out = parts(calibration)
    task = mpq.Task(model, seen, held_out, candidates=CANDIDATES, seed=seed)
    prepared = Prepared.of(task)
    factors = prepared.rounded.optimism
    num_beyond = sum(factor > OPTIMISM for factor in factors.values())
    ranked = sorted(factors, key=lambda layer: -factors[layer])
    largest = ranked[: max(LEAST_SHOWN, num_beyond)]
    row = {
        "network": name,
        "seed": seed,
        "unhelped": list(prepared.rounded.unhelped),
        "median_optimism": float(np.median([*factors.values()])),
        "optimism": {layer: round(factors[layer], 2) for layer in largest},
    }
    if not factors or max(factors.values()) <= OPTIMISM:
        return row
    data = mpq.Calibration.of(choosing)
    data = data if most is None else data.between(0, most)
    return row | {"budgets": list(_budgets(prepared, bits, data))}


def _budgets(
    prepared: Prepared, bits: list[int], data: mpq.Calibration
) -> Iterator[dict[str, Any]]:
    # The same codes and prices, of whose optimism nothing is known.
    before = replace(prepared)
    before.__dict__["rounded"] = replace(prepared.rounded, optimism={})
    nearest = Prepared.of(replace(prepared.task, rounding="nearest"))
    method = Method.of(ESTIMATOR, SOLVER, prepared.task.seed)
    original = Reference(share_parameters(prepared.task.model), data)
    estimates = {id(x): method.estimator.estimate(x.asked) for x in (prepared, nearest)}
    for budget in bits:
        found = dict[str, Any]()
        for label, asked in {"before": before, "after": prepared, "nearest": nearest}.items():
            estimate = estimates[id(nearest if asked is nearest else prepared)]
            limit = mpq.Limit.parse(f"weight_bytes=1x:w{budget}")
            answer = solved(asked, method, estimate, limit)
            evaluator = Evaluator(asked.network, asked.quantizer, original)
            losses = evaluator.measure(answer).by_example
            found[label] = losses
            print(budget, label, losses.mean(), file=sys.stderr, flush=True)
        yield {
            "bits": budget,
            **{label: ratio(losses, found["before"]) for label, losses in found.items()},
        }


if __name__ == "__main__":
    main()
