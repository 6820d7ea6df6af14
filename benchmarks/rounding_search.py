"""Searches with the rounding that is used in the end, against searches with rounding to nearest.

    python benchmarks/rounding_search.py > benchmarks/rounding_search.json
    python benchmarks/rounding_search.py vit --seeds 1 --roundings nearest,gptq
    python benchmarks/rounding_search.py efficientnet_lite0 --seeds 1 --bits 4

ResNet-20, the vision transformer and the small Llama (or others that are named), weights only, at
the bytes of uniform 3, 4 and 5 bits. For every rounding: what the search's result and the uniform
precision lose on fresh examples (KL divergence in nats; MNIST test images 2,000 to 9,999, the
stories of eval180, CIFAR's 1,017, ImageNet's 500 of ten classes), as a ratio of the search with
rounding to nearest, with a 95 % interval by paired bootstrap over examples; with interactions
between layers, and without. A seed draws the calibration examples and the probes. Times are
processor time of one thread, in units of a forward and a backward pass over the calibration
examples. Needs the published networks: MPQ_DATA, or ../shared/data; for EfficientNet-Lite0
``loaders.py``.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from estimators import NETWORKS, ROOT
from loaders import loader
from torch import Tensor

import mpq
from mpq._support.arrays import Array
from mpq.cli.loading import load_model, load_object
from mpq.network.modules import share_parameters
from mpq.problem.problem import Problem
from mpq.quantization.precision import Precision
from mpq.sensitivity import Estimation, Sensitivity
from mpq.workflows.defaults import ESTIMATOR, SOLVER
from mpq.workflows.evaluate import Reference
from mpq.workflows.evaluator import Evaluator
from mpq.workflows.method import Method
from mpq.workflows.never_worse import never_worse
from mpq.workflows.setup import Prepared

CANDIDATES: Final = ("w2", "w3", "w4", "w5", "w6", "w8")
BUDGET_BITS: Final = (3, 4, 5)
ROUNDINGS: Final = ("nearest", "gptq", "coordinate-descent", "auto")
NUM_BOOTSTRAPS: Final = 2000
Batches = list[tuple[Tensor, Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--roundings", default=",".join(ROUNDINGS))
    parser.add_argument("--bits", default=",".join(map(str, BUDGET_BITS)))
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row
        for name in given.networks
        for seed in range(given.seeds)
        for row in compared(
            name, seed, given.roundings.split(","), list(map(int, given.bits.split(",")))
        )
    ]
    header = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__}
    print(json.dumps({**header, "rows": rows}, indent=1))


def compared(
    name: str, seed: int, roundings: list[str], budget_bits: list[int]
) -> list[dict[str, Any]]:
    """A row for every rounding of one network; the first one is what ratios are of."""
    model, data = network(name, seed)
    forward_and_backward(model, data[0][:1])  # what loads with the first pass
    pass_seconds = forward_and_backward(model, parts(data[0])[0])
    found = [Searched.of(model, data, rounding, seed, budget_bits) for rounding in roundings]
    for searched in found:
        print(name, seed, searched.rounding, round(searched.seconds, 1), "s", file=sys.stderr)
    return [
        {
            "network": name,
            "seed": seed,
            "rounding": searched.rounding,
            "rounding_passes": searched.rounding_seconds / pass_seconds,
            "all_passes": searched.seconds / pass_seconds,
            "unhelped": list(searched.unhelped),
            "original_accuracy": searched.original_accuracy,
            "budgets": searched.against(found[0]),
        }
        for searched in found
    ]


def network(name: str, seed: int) -> tuple[torch.nn.Module, tuple[Batches, Batches]]:
    """A trained network, calibration examples that the seed draws, and fresh examples."""
    if name not in NETWORKS:
        own = loader(name)
        images, classes = map(torch.cat, zip(*own.held_out(), strict=True))
        drawn_from = torch.cat(list(own.calibration(256)))
        none = torch.zeros(len(drawn_from), dtype=torch.long)  # of calibration images no class
        seen = drawn((drawn_from, none), 64, seed)
        return own.model(), (batched(*seen, size=16), batched(images, classes, size=50))
    example, weights = NETWORKS[name]
    spec = ROOT / "examples" / f"{example}.py"
    model = load_model(f"{spec}:make_net", load_object(f"{spec}:DATA") / weights)
    return model, EXAMPLES[name](load_object(f"{spec}:DATA"), seed)


@dataclass(frozen=True)
class Searched:
    """What one rounding gives at every budget.

    Args:
        rounding: How weights become codes.
        unhelped: Precisions at which ``auto`` rounded to nearest.
        losses: Budget and variant to ``[N]`` nats of every fresh example.
        accuracies: The same to the share of fresh examples with the right label.
        original_accuracy: That of the network itself.
        rounding_seconds: For second moments and codes of all layers at all candidates.
        seconds: For everything but measuring on the fresh examples.
    """

    rounding: str
    unhelped: tuple[str, ...]
    losses: dict[tuple[int, str], Array]
    accuracies: dict[tuple[int, str], float | None]
    original_accuracy: float | None
    rounding_seconds: float
    seconds: float

    @classmethod
    def of(
        cls,
        model: torch.nn.Module,
        data: tuple[Batches, Batches],
        rounding: str,
        seed: int,
        budget_bits: list[int],
    ) -> "Searched":
        """One estimate, and a solution for every budget with and without interactions."""
        calibration, fresh = data
        seen, held_out = parts(calibration)
        task = mpq.Task(
            model,
            seen,
            held_out,
            candidates=CANDIDATES,
            rounding=rounding,
            seed=seed,
        )
        start = time.process_time()
        prepared = Prepared.of(task)
        begun = time.process_time()
        unhelped = prepared.rounded.unhelped
        rounding_seconds = time.process_time() - begun
        method = Method.of(ESTIMATOR, SOLVER, seed)
        on = Estimation(
            prepared.network, prepared.calibration, prepared.quantizer, prepared.candidates
        )
        estimate = method.estimator.estimate(on)
        chosen = {
            (bits, variant): solved(prepared, method, estimate, bits, variant)
            for bits in budget_bits
            for variant in ("interactions", "additive")
        }
        seconds = time.process_time() - start
        for bits in budget_bits:
            names = (layer.name for layer in prepared.network.layers)
            chosen[bits, "uniform"] = dict.fromkeys(names, Precision.parse(f"w{bits}"))
        original = Reference(share_parameters(model), mpq.Calibration.of(fresh))
        evaluator = Evaluator(prepared.network, prepared.quantizer, original)
        found = {key: evaluator.measure(precisions) for key, precisions in chosen.items()}
        losses = {key: measured.by_example for key, measured in found.items()}
        accuracies = {key: measured.accuracy for key, measured in found.items()}
        plain = evaluator.measure({}).accuracy
        return cls(rounding, unhelped, losses, accuracies, plain, rounding_seconds, seconds)

    def against(self, first: "Searched") -> list[dict[str, Any]]:
        """Losses at every budget, and their ratios to another rounding's search."""
        return [
            {
                "bits": bits,
                **{
                    variant: {
                        **ratio(self.losses[bits, variant], first.losses[bits, "interactions"]),
                        "accuracy": self.accuracies[bits, variant],
                    }
                    for variant in ("interactions", "additive", "uniform")
                },
            }
            for bits in sorted({bits for bits, _ in self.losses})
        ]


