"""One budget for weights and key-value cache, beside every uniform pair of formats within it.

    python benchmarks/kv_cache.py llama > benchmarks/kv_cache_llama.json
    python benchmarks/kv_cache.py llama --before-rotation > benchmarks/kv_cache_llama_before.json
    python benchmarks/kv_cache.py smollm2 --weights w4g64,w6g64,w8g64 \
        --caches a8d,a4d,a3d,a8c,a4c,a3c --budgets w4g64+a3d,w4g64+a4d,w6g64+a4d,w8g64+a8d \
        > benchmarks/kv_cache_smollm2.json

A budget is named after the pair whose bytes of weights and cache it is, at a context of
``--tokens`` tokens. Within each the search takes a format for every layer's weight and for the keys
and the values of every attention, by the sketch; a pair has one for all weights and one for all
keys and values. Weights are rounded to nearest in both, with the same scales and calibrated ranges.
A row has the KL divergence in nats on fresh examples, and its ratio to the best pair's within the
budget, with a 95 % interval by paired bootstrap over examples. The best pair is the one that is
best on these examples, which the search has not seen: a bound in its favour. Needs the published
network: MPQ_DATA, or ../shared/data; for SmolLM2-135M, whose weights came as Q4_1, ``loaders.py``.
With --before-rotation keys are held as they were before positions were rotated into them.
"""

import argparse
import json
import shlex
import sys
import time
from collections import Counter
from typing import Any, Final

import torch
from loaders import loader
from rounding_search import ROOT, ratio
from torch import nn

import mpq
from mpq._support.arrays import Array
from mpq.cli.loading import load_model, load_object
from mpq.network.modules import share_parameters
from mpq.quantization.precision import Precision
from mpq.workflows.evaluate import Reference
from mpq.workflows.evaluator import Evaluator
from mpq.workflows.setup import Prepared

WEIGHTS: Final = "w3,w4,w5,w6,w8"
CACHES: Final = "a8d,a6d,a4d,a3d,a8c,a6c,a4c,a3c"
BUDGETS: Final = "w3+a4c,w4+a4c,w4+a4d,w5+a6c,w6+a6c,w8+a8c"
RESOURCE: Final = "weight_and_cache_bytes"
Examples = list[dict[str, torch.Tensor]]
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=list(NETWORKS))
    parser.add_argument("--before-rotation", action="store_true")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--weights", default=WEIGHTS)
    parser.add_argument("--caches", default=CACHES)
    parser.add_argument("--budgets", default=BUDGETS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, calibration, fresh = NETWORKS[given.network]()
    weights, caches = given.weights.split(","), given.caches.split(",")
    task = mpq.Task(
        model,
        calibration,
        candidates=weights,
        kv_cache=mpq.KVCache(given.tokens, caches, before_rotation=given.before_rotation),
        rounding="nearest",
    )
    start = time.process_time()
    rows = Compared(task, fresh).rows(weights, caches, given.budgets.split(","))
    header = {
        "command": shlex.join(["python", *sys.argv]),
        "torch": torch.__version__,
        "seconds": time.process_time() - start,
    }
    print(json.dumps({**header, "rows": rows}, indent=1))


def llama() -> tuple[nn.Module, Examples, Examples]:
    """The Llama of 260,000 parameters in transformers, and sequences of 128 tokens."""
    spec = ROOT / "examples" / "llama_stories_transformers.py"
    model = load_model(f"{spec}:make_net", None)
    calibration, fresh = load_object(f"{spec}:calibration"), load_object(f"{spec}:held_out")
    return model, list(calibration()), list(fresh())


def smollm2() -> tuple[nn.Module, Examples, Examples]:
    """SmolLM2-135M, 8 calibration texts and 8 fresh ones, of 512 tokens each."""
    own = loader("smollm2")
    parts = own.calibration(8, 512, 1), own.held_out(8, 512, 1)
    calibration, fresh = ([{"input_ids": x} for x in part] for part in parts)
    return own.model(), calibration, fresh


NETWORKS: Final = {"llama": llama, "smollm2": smollm2}


class Compared:
    """Measures assignments of one task on fresh examples.

    Args:
        task: Its held-out examples are a quarter of the calibration examples.
        fresh: That no search has seen.
    """

    def __init__(self, task: mpq.Task, fresh: Examples) -> None:
        self.task, self.prepared = task, Prepared.of(task)
        original = Reference(share_parameters(task.model), mpq.Calibration.of(fresh))
        self.evaluator = Evaluator(self.prepared.network, self.prepared.quantizer, original)

    def rows(self, weights: list[str], caches: list[str], budgets: list[str]) -> list[Row]:
        """One for every budget."""
        pairs = {f"{w}+{a}": self.pair(w, a) for w in weights for a in caches}
        bytes_of = {name: self.num_bytes(pair) for name, pair in pairs.items()}
        losses = {name: self.loss(pair) for name, pair in pairs.items()}
        for name, values in losses.items():
            print(name, bytes_of[name], values.mean(), file=sys.stderr)
        found = []
        for budget in budgets:
            limit = bytes_of[budget]
            within = [name for name in pairs if bytes_of[name] <= limit]
            best = min(within, key=lambda name: losses[name].mean())
            result = mpq.search(self.task, {RESOURCE: limit}, sensitivity="sketch")
            chosen = result.assignment.precisions
            row = {"budget": budget, "limit_bytes": limit, "used_bytes": self.num_bytes(chosen)}
            row |= {"pairs_within": len(within), "best_pair": best}
            row |= {"best_pair_kl_nats": float(losses[best].mean())}
            row |= ratio(self.loss(chosen), losses[best])
            row |= {"replaced_by": result.safeguard and result.safeguard.replaced_by}
            row |= {"chosen": counted(chosen)}
            found.append(row)
            print(*map(str, row.values()), file=sys.stderr)
        return found

    def pair(self, weight: str, cached: str) -> dict[str, Precision]:
        """Layer name to precision: one for all weights, one for all caches."""
        of_weight, of_cache = Precision.parse(weight), Precision.parse(f"w32{cached}")
        layers = self.prepared.network.layers
        return {x.name: of_cache if x.is_cache else of_weight for x in layers}

    def num_bytes(self, precisions: dict[str, Precision]) -> float:
        """Of weights and cache together."""
        return self.prepared.pricing.amount(RESOURCE, precisions)

    def loss(self, precisions: dict[str, Precision]) -> Array:
        """``[N]`` nats of every fresh example."""
        return self.evaluator.measure(precisions).by_example


def counted(precisions: dict[str, Precision]) -> dict[str, dict[str, int]]:
    """How many layers have which format, of weights, keys and values."""
    kinds = {"k_cache": "keys", "unrotated_k_cache": "keys", "v_cache": "values"}
    found: dict[str, Counter[str]] = {"weights": Counter(), "keys": Counter(), "values": Counter()}
    for name, precision in precisions.items():
        kind = kinds.get(name.rpartition(".")[2], "weights")
        found[kind][str(precision).removeprefix("w32")] += 1
    return {kind: dict(sorted(count.items())) for kind, count in found.items()}


if __name__ == "__main__":
    main()
