"""Does it pay to route inputs between two assignments? ResNet-20, at equal mean bit operations.

    python benchmarks/routing.py > benchmarks/routing.json

Two answers of the search, at the bit operations of uniform w3a3 and of w5a5, or at .8 and 1.2 times
those of w4a4, and a third between them, at w4a4 (``static``). An input goes to the dearer one or to
the cheaper one, so many of them that the mean costs what ``static`` does. Which ones:

- ``oracle``: those that lose most by the cheaper one, which nobody knows beforehand;
- ``rule``: those for which a linear rule on cheap features of the image (mean and spread of every
  colour, energy of differences of neighbours) expects the largest loss by it, fitted to held-out
  examples;
- ``cascade``: the cheaper one runs first, and where its two largest logits are nearest to each
  other the dearer one runs as well: fewer inputs go there, as these cost both;
- ``drawn``: any.

Mean losses on the fresh examples of ``rounding_search.py`` in nats. Needs the
published networks: MPQ_DATA, or ../shared/data.
"""

import argparse
import json
import sys
from typing import Any, Final

import numpy as np
import torch
from rounding_search import Batches, network, parts
from torch import Tensor

import mpq
from mpq._support.arrays import Array

CANDIDATES: Final = tuple(f"w{w}a{a}" for w in (2, 3, 4, 5, 6, 8) for a in (3, 4, 5, 6, 8))
STATIC: Final = "1x:w4a4"
WAYS: Final = ("oracle", "rule", "cascade", "drawn", "cheap")
PAIRS: Final = {"w3a3 and w5a5": ("1x:w3a3", "1x:w5a5"), ".8 and 1.2": ("0.8x:w4a4", "1.2x:w4a4")}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounding", default="auto")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for seed in range(given.seeds) for row in of_seed(seed, given.rounding)]
    header = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__}
    ratios = {pair: ratios_of([r["kl_nats"] for r in rows if r["pair"] == pair]) for pair in PAIRS}
    print(json.dumps({**header, "rows": rows, "ratios_to_static": ratios}, indent=1))


def ratios_of(found: list[dict[str, float]]) -> dict[str, float]:
    """The geometric means over seeds of what every way loses beside ``static``."""

    def ratio(way: str) -> float:
        return float(np.exp(np.mean([np.log(lost[way] / lost["static"]) for lost in found])))

    return {way: ratio(way) for way in WAYS}


def of_seed(seed: int, rounding: str) -> list[dict[str, Any]]:
    """What every way of routing loses, between each pair."""
    model, (calibration, fresh) = network("resnet20", seed)
    seen, held_out = parts(calibration)

    def answer(limit: str) -> mpq.SearchResult:
        return searched(model, seen, held_out, rounding, seed, limit)

    static, rows = answer(STATIC), []
    for pair, limits in PAIRS.items():
        found = routes(model, (answer(limits[0]), static, answer(limits[1])), held_out, fresh, seed)
        rows.append({"seed": seed, "pair": pair, **found})
        print(rows[-1], file=sys.stderr)
    return rows


def routes(
    model: torch.nn.Module,
    answers: tuple[mpq.SearchResult, ...],
    held_out: Batches,
    fresh: Batches,
    seed: int,
) -> dict[str, Any]:
    """Of a cheap, a static and a dear answer."""
    cheap, static, dear = (cost(answer) for answer in answers)
    on_fresh = [losses(model, answer, fresh) for answer in answers]
    # Fitted to held-out examples, which no codes were made for.
    low, high = (losses(model, answer, held_out) for answer in (answers[0], answers[2]))
    orders = {
        "oracle": on_fresh[0] - on_fresh[2],
        "rule": predicted(features(held_out), low - high, features(fresh)),
        "drawn": np.random.default_rng(seed).random(len(on_fresh[0])),
    }
    share, few = (static - cheap) / (dear - cheap), (static - cheap) / dear
    found = {"cheap": float(on_fresh[0].mean()), "static": float(on_fresh[1].mean())}
    found |= {way: routed(on_fresh[0], on_fresh[2], order, share) for way, order in orders.items()}
    nearest = -margins(model, answers[0], fresh)
    found["cascade"] = routed(on_fresh[0], on_fresh[2], nearest, few)
    return {"bitops": [cheap, static, dear], "share": share, "kl_nats": found}


def searched(
    model: torch.nn.Module, seen: Batches, held_out: Batches, rounding: str, seed: int, limit: str
) -> mpq.SearchResult:
    """The search's answer at some bit operations."""
    task = mpq.Task(model, seen, held_out, candidates=CANDIDATES, rounding=rounding, seed=seed)
    return mpq.search(task, {"bit_operations": limit})


def cost(answer: mpq.SearchResult) -> float:
    """Bit operations of an example."""
    return answer.comparison("result").costs["bit_operations_bitops"]


def losses(model: torch.nn.Module, answer: mpq.SearchResult, data: Batches) -> Array:
    """``[N]`` nats of every example."""
    return mpq.evaluate(model, answer.assignment, data)["quantized"].by_example


def margins(model: torch.nn.Module, answer: mpq.SearchResult, data: Batches) -> Array:
    """``[N]`` how far the two largest logits of the quantized network are apart."""
    quantized = mpq.quantize(model, answer.assignment)
    with torch.no_grad():
        best = torch.cat([quantized(x).topk(2, dim=1).values for x, _ in data])
    return (best[:, 0] - best[:, 1]).double().numpy()


def features(data: Batches) -> Array:
    """``[N, F]`` of images, with squares and a constant."""
    found = np.concatenate([_features(x) for x, _ in data])
    return np.concatenate([found, found**2, np.ones((len(found), 1))], axis=1)


def _features(x: Tensor) -> Array:
    means, spreads = x.mean(dim=(2, 3)), x.std(dim=(2, 3))
    edges = [x.diff(dim=axis).abs().mean(dim=(1, 2, 3))[:, None] for axis in (2, 3)]
    return torch.cat([means, spreads, *edges], dim=1).double().numpy()


def predicted(known: Array, wanted: Array, asked: Array) -> Array:
    """``[N]`` by ridge regression on ranks, as a few examples lose most of all."""
    ranks = wanted.argsort().argsort() / len(wanted)
    gram = known.T @ known + 1e-2 * len(known) * np.eye(known.shape[1])
    return asked @ np.linalg.solve(gram, known.T @ ranks)


def routed(low: Array, high: Array, order: Array, share: float) -> float:
    """The mean loss where the largest of an order go to the dearer one."""
    count = round(share * len(order))
    dear = np.argsort(-order, kind="stable")[:count]
    found = low.copy()
    found[dear] = high[dear]
    return float(found.mean())


if __name__ == "__main__":
    main()
