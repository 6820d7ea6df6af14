"""Searches with the rounding that is used in the end, against searches with rounding to nearest.

    python benchmarks/rounding_search.py llama > benchmarks/rounding_search/llama.json
    python benchmarks/rounding_search.py vit --seeds 1 --roundings nearest,gptq
    python benchmarks/rounding_search.py efficientnet_lite0 --seeds 1 --bits 4
    python benchmarks/rounding_search.py smollm2 --seeds 1 --bits 3 --group 64
    python benchmarks/rounding_search.py --choosing --roundings auto
    python benchmarks/rounding_search.py --choosing --activations --roundings auto

ResNet-20, the vision transformer and the small Llama (or others that are named), weights only, at
the bytes of uniform 3, 4 and 5 bits. For every rounding: what the search's result and the uniform
precision lose on fresh examples (KL divergence in nats; MNIST test images 2,000 to 9,999, the
stories of eval180, CIFAR's 1,017, ImageNet's 500 of ten classes, 32 times 128 tokens of
WikiText-2), as a ratio of the search with rounding to nearest, with a 95 % interval by paired
bootstrap over examples. With --choosing the examples are others, by which choices may be made
without a look at those that are reported: calibration examples that the seed did not draw, and
another excerpt of the stories; and beside the search's own prices (``searched``) stand others:
``PRICES``, and its own without ties between layers that have weights of their own. With
--activations inputs
have 4, 5, 6 or 8 bits, and the limit is the bit operations of uniform w4a4 and so on. With --group
so many weights share a scale. A seed draws the calibration examples and the probes. Times are
processor time of one thread, in units of a forward and a backward pass over the calibration
examples. Needs the published networks: MPQ_DATA, or ../shared/data; for EfficientNet-Lite0 and
SmolLM2-135M, whose weights came as Q4_1, ``loaders.py``.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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
from mpq.sensitivity import Sensitivity
from mpq.workflows.defaults import ESTIMATOR, SOLVER
from mpq.workflows.evaluate import Reference
from mpq.workflows.evaluator import Evaluator
from mpq.workflows.method import Method
from mpq.workflows.never_worse import never_worse
from mpq.workflows.other_answers import best_answer
from mpq.workflows.setup import Prepared

CANDIDATES: Final = ("w2", "w3", "w4", "w5", "w6", "w8")
WITH_ACTIVATIONS: Final = tuple(f"w{w}a{a}" for w in (2, 3, 4, 5, 6, 8) for a in (4, 5, 6, 8))
BUDGET_BITS: Final = (3, 4, 5)
ROUNDINGS: Final = ("nearest", "gptq", "coordinate-descent", "auto")
SEARCHED: Final = "searched"
PRICES: Final = {
    "additive": "sketch:interactions=false",
    "channels": "sketch:channels=1",
    "layers and channels": "sketch:channels=0.5",
}
"""Estimators whose prices stand beside the search's own with ``--choosing``."""
NUM_BOOTSTRAPS: Final = 2000
Examples = tuple[Tensor, Tensor]
Batches = list[Examples]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--roundings", default=",".join(ROUNDINGS))
    parser.add_argument("--bits", default=",".join(map(str, BUDGET_BITS)))
    parser.add_argument("--choosing", action="store_true")
    parser.add_argument("--activations", action="store_true")
    parser.add_argument("--group", type=int)
    given = parser.parse_args()
    torch.set_num_threads(1)
    bits = tuple(map(int, given.bits.split(",")))
    rows = [
        row
        for name in given.networks
        for seed in range(given.seeds)
        for row in compared(
            name,
            Asked(seed, bits, given.choosing, given.activations, given.group),
            given.roundings.split(","),
        )
    ]
    header = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__}
    print(json.dumps({**header, "rows": rows}, indent=1))


