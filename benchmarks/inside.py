"""Bits inside layers: what parts of layers gain over whole layers at the same bytes.

    python benchmarks/inside.py llama > benchmarks/inside/llama.json
    python benchmarks/inside.py vit --seeds 1 --splits channels,blocks:4
    python benchmarks/inside.py --choosing
    python benchmarks/inside.py --join vit-0.json vit-1.json > benchmarks/inside/vit-columns.json

Networks, calibration examples, fresh examples and seeds are those of ``rounding_search.py``, as is
the search by layers (``auto`` rounding, weights only, at the bytes of uniform 3, 4 and 5 bits).
Every split divides that search's answer, by the same estimate; what says which part has which bits
is in the bytes. Losses are of fresh examples, in nats; beside the searches stand the uniform
precision with the same rounding and, of the three published networks, the search of a commit before
weights were rounded with regard to data (``earlier_default.json``). With --choosing the fresh
examples are others, by which choices may be made. Needs the published networks: MPQ_DATA, or
../shared/data; for EfficientNet-Lite0 and SmolLM2-135M ``loaders.py``.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import torch
from earlier_default import mean_ratio
from estimators import NETWORKS
from rounding_search import BUDGET_BITS, Asked, network, parts

import mpq
from mpq.network.modules import share_parameters
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.problem.split import Split
from mpq.quantization.precision import Precision
from mpq.sensitivity import Estimation, Sensitivity
from mpq.workflows.coupled_rows import round_parts
from mpq.workflows.defaults import ESTIMATOR, SOLVER
from mpq.workflows.evaluate import Reference
from mpq.workflows.evaluator import Evaluator
from mpq.workflows.inside import answer_in_parts, solved_in_parts
from mpq.workflows.method import Method
from mpq.workflows.never_worse import never_worse
from mpq.workflows.other_answers import best_answer
from mpq.workflows.setup import Prepared

HERE = Path(__file__).resolve().parent
SPLITS: Final = ("channels", "channels:16", "channels:64", "blocks:4")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--seeds", default="0,1,2", help="with commas")
    parser.add_argument("--splits", default=",".join(SPLITS))
    parser.add_argument("--bits", default=",".join(map(str, BUDGET_BITS)))
    parser.add_argument("--group", type=int, help="weights that share a scale")
    parser.add_argument("--rounding", default="auto", help="how weights become codes")
    parser.add_argument("--choosing", action="store_true")
    parser.add_argument("--join", nargs="+", type=Path, help="files of runs, printed as one")
    given = parser.parse_args()
    if given.join:
        runs = [json.loads(file.read_text()) for file in given.join]
        rows = [row for run in runs for row in run["rows"]]
        told = {"commands": [run["command"] for run in runs], "torch": runs[0]["torch"]}
        print(json.dumps({**told, "rows": rows, "means": means(rows)}, indent=1))
        return
    torch.set_num_threads(1)
    bits = tuple(map(int, given.bits.split(",")))
    rows = [
        row
        for name in given.networks
        for seed in map(int, given.seeds.split(","))
        for row in divided(
            name,
            Asked(seed, bits, given.choosing, False, given.group),
            given.splits.split(","),
            given.rounding,
        )
    ]
    header = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__}
    print(json.dumps({**header, "rows": rows, "means": means(rows)}, indent=1))


def divided(name: str, asked: Asked, splits: list[str], rounding: str) -> list[dict[str, Any]]:
    """A row for every budget: what layers and all splits lose on fresh examples."""
    model, (calibration, fresh) = network(name, asked.seed, asked.choosing)
    seen, held_out = parts(calibration)
    task = mpq.Task(
        model,
        seen,
        held_out,
        candidates=asked.candidates,
        rounding=rounding,
        seed=asked.seed,
        split=splits[0],
    )
    prepared = Prepared.of(task)
    method = Method.of(ESTIMATOR, SOLVER, asked.seed)
    estimate = method.estimator.estimate(prepared.asked)
    estimates = {
        x: estimate if _is_shared(prepared, x) else method.estimator.estimate(_of(prepared, x))
        for x in splits
    }
    original = Reference(share_parameters(model), mpq.Calibration.of(fresh))
    evaluator = Evaluator(prepared.network, prepared.quantizer, original, prepared.own_codes)
    rows = []
    for bits in asked.budget_bits:
        uniform = dict.fromkeys(prepared.asked.names, Precision.parse(asked.uniform(bits)))
        row = {"network": name, "seed": asked.seed, "bits": bits}
        row["uniform_kl_nats"] = evaluator.measure(uniform).divergence
        problem, solution = by_layers(prepared, method, estimate, asked.limit(bits))
        row["layers_kl_nats"] = evaluator.measure(solution.precisions(problem)).divergence
        for spelled in splits:
            known = estimates[spelled]
            row[spelled] = in_parts(prepared, spelled, problem, solution, known, evaluator)
            print(name, asked.seed, bits, spelled, row[spelled], file=sys.stderr)
        rows.append(row)
    return rows


def _of(prepared: Prepared, spelled: str) -> Estimation:
    return replace(prepared.asked, split=Split.parse(spelled))


def _is_shared(prepared: Prepared, spelled: str) -> bool:
    """Whether prices are those of the first split: of codes that fit data all begin alike."""
    return all(
        prepared.asked.units(x) == _of(prepared, spelled).units(x) for x in prepared.asked.names
    )


def by_layers(
    prepared: Prepared, method: Method, estimate: Sensitivity, limit: mpq.Limit
) -> tuple[Problem, Solution]:
    """The search's answer by layers."""
    problem = Problem(estimate.table, prepared.constraints([limit]), estimate.interactions)
    problem, solution = method.solve(problem, None, prepared)
    solution, _ = best_answer(prepared, problem, solution, estimate.by_channels)
    solution, _ = never_worse(prepared, problem, solution)
    return problem, solution


