"""What ranges by clusters of a diffusion's steps save: loss on fresh noise, and in whole samples.

    python benchmarks/diffusion.py --seed 0 > benchmarks/diffusion/seed0.json

The denoiser of ``mpq.demo.denoiser`` with 16 channels, trained for 1,000 updates, every layer at
one precision, weights rounded to nearest, so that what is compared are the inputs; and the answer
of the sketch within a quarter more than the bit operations of w4a4 (``mixed``). Calibration
examples are spread evenly over steps, or are at random ones. ``4`` and ``8`` clusters are in all
formats, without the trial; ``4 tried`` is the default of a search, with what its trial left at one
range (``unhelped``).

``noise`` has the mean squared difference between the quantized network's noise and the original's,
on images that the network was not trained on, at evenly spread steps, and its ratio to one cluster
with evenly spread examples, with a 95 % interval by paired bootstrap over examples; ``by_fifth`` is
the ratio at each fifth of the steps. ``samples`` is the same of images after the whole reverse
process from the same noise, an image being an example. With --choosing the images are of the
training split, which choices may be made by. Needs no data.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from rounding_search import ratio
from torch import Tensor

import mpq
from mpq._support.arrays import Array
from mpq.demo.denoiser import NUM_STEPS, Denoiser, denoising_batches, sampled, trained_denoiser
from mpq.network.modules import share_parameters
from mpq.problem.limits import parse_limits
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import quantized
from mpq.quantization.steps import Steps
from mpq.sensitivity.output_sketch import OutputSketch
from mpq.solvers.queries.solve import solve
from mpq.workflows.evaluate import Reference
from mpq.workflows.evaluator import Evaluator
from mpq.workflows.search import estimated
from mpq.workflows.setup import Prepared

CASES: Final = ("w8a8", "w4a8", "w4a4")
MIXED: Final = ("w8a8", "w8a4", "w4a8", "w4a4")
LIMIT: Final = {"bit_operations": "1.25x:w4a4"}
OPTIONS: Final = {
    "1": Steps("timestep", 1),
    "4": Steps("timestep", 4, trial=False),
    "8": Steps("timestep", 8, trial=False),
    "4 tried": Steps("timestep", 4),
}
NUM_CALIBRATION: Final = (64, 256)
NUM_FRESH: Final = 800
NUM_SAMPLES: Final = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--choosing", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = trained_denoiser(given.updates, width=16)
    rows = list(compared(model, given.seed, given.choosing))
    header = {"command": shlex.join(["python", *sys.argv]), "torch": torch.__version__}
    print(json.dumps({**header, "rows": rows}, indent=1))


@dataclass(frozen=True, eq=False)
class Fresh:
    """What networks are compared on.

    Args:
        original: The network's own answers.
        steps: ``[N]`` of the examples.
        noise: ``[S, 1, 8, 8]`` that samples begin with.
        images: ``[S, 1, 8, 8]`` what the network makes of it.
        seed: Of the noise on the way.
    """

    original: Reference
    steps: Array
    noise: Tensor
    images: Tensor
    seed: int

    @classmethod
    def of(cls, model: Denoiser, seed: int, split: str) -> "Fresh":
        """Other examples than any that calibrate."""
        batches = denoising_batches(NUM_FRESH, 1000 + seed, split)
        steps = torch.cat([batch["timestep"] for batch in batches]).double().numpy()
        metric = mpq.METRICS.build("squared-error")
        original = Reference(share_parameters(model), mpq.Calibration.of(batches), metric)
        generator = torch.Generator().manual_seed(2000 + seed)
        noise = torch.randn(NUM_SAMPLES, 1, 8, 8, generator=generator)
        return cls(original, steps, noise, sampled(model, noise, seed), seed)

    def samples_apart(self, evaluator: Evaluator, chosen: dict[str, Precision]) -> Array:
        """``[S]`` mean squared differences of whole samples."""
        with quantized(evaluator.network, chosen, evaluator.quantizer):
            own = sampled(evaluator.network.module, self.noise, self.seed)
        found: Array = (own - self.images).square().mean(dim=(1, 2, 3)).double().numpy()
        return found


def compared(model: Denoiser, seed: int, choosing: bool) -> Iterator[dict[str, Any]]:
    """A row for every number of examples, way to spread them, option and case."""
    fresh = Fresh.of(model, seed, "train" if choosing else "held_out")
    for count in NUM_CALIBRATION:
        base = dict[tuple[str, str], Array]()
        is_most = count == max(NUM_CALIBRATION)
        for spread in ("spread", "random") if is_most else ("spread",):
            data = denoising_batches(count, 10 + seed, at_random=spread == "random")
            for option, steps in OPTIONS.items():
                if spread == "random" and option not in ("1", "4"):
                    continue
                told = {"seed": seed, "calibration": count, "steps": spread, "clusters": option}
                for row in _rows(model, data, steps, fresh, base, is_most):
                    print(*told.values(), *map(str, row.values()), file=sys.stderr, flush=True)
                    yield {**told, **row}


def _rows(
    model: Denoiser,
    data: list[dict[str, Any]],
    steps: Steps,
    fresh: Fresh,
    base: dict[tuple[str, str], Array],
    samples: bool,
) -> Iterator[dict[str, Any]]:
    """Of one option; the first one's losses become the base of ratios."""
    task = mpq.Task(
        model,
        data,
        # Nothing is decided by them.
        denoising_batches(200, 5),
        candidates=MIXED,
        metric="squared-error",
        rounding="nearest",
        steps=steps,
    )
    prepared = Prepared.of(task)
    evaluator = Evaluator(prepared.network, prepared.quantizer, fresh.original)
    cases = {case: evaluator.uniform(Precision.parse(case)) for case in CASES}
    cases["mixed"] = mixed(prepared)
    for case, chosen in cases.items():
        lost = evaluator.measure(chosen).by_example
        own = base.setdefault(("noise", case), lost)
        row = {
            "case": case,
            "unhelped": list(prepared.calibrated.steps_unhelped),
            "noise": _shown(lost, own),
            "by_fifth": _by_fifth(lost, own, fresh.steps),
        }
        if samples:
            apart = fresh.samples_apart(evaluator, chosen)
            row["samples"] = _shown(apart, base.setdefault(("samples", case), apart))
        yield row


def mixed(prepared: Prepared) -> dict[str, Precision]:
    """What the sketch takes for the best within the limit."""
    solver = mpq.SOLVERS.build("auto")
    constraints = prepared.constraints(parse_limits(LIMIT))
    problem = estimated(prepared, constraints, OutputSketch(), solver)
    return dict(solve(solver, problem).precisions(problem))


def _shown(losses: Array, base: Array) -> dict[str, float]:
    found = ratio(losses, base)
    return {"squared_error": found.pop("kl_nats"), **found}


def _by_fifth(losses: Array, base: Array, steps: Array) -> list[float]:
    fifths = steps * 5 // NUM_STEPS
    parts = [fifths == fifth for fifth in range(5)]
    return [float(np.mean(losses[part]) / np.mean(base[part])) for part in parts]


if __name__ == "__main__":
    main()
