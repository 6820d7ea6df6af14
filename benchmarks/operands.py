"""What rounding operands between layers costs, and what a search over them gains.

    python benchmarks/operands.py vit --cases w4a4 > benchmarks/operands/vit-w4a4.json

On the published networks, with weights rounded to nearest: the KL divergence on fresh examples
(those of ``rounding_search.py``) of every layer at one precision, with inputs of layers alone
rounded and with operands of products, additions, multiplications and concatenations rounded, too
(``--activations all``); and of the additive sketch's best assignment over all of them, within the
bit operations and the activation bytes that the uniform network takes. Prices and ranges are from
at most 384 images, or 48 texts. Ratios are to the uniform network with all tensors rounded, in
intervals of 95 % by paired bootstrap over examples. One seed; nothing was chosen by these examples.
Needs the published networks: MPQ_DATA, or ../shared/data.
"""

import argparse
import json
import shlex
import sys
import time
from itertools import product
from typing import Any, Final

import torch
from rounding_search import network, parts, ratio

import mpq
from mpq.network.modules import share_parameters
from mpq.problem.problem import Problem
from mpq.quantization.operand_formats import operand_precision
from mpq.quantization.precision import ORIGINAL, Precision
from mpq.workflows.evaluate import Reference
from mpq.workflows.evaluator import Evaluator
from mpq.workflows.method import Method
from mpq.workflows.setup import Prepared

CASES: Final = {
    "w4a4": [f"w{w}a{a}" for w, a in product((3, 4, 5), (3, 4, 5, 6))],
    "w8a8": [f"w{w}a{a}" for w, a in product((7, 8), (6, 7, 8, "int16"))],
}
"""The uniform precision, and what a search takes beside it."""
RESOURCES: Final = ("bit_operations", "activation_bytes")
ESTIMATOR: Final = "sketch:interactions=false"
NUM_CALIBRATION: Final = 512
NUM_FRESH: Final = {"vit": 1000, "llama": 64, "resnet20": 1017}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["resnet20", "vit", "llama"])
    parser.add_argument("--cases", default=",".join(CASES))
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [compared(name, case) for name in given.networks for case in given.cases.split(",")]
    header = {"command": shlex.join(["python", *sys.argv]), "torch": torch.__version__}
    print(json.dumps({**header, "rows": rows}, indent=1))


def compared(name: str, case: str) -> dict[str, Any]:
    """Losses of one network at one budget."""
    model, (calibration, fresh) = network(name, 0)
    fresh = fresh[: -(-NUM_FRESH[name] // len(fresh[0][0]))]
    seen, held_out = parts(calibration[: -(-NUM_CALIBRATION // len(calibration[0][0]))])
    candidates, uniform = CASES[case], Precision.parse(case)
    task = mpq.Task(
        model, seen, held_out, candidates=candidates, rounding="nearest", activations="all"
    )
    start = time.process_time()
    prepared = Prepared.of(task)
    method = Method.of(ESTIMATOR, "ilp", 0)
    estimate = method.estimator.estimate(prepared.asked)
    limits = [mpq.Limit.parse(f"{resource}=1x:{case}") for resource in RESOURCES]
    problem = Problem(estimate.table, prepared.constraints(limits), estimate.interactions)
    problem, solution = method.solve(problem, None, prepared)
    seconds = time.process_time() - start
    original = Reference(share_parameters(model), mpq.Calibration.of(fresh))
    evaluator = Evaluator(prepared.network, prepared.quantizer, original)
    layers, left = prepared.network.layers, prepared.network.operands_left
    every = {x.name: uniform if x.has_weights else operand_precision(uniform) for x in layers}
    inputs = {x.name: every[x.name] if x.has_weights else ORIGINAL for x in layers}
    chosen = {"inputs": inputs, "all": every, "searched": solution.precisions(problem)}
    measured = {label: evaluator.measure(precisions) for label, precisions in chosen.items()}
    base = measured["all"].by_example
    row: dict[str, Any] = {
        "network": name,
        "case": case,
        "layers": sum(x.has_weights for x in layers),
        "operands": sum(x.is_operand for x in layers),
        "operands_left": {} if left is None else dict(left),
        "search_seconds": seconds,
    }
    for label, found in measured.items():
        row[label] = {**ratio(found.by_example, base), "accuracy": found.accuracy}
    row["used"] = {
        resource: {
            label: prepared.pricing.amount(resource, precisions)
            for label, precisions in chosen.items()
        }
        for resource in RESOURCES
    }
    print(*(f"{k}={v}" for k, v in row.items() if k != "operands_left"), file=sys.stderr)
    return row


if __name__ == "__main__":
    main()