def in_parts(
    prepared: Prepared,
    spelled: str,
    problem: Problem,
    solution: Solution,
    estimate: Sensitivity,
    evaluator: Evaluator,
) -> dict[str, Any]:
    """What the answer in parts loses, its proof, and how long solving and checking took."""
    split, start = Split.parse(spelled), time.process_time()
    assert split is not None
    asked, parted, check = answer_in_parts(prepared, split, problem, solution, estimate)
    seconds = time.process_time() - start
    if check is None or not check.is_replaced:
        found = solved_in_parts(prepared, split, problem, solution, estimate)
        asked, parted = found[0]
    precisions = parted.precisions(asked)
    round_parts(prepared, [precisions])
    lost = evaluator.measure(precisions).divergence
    is_taken = check is not None and check.is_replaced
    by_layers = evaluator.measure(solution.precisions(problem)).divergence
    return {
        "kl_nats": lost if is_taken else by_layers,
        "is_taken": is_taken,
        "in_parts_kl_nats": lost,
        "held_out": None if check is None else asdict(check.held_out),
        "num_parts": len(asked.loss.layers),
        "gap": parted.gap,
        "weight_bytes": prepared.pricing.amount("weight_bytes", precisions),
        "limit_bytes": problem.budgets[0].limit,
        "seconds": round(seconds, 2),
    }


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Geometric means over seeds of ratios to what stands beside each split."""
    known = json.loads((HERE / "earlier_default.json").read_text())["rows"]
    earlier = {(x["network"], x["bits"]): x["earlier_kl_nats"] for x in known}
    found = []
    for name, bits in dict.fromkeys((row["network"], row["bits"]) for row in rows):
        some = [row for row in rows if (row["network"], row["bits"]) == (name, bits)]
        before = earlier.get((name, bits), [])
        bases = {
            "uniform": [row["uniform_kl_nats"] for row in some],
            "layers": [row["layers_kl_nats"] for row in some],
        }
        if before:
            bases["earlier"] = [before[row["seed"]] for row in some]
        losses = {"layers": bases["layers"]}
        losses |= {x: [row[x]["kl_nats"] for row in some] for x in _splits(some[0])}
        found.append(
            {
                "network": name,
                "bits": bits,
                **{
                    key: {base: mean_ratio(lost, values) for base, values in bases.items()}
                    for key, lost in losses.items()
                },
            }
        )
    return found


def _splits(row: dict[str, Any]) -> list[str]:
    return [key for key, value in row.items() if isinstance(value, dict)]


if __name__ == "__main__":
    main()
