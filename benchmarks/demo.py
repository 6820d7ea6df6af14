"""What mixing buys on the built-in network: the result against every uniform precision.

    python benchmarks/demo.py > benchmarks/demo.json

The limits are those of ``mpq search`` without options. They were chosen by looking at a few such
tables (48 to 64 KiB, of which biases take 4, and 4.2 to 4.7 ms), so that a newcomer sees at once
what a search is for; the network, its data and the device's numbers were not touched for it.
Compared are all uniform precisions that the device runs, within the same two limits or not, on
the same held-out digits; and, apart, those that fit the bytes but that the device has no kernel
for, hence no latency.
"""

import json
import platform
import sys
import time
from typing import Any

import torch

import mpq
from mpq import demo
from mpq.cli.task_options import DEMO_DEVICE, DEMO_LIMITS
from mpq.problem.limits import parse_limits

OTHERS = ("w3a8", "w5a8", "w6a8", "w7a8")
"""Uniform precisions that the device has no kernel for."""


def without_a_kernel(most_bytes: float) -> list[dict[str, Any]]:
    """Those of ``OTHERS`` that fit the bytes, measured as if they could run."""
    task = mpq.Task(demo.make_net(), demo.calibration, demo.held_out, candidates=OTHERS)
    found = mpq.search(task, {"effective_bits": "1x:w7a8"}, sensitivity="weight-error")
    return [
        {
            "network": row.label,
            "held_out_kl_nats": row.measured.divergence,
            "weight_bytes": row.costs["weight_bytes"],
        }
        for row in found.comparisons
        if row.label in OTHERS and row.costs["weight_bytes"] <= most_bytes
    ]


def main() -> dict[str, Any]:
    """The comparison, and how many times less the result loses than the best uniform one."""
    task = mpq.Task(demo.make_net(), demo.calibration, demo.held_out, DEMO_DEVICE)
    start = time.perf_counter()
    result = mpq.search(task, DEMO_LIMITS)
    seconds = time.perf_counter() - start
    limits = {
        result.cost_table(limit.resource).column: limit.resolve(result.cost_table(limit.resource))
        for limit in parse_limits(DEMO_LIMITS)
    }
    rows: list[dict[str, Any]] = [
        {
            "network": row.label,
            "held_out_kl_nats": row.measured.divergence,
            "accuracy": row.measured.accuracy,
            **row.costs,
            "is_within_limits": all(row.costs[column] <= most for column, most in limits.items()),
        }
        for row in result.comparisons
    ]
    uniform = [row for row in rows if row["network"] not in ("original", "result")]
    within = [row["held_out_kl_nats"] for row in uniform if row["is_within_limits"]]
    return {
        "command": "python benchmarks/demo.py",
        "machine": platform.processor() or platform.machine(),
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "device": DEMO_DEVICE,
        "limits": limits,
        "search_seconds": seconds,
        "rows": rows,
        "fits_the_bytes_but_has_no_kernel": without_a_kernel(limits["weight_bytes"]),
        "uniform_within_limits": len(within),
        "best_uniform_over_result": min(within) / result.measured.divergence,
    }


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
