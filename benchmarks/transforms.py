"""What equivalent transformations are worth: losses before and after each, on fresh examples.

    python benchmarks/transforms.py llama --cases w4a4,w4a8 > benchmarks/transforms_llama.json
    python benchmarks/transforms.py vit --transforms "smooth;rotate:learned=true" --cases w4a8
    python benchmarks/transforms.py llama --rounding auto --transforms "smooth;rotate+smooth"

The small Llama and the vision transformer (or others of ``rounding_search.py``), uniform at w4a4
and at w4a8, and searched among w2a8 to w8a8 at the bytes of uniform 4 bits; weights rounded to
nearest unless ``--rounding`` says otherwise, so that what is compared are the transformations
alone. Transformations of one row are joined by ``+``, rows by ``;``. A row has the KL divergence
in nats on fresh examples (MNIST test images 2,000 to 3,999, 128 stories of eval180), its ratio to
the row without a transformation with a 95 % interval by paired bootstrap over examples, and
whether the search used the transformation: one that unseen calibration examples do not speak for
is not used, and the row is that of the untransformed network. Times are processor time of one
thread. Needs the published networks: MPQ_DATA, or ../shared/data.
"""

import argparse
import json
import sys
import time
from typing import Any, Final

import torch
from rounding_search import Batches, network, parts, ratio, solved
from torch import nn

import mpq
from mpq._support.arrays import Array
from mpq.network.modules import share_parameters
from mpq.quantization.precision import Precision
from mpq.sensitivity import Estimation
from mpq.workflows.defaults import ESTIMATOR, SOLVER
from mpq.workflows.evaluate import Reference
from mpq.workflows.evaluator import Evaluator
from mpq.workflows.method import Method
from mpq.workflows.setup import Prepared

CANDIDATES: Final = ("w2a8", "w3a8", "w4a8", "w5a8", "w6a8", "w8a8")
UNIFORM: Final = ("w4a4", "w4a8")
SEARCHED: Final = "searched at the bytes of w4"
NUM_FRESH: Final = {"vit": 2000, "llama": 128}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["vit", "llama"])
    parser.add_argument("--transforms", default=";".join(mpq.TRANSFORMS.names()))
    parser.add_argument("--rounding", default="nearest")
    parser.add_argument("--cases", default=",".join((*UNIFORM, SEARCHED)))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row
        for name in given.networks
        for case in given.cases.split(",")
        for row in compared(name, case, given.transforms.split(";"), given.rounding, given.seed)
    ]
    header = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__}
    print(json.dumps({**header, "rows": rows}, indent=1))


def compared(
    name: str, case: str, transforms: list[str], rounding: str, seed: int
) -> list[dict[str, Any]]:
    """A row without a transformation, and one for each."""
    model, (calibration, fresh) = network(name, seed)
    fresh = first(fresh, NUM_FRESH.get(name, 1000))
    chosen = [(), *(tuple(each.split("+")) for each in transforms)]
    rows, base = [], None
    for names in chosen:
        losses, facts = measured(model, (calibration, fresh), case, names, rounding, seed)
        base = losses if base is None else base
        row = {"network": name, "case": case, "rounding": rounding, "asked": list(names), **facts}
        rows.append({**row, **ratio(losses, base)})
        print(row, round(rows[-1]["ratio"], 3), file=sys.stderr)
    return rows


def measured(
    model: nn.Module,
    data: tuple[Batches, Batches],
    case: str,
    transforms: tuple[str, ...],
    rounding: str,
    seed: int,
) -> tuple[Array, dict[str, Any]]:
    """``[N]`` nats of every fresh example, and what was done."""
    calibration, fresh = data
    seen, held_out = parts(calibration)
    candidates = CANDIDATES if case == SEARCHED else (case,)
    task = mpq.Task(
        model,
        seen,
        held_out,
        candidates=candidates,
        rounding=rounding,
        transforms=transforms,
        seed=seed,
    )
    start = time.process_time()
    prepared = Prepared.of(task)
    seconds = time.process_time() - start
    precisions = prepared.on_held_out.uniform(Precision.parse(candidates[0]))
    if case == SEARCHED:
        method = Method.of(ESTIMATOR, SOLVER, seed)
        on = Estimation(
            prepared.network, prepared.calibration, prepared.quantizer, prepared.candidates
        )
        estimate = method.estimator.estimate(on)
        precisions = solved(
            prepared, method, estimate, mpq.Limit.parse("weight_bytes=1x:w4"), "interactions"
        )
    original = Reference(share_parameters(model), mpq.Calibration.of(fresh))
    found = Evaluator(prepared.network, prepared.quantizer, original).measure(precisions)
    done = prepared.transformed
    made = None if done is None else done.reparametrization
    facts = {
        "used": [] if made is None else list(made.transforms),
        "unhelped": {} if done is None else dict(done.unhelped),
        "num_untransformed": 0 if done is None else len(done.untransformed),
        "prepare_seconds": seconds,
        "accuracy": found.accuracy,
    }
    return found.by_example, facts


def first(batches: Batches, count: int) -> Batches:
    """The first examples, whole batches."""
    size = len(batches[0][0])
    return batches[: -(-count // size)]


if __name__ == "__main__":
    main()