@dataclass(frozen=True)
class Asked:
    """What is searched for, and on which examples.

    Args:
        seed: Of the calibration examples that are drawn, and of the probes.
        budget_bits: Uniform precisions whose costs are the limits.
        choosing: Whether the fresh examples are those by which choices may be made.
        activations: Whether inputs are quantized as well.
        group: Weights that share a scale; ``None``: those of an output channel.
    """

    seed: int
    budget_bits: tuple[int, ...]
    choosing: bool
    activations: bool
    group: int | None = None

    @property
    def prices(self) -> dict[str, str]:
        """Estimators by name, the search's own first."""
        return {SEARCHED: ESTIMATOR, **(PRICES if self.choosing else {})}

    @property
    def candidates(self) -> tuple[str, ...]:
        """Precisions that layers may take."""
        spelled = WITH_ACTIVATIONS if self.activations else CANDIDATES
        return tuple(map(self._grouped, spelled))

    def uniform(self, bits: int) -> str:
        """The precision whose cost is the limit."""
        return self._grouped(f"w{bits}a{bits}" if self.activations else f"w{bits}")

    def _grouped(self, spelled: str) -> str:
        weight, *activation = spelled.partition("a")
        return "".join([weight, *([f"g{self.group}"] if self.group else []), *activation])

    def limit(self, bits: int) -> mpq.Limit:
        """What a uniform precision costs."""
        resource = "bit_operations" if self.activations else "weight_bytes"
        return mpq.Limit.parse(f"{resource}=1x:{self.uniform(bits)}")


def compared(name: str, asked: Asked, roundings: list[str]) -> list[dict[str, Any]]:
    """A row for every rounding of one network; the first one is what ratios are of."""
    model, data = network(name, asked.seed, asked.choosing)
    forward_and_backward(model, data[0][:1])  # what loads with the first pass
    pass_seconds = forward_and_backward(model, parts(data[0])[0])
    found = [Searched.of(model, data, rounding, asked) for rounding in roundings]
    for searched in found:
        print(name, asked.seed, searched.rounding, round(searched.seconds, 1), "s", file=sys.stderr)
    return [
        {
            "network": name,
            "seed": asked.seed,
            "rounding": searched.rounding,
            "rounding_passes": searched.rounding_seconds / pass_seconds,
            "all_passes": searched.seconds / pass_seconds,
            "unhelped": list(searched.unhelped),
            "original_accuracy": searched.original_accuracy,
            "budgets": searched.against(found[0]),
        }
        for searched in found
    ]


def network(
    name: str, seed: int, choosing: bool = False
) -> tuple[torch.nn.Module, tuple[Batches, Batches]]:
    """A trained network, calibration examples that the seed draws, and fresh examples."""
    if name == "smollm2":
        own = loader(name)
        return own.model(), text_examples(own, seed, choosing)
    if name not in NETWORKS:
        own = loader(name)
        images, classes = map(torch.cat, zip(*own.held_out(), strict=True))
        drawn_from = torch.cat(list(own.calibration(256)))
        none = torch.zeros(len(drawn_from), dtype=torch.long)  # of calibration images no class
        seen, left = drawn((drawn_from, none), 64, seed)
        fresh = left if choosing else (images, classes)
        return own.model(), (batched(*seen, size=16), batched(*fresh, size=50))
    example, weights = NETWORKS[name]
    spec = ROOT / "examples" / f"{example}.py"
    model = load_model(f"{spec}:make_net", load_object(f"{spec}:DATA") / weights)
    return model, EXAMPLES[name](load_object(f"{spec}:DATA"), seed, choosing)


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
        asked: Asked,
    ) -> "Searched":
        """A solution for every budget, with the search's own prices and with others."""
        calibration, fresh = data
        seen, held_out = parts(calibration)
        task = mpq.Task(
            model,
            seen,
            held_out,
            candidates=asked.candidates,
            rounding=rounding,
            seed=asked.seed,
        )
        start = time.process_time()
        prepared = Prepared.of(task)
        begun = time.process_time()
        unhelped = prepared.rounded.unhelped
        rounding_seconds = time.process_time() - begun
        chosen, seconds = dict[tuple[int, str], dict[str, Precision]](), 0.0
        for variant, estimator in asked.prices.items():
            method = Method.of(estimator, SOLVER, asked.seed)
            estimate = method.estimator.estimate(prepared.asked)
            for bits in asked.budget_bits:
                limit = asked.limit(bits)
                chosen[bits, variant] = solved(prepared, method, estimate, limit)
                if asked.choosing and variant == SEARCHED:
                    untied = solved(prepared, method, estimate, limit, is_tied=False)
                    chosen[bits, "searched, untied"] = untied
            seconds = seconds or time.process_time() - start
        for bits in asked.budget_bits:
            names = (layer.name for layer in prepared.network.layers)
            uniform = Precision.parse(asked.uniform(bits))
            chosen[bits, "uniform"] = dict.fromkeys(names, uniform)
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
                        **ratio(self.losses[bits, variant], first.losses[bits, SEARCHED]),
                        "accuracy": self.accuracies[bits, variant],
                    }
                    for variant in dict.fromkeys(variant for _, variant in self.losses)
                },
            }
            for bits in sorted({bits for bits, _ in self.losses})
        ]


