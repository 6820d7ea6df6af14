"""BAQ with columns of 0 bits and without, and with layers in units of their own and not.

    python benchmarks/left_out.py > benchmarks/inside/llama-left-out.json

On the small Llama, at the bytes of uniform 3 bits and at 1.1 times those of 2: the recipe
``baq``, with and without 0 and 1 bits among its candidates, where columns of all layers are
compared in units of each layer's own (``column-loss:by_layer=true``, the recipe's) and as they are.
Losses are in nats, of fresh examples; shares are of weights that have so many bits, and
``mean_bits`` the least and the most bits that a layer has in the mean. Networks, calibration and
fresh examples are those of ``rounding_search.py`` (one seed). Needs the published
networks: MPQ_DATA, or ../shared/data.
"""

import argparse
import json
import math
import sys
from collections import Counter
from typing import Any, Final

import torch
from rounding_search import Batches, network, parts
from torch import nn

import mpq
from mpq.problem.assignment import AssignedLayer

LIMITS: Final = ("1.1x:w2", "1x:w3")
INTEGERS: Final = tuple(f"w{bits}a16" for bits in range(2, 9))
WITHOUT: Final = {"0 to 8": ("w0a16", "wbinarya16", *INTEGERS), "2 to 8": INTEGERS}
ESTIMATORS: Final = ("column-loss:by_layer=true", "column-loss")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, data = network("llama", given.seed)
    rows = [
        searched(model, data, given.seed, estimator, bits, limit)
        for estimator in ESTIMATORS
        for limit in LIMITS
        for bits in WITHOUT
    ]
    header = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__}
    print(json.dumps({**header, "rows": rows}, indent=1))


def searched(
    model: nn.Module,
    data: tuple[Batches, Batches],
    seed: int,
    estimator: str,
    bits: str,
    limit: str,
) -> dict[str, Any]:
    """What one search found."""
    calibration, fresh = data
    seen, held_out = parts(calibration)
    task = mpq.Task(model, seen, held_out, seed=seed, candidates=WITHOUT[bits])
    found = mpq.search(task, [f"weight_bytes={limit}"], sensitivity=estimator, recipe="baq")
    row = {
        "estimator": estimator,
        "bits": bits,
        "limit": limit,
        "kl_nats": mpq.evaluate(model, found.assignment, fresh)["quantized"].divergence,
        "weight_bytes": found.problem.budgets[0].used(found.columns),
        "shares": shares(found.assignment.layers),
        **by_layer(found.assignment.layers),
    }
    print(*row.values(), file=sys.stderr, flush=True)
    return row


def shares(layers: tuple[AssignedLayer, ...]) -> dict[int, float]:
    """Bits to the share of weights that have them."""
    counts = Counter[int]()
    for layer in layers:
        weight, num_weights = layer.precision.weight, math.prod(layer.weight_shape)
        of = weight.channels
        if of is None:
            counts[weight.number.bits] += num_weights
            continue
        for number, count in zip(of.numbers, of.counts, strict=True):
            counts[number.bits] += count * num_weights // sum(of.counts)
    return {bits: round(counts[bits] / counts.total(), 4) for bits in sorted(counts)}


def by_layer(layers: tuple[AssignedLayer, ...]) -> dict[str, Any]:
    """Mean bits of the layers with the fewest and the most, and how many layers have none."""
    own = [sum(bits * share for bits, share in shares((layer,)).items()) for layer in layers]
    return {
        "mean_bits": [round(min(own), 2), round(max(own), 2)],
        "num_layers": len(own),
        "num_left_out": own.count(0),
    }


if __name__ == "__main__":
    main()
