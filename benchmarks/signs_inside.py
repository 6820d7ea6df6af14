"""Parts of layers in 1 bit beside parts in 2 to 8: what signs gain inside layers at few bits.

    python benchmarks/signs_inside.py llama --group 32 > benchmarks/inside/llama-signs.json
    python benchmarks/signs_inside.py llama --splits columns:16,channels

Searches and divides as ``inside.py`` does, twice: among integers of 2 to 8 bits, and with signs of
1 bit (``wbinary``) beside them, at multiples of the bytes of uniform 2 bits. Losses are in nats, of
examples by which choices may be made (those of ``--choosing``); the uniform precision of 2 bits
with the same rounding stands beside them. Needs the published networks: MPQ_DATA, or
../shared/data.
"""

import argparse
import json
import sys
from typing import Any, Final

import torch
from estimators import NETWORKS
from inside import by_layers, in_parts
from rounding_search import Asked, network, parts

import mpq
from mpq.network.modules import share_parameters
from mpq.problem.split import Split
from mpq.quantization.channel_bits import SIGNS
from mpq.quantization.precision import Precision
from mpq.workflows.defaults import ESTIMATOR, SOLVER
from mpq.workflows.evaluate import Reference
from mpq.workflows.evaluator import Evaluator
from mpq.workflows.method import Method
from mpq.workflows.setup import Prepared

FACTORS: Final = (0.8, 1.0, 1.25)
"""Of the bytes of uniform 2 bits."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--seeds", default="0", help="with commas")
    parser.add_argument("--splits", default="columns:32,groups,channels")
    parser.add_argument("--group", type=int, help="weights that share a scale")
    parser.add_argument("--rounding", default="auto", help="how weights become codes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row
        for name in given.networks
        for seed in map(int, given.seeds.split(","))
        for has_signs in (False, True)
        for row in divided(
            name,
            Asked(seed, (2,), True, False, given.group),
            given.splits.split(","),
            given.rounding,
            has_signs,
        )
    ]
    header = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__}
    print(json.dumps({**header, "rows": rows}, indent=1))


def divided(
    name: str, asked: Asked, splits: list[str], rounding: str, has_signs: bool
) -> list[dict[str, Any]]:
    """A row for every budget: what layers and all splits lose."""
    model, (calibration, fresh) = network(name, asked.seed, asked.choosing)
    seen, held_out = parts(calibration)
    group = f"g{asked.group}" if asked.group else ""
    candidates = ([f"w{SIGNS}{group}"] if has_signs else []) + list(asked.candidates)
    task = mpq.Task(
        model, seen, held_out,
        candidates=candidates, rounding=rounding, seed=asked.seed, split=splits[0],
    )  # fmt: skip
    prepared = Prepared.of(task)
    method = Method.of(ESTIMATOR, SOLVER, asked.seed)
    estimate = method.estimator.estimate(prepared.asked)
    if not prepared.quantizer.stored and len({Split.parse(x) for x in splits}) > 1:
        raise SystemExit("prices to nearest are of one split each: ask for one")
    original = Reference(share_parameters(model), mpq.Calibration.of(fresh))
    evaluator = Evaluator(prepared.network, prepared.quantizer, original, prepared.own_codes)
    uniform = dict.fromkeys(prepared.asked.names, Precision.parse(asked.uniform(2)))
    rows = []
    # Of integers alone there is nothing to choose at the bytes of the fewest bits.
    for factor in FACTORS if has_signs else FACTORS[2:]:
        row: dict[str, Any] = {"network": name, "seed": asked.seed, "factor": factor}
        row |= {"has_signs": has_signs, "uniform_kl_nats": evaluator.measure(uniform).divergence}
        limit = mpq.Limit.parse(f"weight_bytes={factor}x:{asked.uniform(2)}")
        problem, solution = by_layers(prepared, method, estimate, limit)
        row["layers_kl_nats"] = evaluator.measure(solution.precisions(problem)).divergence
        for spelled in splits:
            row[spelled] = in_parts(prepared, spelled, problem, solution, estimate, evaluator)
            print(name, has_signs, factor, spelled, row[spelled], file=sys.stderr)
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