def solved(
    prepared: Prepared, method: Method, estimate: Sensitivity, bits: int, variant: str
) -> dict[str, Precision]:
    """The search's answer at one budget: layer to precision."""
    constraints = prepared.constraints([mpq.Limit.parse(f"weight_bytes=1x:w{bits}")])
    interactions = estimate.interactions if variant == "interactions" else None
    problem = Problem(estimate.table, constraints, interactions)
    problem, solution = method.solve(problem, None, prepared)
    solution, _ = never_worse(prepared, problem, solution)
    return solution.precisions(problem)


def parts(batches: Batches) -> tuple[Batches, Batches]:
    """Calibration and held-out examples, of which the fresh ones are none."""
    cut = len(batches) * 3 // 4
    return batches[:cut], batches[cut:]


def ratio(losses: Array, base: Array) -> dict[str, Any]:
    """The mean loss, and its ratio to another's with an interval by paired bootstrap."""
    draws = np.random.default_rng(0).integers(len(losses), size=(NUM_BOOTSTRAPS, len(losses)))
    ratios = losses[draws].mean(axis=1) / base[draws].mean(axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return {
        "kl_nats": float(losses.mean()),
        "ratio": float(losses.mean() / base.mean()),
        "ratio_low": float(low),
        "ratio_high": float(high),
    }


def forward_and_backward(model: torch.nn.Module, batches: Batches) -> float:
    """Processor seconds of one pass over the calibration examples."""
    start = time.process_time()
    for x, _ in batches:
        with torch.enable_grad():
            model(x).float().sum().backward()
    model.zero_grad(set_to_none=True)
    return time.process_time() - start


def cifar_examples(data: Any, seed: int) -> tuple[Batches, Batches]:
    """1,536 of the 2,048 training images that are there; all test images."""
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]

    def read(file: str) -> tuple[Tensor, Tensor]:
        with np.load(data / "cifar10" / file) as arrays:
            pixels = torch.from_numpy(arrays["x"]).permute(0, 3, 1, 2).float() / 255
            return (pixels - mean) / std, torch.from_numpy(arrays["y"]).long()

    images = read("calib_train_lossless_2048.npz")
    return batched(*drawn(images, 1536, seed)), batched(*read("test_lossless_1017.npz"))


def mnist_examples(data: Any, seed: int) -> tuple[Batches, Batches]:
    """512 of 2,048 training images; test images 2,000 to 9,999."""

    def read(file: str) -> tuple[Tensor, Tensor]:
        with np.load(data / "mnist" / file) as arrays:
            pixels = torch.from_numpy(arrays["x"]).unsqueeze(1).float() / 255
            return (pixels - 0.1307) / 0.3081, torch.from_numpy(arrays["y"]).long()

    x, y = read("test_10000.npz")
    images = read("calib_train_2048.npz")
    return batched(*drawn(images, 512, seed)), batched(x[2000:], y[2000:])


def story_examples(data: Any, seed: int) -> tuple[Batches, Batches]:
    """64 sequences of the calibration stories; the first 256 of eval180."""

    def read(split: str) -> tuple[Tensor, Tensor]:
        with np.load(data / "llm" / "tokens.npz") as arrays:
            windows = torch.from_numpy(arrays[split].astype(np.int64)).unfold(0, 129, 128)
            return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    x, y = read("eval180")
    return batched(*drawn(read("calib64"), 64, seed), size=16), batched(x[:256], y[:256], size=16)


def drawn(examples: tuple[Tensor, Tensor], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """So many of the examples, in an order that the seed draws."""
    x, y = examples
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:count]
    return x[order], y[order]


def batched(x: Tensor, y: Tensor, size: int = 64) -> Batches:
    """Batches of equal size."""

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(torch.split(x, size), torch.split(y, size), strict=True)

    return list(pairs())


EXAMPLES: Final[dict[str, Callable[[Any, int], tuple[Batches, Batches]]]] = {
    "resnet20": cifar_examples,
    "vit": mnist_examples,
    "llama": story_examples,
}


if __name__ == "__main__":
    main()