def solved(
    prepared: Prepared,
    method: Method,
    estimate: Sensitivity,
    limit: mpq.Limit,
    is_tied: bool = True,
) -> dict[str, Precision]:
    """The search's answer at one budget: layer to precision."""
    constraints = prepared.constraints([limit])
    if not is_tied:
        constraints = replace(constraints, ties=_shared(prepared))
    problem = Problem(estimate.table, constraints, estimate.interactions)
    problem, solution = method.solve(problem, None, prepared)
    solution, _ = best_answer(prepared, problem, solution, estimate.by_channels)
    solution, _ = never_worse(prepared, problem, solution)
    return solution.precisions(problem)


def _shared(prepared: Prepared) -> tuple[tuple[str, ...], ...]:
    """Layers with one weight: a file has it once."""
    found: dict[str, list[str]] = {}
    for layer in prepared.network.layers:
        found.setdefault(layer.weight_of or layer.name, []).append(layer.name)
    return tuple(tuple(names) for names in found.values() if len(names) > 1)


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
            output = model(x)
            getattr(output, "logits", output).float().sum().backward()
    model.zero_grad(set_to_none=True)
    return time.process_time() - start


def cifar_examples(data: Any, seed: int, choosing: bool) -> tuple[Batches, Batches]:
    """1,536 of the 2,048 training images that are there; all test images, or the other 512."""
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]

    def read(file: str) -> tuple[Tensor, Tensor]:
        with np.load(data / "cifar10" / file) as arrays:
            pixels = torch.from_numpy(arrays["x"]).permute(0, 3, 1, 2).float() / 255
            return (pixels - mean) / std, torch.from_numpy(arrays["y"]).long()

    images = read("calib_train_lossless_2048.npz")
    seen, left = drawn(images, 1536, seed)
    return batched(*seen), batched(*(left if choosing else read("test_lossless_1017.npz")))


def mnist_examples(data: Any, seed: int, choosing: bool) -> tuple[Batches, Batches]:
    """512 of 2,048 training images; test images 2,000 to 9,999, or the other 1,536."""

    def read(file: str) -> tuple[Tensor, Tensor]:
        with np.load(data / "mnist" / file) as arrays:
            pixels = torch.from_numpy(arrays["x"]).unsqueeze(1).float() / 255
            return (pixels - 0.1307) / 0.3081, torch.from_numpy(arrays["y"]).long()

    x, y = read("test_10000.npz")
    seen, left = drawn(read("calib_train_2048.npz"), 512, seed)
    return batched(*seen), batched(*(left if choosing else (x[2000:], y[2000:])))


def story_examples(data: Any, seed: int, choosing: bool) -> tuple[Batches, Batches]:
    """64 sequences of the calibration stories; the first 256 of eval180, or another excerpt."""

    def read(split: str) -> tuple[Tensor, Tensor]:
        with np.load(data / "llm" / "tokens.npz") as arrays:
            windows = torch.from_numpy(arrays[split].astype(np.int64)).unfold(0, 129, 128)
            return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    x, y = read("valid_excerpt" if choosing else "eval180")
    seen, _ = drawn(read("calib64"), 64, seed)
    return batched(*seen, size=16), batched(x[:256], y[:256], size=16)


def text_examples(own: Any, seed: int, choosing: bool) -> tuple[Batches, Batches]:
    """32 sequences of the calibration text; 32 of the test text, or others of the former."""

    def pair(batches: list[Tensor]) -> tuple[Tensor, Tensor]:
        windows = torch.cat(batches)
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    seen, left = drawn(pair(own.calibration(64, 129)), 32, seed)
    fresh = left if choosing else pair(own.held_out(32, 129))
    return batched(*seen, size=4), batched(*fresh, size=4)


def drawn(examples: Examples, count: int, seed: int) -> tuple[Examples, Examples]:
    """So many of the examples, in an order that the seed draws, and the others."""
    x, y = examples
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    seen, left = order[:count], order[count:]
    return (x[seen], y[seen]), (x[left], y[left])


def batched(x: Tensor, y: Tensor, size: int = 64) -> Batches:
    """Batches of equal size."""

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(torch.split(x, size), torch.split(y, size), strict=True)

    return list(pairs())


EXAMPLES: Final[dict[str, Callable[[Any, int, bool], tuple[Batches, Batches]]]] = {
    "resnet20": cifar_examples,
    "vit": mnist_examples,
    "llama": story_examples,
}


if __name__ == "__main__":
    main()
