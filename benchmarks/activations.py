"""What options of inputs are worth: losses with each beside today's default, on fresh examples.

    python benchmarks/activations.py vit llama --seeds 3 > benchmarks/activations.json
    python benchmarks/activations.py --choosing --seeds 3 > benchmarks/activations_choosing.json
    python benchmarks/activations.py smollm2 --cases w8a8 --options 'default;minmax;first apart'

The vision transformer and the small Llama (or others of ``rounding_search.py``), every layer at one
precision, weights rounded to nearest, so that what is compared are the inputs alone. An option is
one of ``OPTIONS``: a range method, another code or scale for the same bits. A row has the KL
divergence in nats on fresh examples (those of ``rounding_search.py``; with --choosing those that
choices may be made by), its ratio to the first option with a 95 % interval by paired bootstrap over
examples, and what the option did. Needs the published networks: MPQ_DATA, or ../shared/data; for
SmolLM2 ``loaders.py``.
"""

import argparse
import json
import shlex
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from loaders import loader
from rounding_search import Batches, network, parts, ratio
from torch import nn

import mpq
from mpq._support.arrays import Array
from mpq.network.modules import share_parameters
from mpq.quantization.precision import Precision
from mpq.quantization.ranges import Ranges
from mpq.sensitivity import Estimation
from mpq.sensitivity.output_sketch import OutputSketch
from mpq.workflows.evaluate import Reference
from mpq.workflows.evaluator import Evaluator
from mpq.workflows.own_codes import OwnCodes
from mpq.workflows.recalibration import Recalibrating
from mpq.workflows.setup import Prepared

CASES: Final = ("w4a4", "w8a4", "w8a8")
NUM_FRESH: Final = {"vit": 1000, "llama": 64, "resnet20": 1017}


@dataclass(frozen=True)
class Option:
    """What is done to inputs.

    Args:
        method: Range method.
        suffix: What is written behind the precision.
        suffixes: That every layer takes the one of by which the sketch says that it loses least.
        recalibrate: Whether ranges are chosen again in the quantized network: ``always``, or where
            unseen examples say that it helps, as the search does (``tried``).
    """

    method: str = Ranges.activation
    suffix: str = ""
    recalibrate: str = ""
    suffixes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All that is written behind the precision."""
        return self.suffixes or (self.suffix,)


OPTIONS: Final = {
    "default": Option(),
    "minmax": Option("minmax"),
    "percentile": Option("percentile"),
    "aciq": Option("aciq"),
    "entropy": Option("entropy"),
    "loss, untried": Option("loss:trial=false"),
    "loss, mixed": Option("loss:trial=false,guidance=0.75"),
    "loss": Option("loss"),
    "recalibrated, untried": Option(recalibrate="always"),
    "recalibrated": Option(recalibrate="tried"),
    "by token": Option(suffix="d"),
    "by channel": Option(suffix="c"),
    "first apart": Option(suffix="f"),
    "twin": Option(suffix="twin"),
    "log2": Option(suffix="log2"),
    "codes by layer": Option(suffixes=("", "s", "twin", "log2")),
}
"""By the name that --options takes; the default is what ratios are of."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["resnet20", "vit", "llama"])
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--options", default=";".join(OPTIONS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--choosing", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row
        for name in given.networks
        for seed in range(given.seeds)
        for row in compared(
            smollm2() if name == "smollm2" else network(name, seed, given.choosing),
            NUM_FRESH.get(name),
            {"network": name, "seed": seed},
            given.cases.split(","),
            given.options.split(";"),
        )
    ]
    header = {"command": shlex.join(["python", *sys.argv]), "torch": torch.__version__}
    print(json.dumps({**header, "rows": rows}, indent=1))


def smollm2() -> tuple[nn.Module, tuple[Any, Any]]:
    """The language model, and 8 sequences of 64 tokens of either text, two in a batch."""
    own = loader("smollm2")

    def batches(windows: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        return [{"input_ids": ids} for ids in windows]

    return own.model(), (
        batches(own.calibration(8, 64, 2)),
        batches(own.held_out(8, 64, 2)),
    )


def compared(
    found: tuple[nn.Module, tuple[Batches, Batches]],
    num_fresh: int | None,
    told: dict[str, Any],
    cases: list[str],
    options: list[str],
) -> list[dict[str, Any]]:
    """A row for every case and option of one network; ratios are to the first option."""
    model, (calibration, fresh) = found
    if num_fresh is not None:
        fresh = fresh[: -(-num_fresh // len(fresh[0][0]))]
    original = Reference(share_parameters(model), mpq.Calibration.of(fresh))
    rows, base = [], dict[str, Array]()
    for name in options:
        option = OPTIONS[name]
        # There are no powers of two of 8 bits, which would go far beyond what a float is for.
        able = [case for case in cases if "log2" not in option.names or not case.endswith("a8")]
        seen, held_out = parts(calibration)
        task = mpq.Task(
            model,
            seen,
            held_out,
            candidates=[case + name for case in able for name in option.names],
            ranges=Ranges(activation=option.method),
            rounding="nearest",
            seed=told["seed"],
        )
        prepared = Prepared.of(task)
        start = time.process_time()
        evaluator = Evaluator(prepared.network, prepared.quantizer, original)
        seconds = time.process_time() - start
        for case in able:
            asked = [Precision.parse(case + name) for name in option.names]
            chosen = evaluator.uniform(asked[0])
            if len(asked) > 1:
                chosen = by_layer(prepared, asked)
            again, own = recalibrated(prepared, chosen, option.recalibrate)
            measured = replace(evaluator, own=own).measure(chosen)
            losses = base.setdefault(case, measured.by_example)
            row = {**told, "case": case, "option": name, "accuracy": measured.accuracy}
            row |= {"range_seconds": seconds, "unhelped": dict(prepared.calibrated.unhelped)}
            row |= {"recalibrated": again, "layers": Counter(map(str, chosen.values()))}
            rows.append({**row, **ratio(measured.by_example, losses)})
            print(*map(str, list(rows[-1].values())), file=sys.stderr)
    return rows


def by_layer(prepared: Prepared, asked: list[Precision]) -> dict[str, Precision]:
    """Layer name to the precision by which it loses least, additively."""
    on = Estimation(prepared.network, prepared.calibration, prepared.quantizer, asked)
    table = OutputSketch(interactions=False).estimate(on).table
    best = table.values.argmin(axis=1)
    return {name: asked[column] for name, column in zip(table.layers, best, strict=True)}


def recalibrated(
    prepared: Prepared, uniform: dict[str, Precision], asked: str
) -> tuple[bool, OwnCodes]:
    """Whether the assignment has ranges of its own, and those."""
    own = OwnCodes()
    if not asked:
        return False, own
    data, quantizer = prepared.calibration, prepared.quantizer
    again = Recalibrating(
        prepared.network, data, quantizer, prepared.calibrated.methods, uniform, prepared.task.seed
    )
    if asked == "tried":
        return again.kept(own).is_kept, own
    own.keep_ranges(uniform, again.ranges(data, quantizer))
    return True, own


if __name__ == "__main__":
    main()
