"""What a plan says that a search will take, beside what it takes.

    python benchmarks/planned_time.py > benchmarks/planned_time.json

The built-in network with the default search, and Llamas of random weights (those of ``scale.py``,
six weight formats in groups of 128) with weights rounded to nearest and by ``auto``. Seconds are
those of a clock, one thread; ``of_planned`` is the search's over the plan's, ``plan_of_search``
what planning took of the search. ``--sizes`` chooses Llamas.
"""

import argparse
import json
import sys
import time
from typing import Any

import torch
from scale import FORMATS, SIZES, llama, sequences

import mpq
from mpq import demo
from mpq.workflows.plan import plan as make_plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=["15M"])
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    task = mpq.Task(demo.make_net(), demo.calibration, demo.held_out)
    rows = {"demo, auto": row(task, {"effective_bits": 4})}
    for size in asked.sizes:
        model = llama(size, torch.float32)
        for rounding in ("nearest", "auto"):
            task = mpq.Task(model, sequences(model, asked), candidates=FORMATS, rounding=rounding)
            rows[f"{size}, {rounding}"] = row(task, {"weight_bytes": "0.6x:w8g128"})
    about = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__}
    print(json.dumps({**about, **vars(asked), "rows": rows}, indent=1))


def row(task: mpq.Task, limits: dict[str, Any]) -> dict[str, Any]:
    """One search, planned and done."""
    start = time.perf_counter()
    plan = make_plan(task, limits)
    planning_s, start = time.perf_counter() - start, time.perf_counter()
    mpq.search(task, limits)
    search_s = time.perf_counter() - start
    found = {
        "planned_s": round(plan.total_s, 1),
        "search_s": round(search_s, 1),
        "of_planned": round(search_s / plan.total_s, 2),
        "plan_of_search": round(planning_s / search_s, 2),
        "phases": plan.to_dict()["phases"],
    }
    print(found, file=sys.stderr)
    return found


if __name__ == "__main__":
    main()
