"""What a search tells of itself at its beginning (``Planned``), beside what it then takes.

    python benchmarks/forecast.py benchmarks/forecast.json

Whole searches: the built-in network, ResNet-20 on CIFAR-10 (weights only) and a Llama of 15
million random weights (that of ``scale.py``, six formats in groups of 128), each with weights
rounded to nearest and by ``auto``; one that measures its cells, and a comparison. ``planned_s``
and ``taken_s`` are seconds of a clock by phase, of phases that were planned; ``of_planned`` their
ratio in all, ``planning_of_taken`` the share of everything that planning took. Upper bounds
(``at_most_s``) are beside what was taken of them. ResNet-20 needs the published weights and images:
set MPQ_DATA, or have them in ../shared/data. ``--only`` chooses cases; the committed rows are those
that a busy machine had time for.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

import torch
from scale import FORMATS, llama, sequences
from torch import Tensor, nn

import mpq
from mpq import demo
from mpq.callbacks import Callback, Event, PhaseEnded, Planned, plans
from mpq.callbacks.plans import PLANNING
from mpq.cli.loading import load_callable, load_model, load_object
from mpq.workflows import forecast

EXAMPLE = Path(__file__).parents[1] / "examples" / "resnet20_cifar10.py"
BITS = tuple(f"w{bits}" for bits in (2, 3, 4, 5, 6, 8))


@final
class Watched(Callback):
    """The first plan, and what phases took after it."""

    def __init__(self) -> None:
        self.plan: Planned | None = None
        self.taken_s: dict[str, float] = {}

    def on(self, event: Event) -> None:
        """See ``Callback.on``."""
        if isinstance(event, Planned) and self.plan is None:
            self.plan = event
        elif isinstance(event, PhaseEnded):
            self.taken_s[event.phase] = self.taken_s.get(event.phase, 0.0) + event.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("into", type=Path, help="rows that are there stay, and are not run again")
    parser.add_argument("--only", nargs="*", choices=CASES, default=[*CASES])
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    # Also of what is short here: how good a forecast is does not depend on who reads it.
    forecast.SOON_S = plans.LONG_S = 0.0  # type: ignore[misc]
    rows = json.loads(asked.into.read_text())["rows"] if asked.into.exists() else {}
    about = {
        "command": "python benchmarks/forecast.py benchmarks/forecast.json",
        "torch": torch.__version__,
        "processor": platform.machine(),
        "num_processors": os.cpu_count(),
        "sequences": [asked.sequences, asked.batch, asked.tokens],
    }
    for name in asked.only:
        if name not in rows:
            rows[name] = row(CASES[name], asked)
            asked.into.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


def row(case: Callable[[Any, Sequence[Callback]], object], asked: Any) -> dict[str, Any]:
    """One piece of work, planned by itself and done."""
    watched, load, start = Watched(), os.getloadavg()[0], time.perf_counter()
    case(asked, [watched])
    whole_s = time.perf_counter() - start
    plan = watched.plan
    assert plan is not None
    taken = {name: watched.taken_s.get(name, 0.0) for name in plan.phases}
    found = {
        "load": round((load + os.getloadavg()[0]) / 2, 1),
        "whole_s": round(whole_s, 1),
        "planned_s": _rounded(plan.phases),
        "taken_s": _rounded(taken),
        "of_planned": round(sum(taken.values()) / plan.seconds, 2) if plan.seconds else None,
        "planning_of_taken": round(watched.taken_s.get(PLANNING, 0.0) / whole_s, 2),
        "at_most_s": _rounded(plan.at_most),
        "taken_of_these_s": _rounded({x: watched.taken_s.get(x, 0.0) for x in plan.at_most}),
        "besides": list(plan.besides),
    }
    print(found, file=sys.stderr)
    return found


def _rounded(seconds: Any) -> dict[str, float]:
    return {name: round(x, 2) for name, x in seconds.items()}


def _demo(asked: Any, callbacks: Sequence[Callback], **options: Any) -> object:
    del asked
    task = mpq.Task(demo.make_net(), demo.calibration, demo.held_out)
    return mpq.search(task, {"effective_bits": 4}, callbacks=callbacks, **options)


def _measured(asked: Any, callbacks: Sequence[Callback]) -> object:
    return _demo(asked, callbacks, sensitivity="measured")


def _compared(asked: Any, callbacks: Sequence[Callback]) -> object:
    del asked
    task = mpq.Task(demo.make_net(), demo.calibration, demo.held_out)
    return mpq.compare(task, {"effective_bits": 4}, num_random=20, callbacks=callbacks)


def _resnet20(rounding: str, callbacks: Sequence[Callback]) -> object:
    data = load_object(f"{EXAMPLE}:DATA")
    model: nn.Module = load_model(f"{EXAMPLE}:make_net", data / "cifar10/resnet20.safetensors")
    task = mpq.Task(
        model, load_callable(f"{EXAMPLE}:calibration"), load_callable(f"{EXAMPLE}:held_out"),
        candidates=BITS, rounding=rounding,
    )  # fmt: skip
    return mpq.search(task, {"effective_bits": 4}, callbacks=callbacks)


def _llama(asked: Any, rounding: str, callbacks: Sequence[Callback]) -> object:
    model = llama("15M", torch.float32)
    data: list[Tensor] = sequences(model, asked)
    task = mpq.Task(model, data, candidates=FORMATS, rounding=rounding)
    return mpq.search(task, {"weight_bytes": "0.6x:w8g128"}, callbacks=callbacks)


CASES: dict[str, Callable[[Any, Sequence[Callback]], object]] = {
    "demo, auto": _demo,
    "demo, cells measured": _measured,
    "demo, comparison": _compared,
    "ResNet-20, nearest": lambda _, x: _resnet20("nearest", x),
    "ResNet-20, auto": lambda _, x: _resnet20("auto", x),
    "Llama 15M, nearest": lambda asked, x: _llama(asked, "nearest", x),
    "Llama 15M, auto": lambda asked, x: _llama(asked, "auto", x),
}

if __name__ == "__main__":
    main()
