r"""Searches among formats with branches, against the same searches without them.

    python benchmarks/side_branches.py > benchmarks/side_branches.json
    python benchmarks/side_branches.py --errors --layers 'layers.2.*' llama \
        > benchmarks/side_branches_errors.json
    python benchmarks/side_branches.py vit --bits 3 --roundings nearest

The small Llama (or other networks that are named), weights only, at 2.5 and 3 effective bits, with
weights rounded to nearest and by ``auto``. Candidates are integers of 2 to 6 bits in groups of 64,
and beside them those of 2, 3 and 4 bits with a share of .5, 1 or 2 % in fp16, or a product of rank
1, 2, 4 or 8. A row says which share and rank the search takes, for how many layers and for what
share of the weights, and what both answers lose on fresh examples (KL divergence in nats), as a
ratio with a 95 % interval by paired bootstrap over examples; ``kinds`` has the same with candidates
of one kind of branch. Data, parts and seeds are those of ``rounding_search.py``; so are the fresh
examples.

With --errors no search is made: of every layer (or those that a glob names) the error by the damped
second moment in formats with branches, beside that of the plain format, all by coordinate descent;
and what integers have at the bits of the branch, where the logarithm of the error of 3 and 4 bits
is drawn as a line. Needs the published networks: MPQ_DATA, or ../shared/data; for SmolLM2-135M,
whose weights came as Q4_1, ``loaders.py``.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from math import exp, log
from statistics import geometric_mean, mean
from typing import Any, Final

import torch
from rounding_search import Batches, network, parts, ratio, solved

import mpq
from mpq._support.arrays import Array
from mpq.network.modules import share_parameters, weight_of
from mpq.network.weight_layout import layout_of
from mpq.quantization.error_form import ErrorForm
from mpq.quantization.precision import Precision
from mpq.rounding.branches import DAMPING
from mpq.rounding.diagonal_blocks import blocks
from mpq.rounding.objective import Objective
from mpq.sensitivity.passes.second_moments import second_moments
from mpq.workflows.defaults import ESTIMATOR, SOLVER
from mpq.workflows.evaluate import Reference
from mpq.workflows.evaluator import Evaluator
from mpq.workflows.method import Method
from mpq.workflows.setup import Prepared

PLAIN: Final = tuple(f"w{bits}g64" for bits in range(2, 7))
SHARES: Final = tuple(f"w{bits}g64+s{p}%" for bits in (2, 3, 4) for p in ("0.5", "1", "2"))
RANKS: Final = tuple(f"w{bits}g64+r{rank}" for bits in (2, 3, 4) for rank in (1, 2, 4, 8))
KINDS: Final = {
    "none": PLAIN,
    "sparse": (*PLAIN, *SHARES),
    "low rank": (*PLAIN, *RANKS),
    "both": (*PLAIN, *SHARES, *RANKS),
}
"""Candidates, by the branches among them."""

BASE, NEXT = "w3g64", "w4g64"
BRANCHES: Final = ("s0.5%", "s1%", "s2%", "s5%", "r4", "r8", "r16", "r32")
BESIDE: Final = tuple(f"{BASE}+{branch}" for branch in BRANCHES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["llama"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--bits", default="2.5,3")
    parser.add_argument("--roundings", default="nearest,auto")
    parser.add_argument("--errors", action="store_true")
    parser.add_argument("--layers", default="*")
    given = parser.parse_args()
    torch.set_num_threads(1)
    header = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__}
    if given.errors:
        found = {name: errors(name, given.layers) for name in given.networks}
        print(json.dumps({**header, "errors": found}, indent=1))
        return
    rows = [
        row
        for name in given.networks
        for seed in range(given.seeds)
        for rounding in given.roundings.split(",")
        for row in compared(name, seed, rounding, list(map(float, given.bits.split(","))))
    ]
    print(json.dumps({**header, "rows": rows}, indent=1))


def compared(name: str, seed: int, rounding: str, bits: list[float]) -> list[dict[str, Any]]:
    """A row for every budget of one network, calibration examples and rounding."""
    model, data = network(name, seed)
    found = {kind: answers(model, data, seed, rounding, bits, kind) for kind in KINDS}
    return [
        {
            "network": name,
            "seed": seed,
            "rounding": rounding,
            "effective_bits": limit,
            "kinds": {
                kind: {**each[limit][0], **ratio(each[limit][1], found["none"][limit][1])}
                for kind, each in found.items()
            },
        }
        for limit in bits
    ]


def answers(
    model: torch.nn.Module,
    data: tuple[Batches, Batches],
    seed: int,
    rounding: str,
    bits: list[float],
    kind: str,
) -> dict[float, tuple[dict[str, Any], Array]]:
    """What the search takes at every budget, and ``[N]`` nats of fresh examples."""
    calibration, fresh = data
    seen, held_out = parts(calibration)
    task = mpq.Task(model, seen, held_out, candidates=KINDS[kind], rounding=rounding, seed=seed)
    start = time.process_time()
    prepared = Prepared.of(task)
    method = Method.of(ESTIMATOR, SOLVER, seed)
    estimate = method.estimator.estimate(prepared.asked)
    limits = {limit: mpq.Limit.parse(f"effective_bits={limit}") for limit in bits}
    chosen = {b: solved(prepared, method, estimate, limit) for b, limit in limits.items()}
    seconds = time.process_time() - start
    print(kind, rounding, seed, round(seconds), "s", file=sys.stderr)
    original = Reference(share_parameters(model), mpq.Calibration.of(fresh))
    evaluator = Evaluator(prepared.network, prepared.quantizer, original)
    return {
        limit: (
            {**taken(prepared, precisions), "seconds": seconds},
            evaluator.measure(precisions).by_example,
        )
        for limit, precisions in chosen.items()
    }


def taken(prepared: Prepared, precisions: Mapping[str, Precision]) -> dict[str, Any]:
    """Bits in all, and formats with the number of layers and the share of weights at each."""
    stored = [x for x in prepared.network.layers if x.weight_of is None]
    every = sum(layer.num_weights for layer in stored)
    layers, weights = Counter[str](), Counter[str]()
    bits = 0
    for layer in stored:
        precision = precisions[layer.name].weight
        spelled = str(precisions[layer.name]).removesuffix("a32")
        layers[spelled] += 1
        weights[spelled] += layer.num_weights
        bits += precision.stored_bits(layer.num_weights, layer.num_channels)
    shares = {name: round(count / every, 4) for name, count in sorted(weights.items())}
    return {
        "used_bits": bits / every,
        "layers": dict(sorted(layers.items())),
        "share_of_weights": shares,
    }


def errors(name: str, layers: str) -> dict[str, Any]:
    """Of every branch beside 3 bits: bits and error of each layer, and geometric means."""
    model, (calibration, _) = network(name, 0)
    seen, held_out = parts(calibration)
    task = mpq.Task(
        model, seen, held_out, candidates=(BASE, NEXT, *BESIDE), rounding="coordinate-descent",
        rules=mpq.Rules(include=[layers]),
    )  # fmt: skip
    prepared = Prepared.of(task)
    moments = second_moments(prepared.asked).values
    rows: dict[str, list[dict[str, float]]] = {spelled: [] for spelled in (NEXT, *BESIDE)}
    for layer in prepared.network.layers:
        if layer.name not in moments or layer.weight_of is not None:
            continue
        print(layer.name, layer.weight_shape, file=sys.stderr)
        module = prepared.network.layer_module(layer.name)
        weight = layout_of(module).to_rows(weight_of(module).detach()).float()
        form = ErrorForm.of_blocks(blocks(Objective.of(moments[layer.name], DAMPING).form))
        known = {}
        for spelled in (BASE, *rows):
            f = Precision.parse(spelled).weight
            numbers = prepared.quantizer.codes(layer.name, module, f).numbers()
            bits = f.stored_bits(layer.num_weights, layer.num_channels) / layer.num_weights
            known[spelled] = bits, log(form.of(weight - numbers))
        (low, base), (high, best) = known[BASE], known[NEXT]
        for spelled, found in rows.items():
            bits, error = known[spelled]
            line = base + (best - base) * (bits - low) / (high - low)
            of_base = {"error": exp(error - base), "integers": exp(line - base)}
            found.append({"bits_added": bits - low, **of_base})
    return {
        spelled: {
            "bits_added": mean(row["bits_added"] for row in found),
            "error": geometric_mean(row["error"] for row in found),
            "of_integers_at_these_bits": geometric_mean(row["integers"] for row in found),
            "layers": found,
        }
        for spelled, found in rows.items()
    }


if __name__ == "__main__":
    main()
