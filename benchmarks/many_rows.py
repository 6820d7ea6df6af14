"""Parts of layers by the million: how soon they are solved, to what gap, and in what memory.

    OMP_NUM_THREADS=1 python benchmarks/many_rows.py > benchmarks/many_rows.json
    OMP_NUM_THREADS=1 python benchmarks/many_rows.py --cases problem   # of 100,000 layers only

Made-up channels of 226 layers: those of a layer cost the same at every precision, as channels do,
and their losses are log-normal and fall by four with every bit. Up to three budgets: bytes, and
two other resources that follow bits less regularly. ``problem`` goes all the way of a user: a
``Problem`` of 100,000 rows with names, of which every fifth is tied to its neighbour, made,
solved by ``auto``, and written and read as JSON. ``rows`` are arrays in float32, without names.
Prints JSON: processor and wall seconds on one thread, the proved gap, and the most memory of the
process (VmHWM), each case in a process of its own; the arrays of the problem alone beside it.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.quantization.precision import Precision
from mpq.solvers import Auto, Lagrangian
from mpq.solvers.additive.rows import Rows

Floats = npt.NDArray[np.float32]
PRECISIONS = tuple(map(Precision.parse, ("w2", "w3", "w4", "w5", "w6", "w7", "w8", "fp16")))
BITS = np.array([2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 16.0])
LAYERS = 226
SHARE = 0.3
"""Of the way from the smallest to the largest: where budgets are."""
MADE_AT_A_TIME = 1 << 18
CASES = [
    *(("problem", 100_000, 8, budgets) for budgets in (1, 2, 3)),
    *(("rows", 100_000, 8, budgets) for budgets in (1, 2, 3)),
    *(("rows", 1_000_000, 8, budgets) for budgets in (1, 2, 3)),
    *(("rows", 10_000_000, 8, budgets) for budgets in (1, 2)),
]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", choices=("problem", "rows"), help="default: both")
    parser.add_argument("--one", nargs=4, help="kind, rows, precisions, budgets: one case, here")
    asked = parser.parse_args()
    if asked.one:
        kind, *numbers = asked.one
        print(json.dumps(KINDS[kind](*map(int, numbers))))
        return
    found = {
        "command": " ".join(["python", *sys.argv]),
        "versions": {name: version(name) for name in ("numpy", "scipy", "highspy")},
        "python": platform.python_version(),
        "rows": [apart(*case) for case in CASES if asked.cases in (None, case[0])],
    }
    print(json.dumps(found, indent=1))


def apart(*case: Any) -> dict[str, Any]:
    """A case in a process of its own, whose most memory is the case's."""
    command = [sys.executable, __file__, "--one", *map(str, case)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row: dict[str, Any] = json.loads(done.stdout)
    print(row, file=sys.stderr)
    return row


def made(num_rows: int, num_precisions: int, num_budgets: int) -> Rows:
    """Channels in the order of their layers."""
    rng = np.random.default_rng(0)
    bits = BITS[:num_precisions]
    width = rng.choice([1024, 4096, 14336], LAYERS)[:, None]
    scale = rng.lognormal(0, 1.5, LAYERS)
    uneven = rng.lognormal(0, 0.2, (2, LAYERS, num_precisions))
    rates = [
        np.ceil(width * bits / 8) + 2,
        1e-9 * width * (0.3 + bits / 8) * uneven[0],
        # The least at 8 bits, as of a kernel that the others are unpacked for.
        1e-9 * width * (1.0 + 0.1 * np.abs(bits - 8)) * uneven[1],
    ][:num_budgets]
    loss: Floats = np.empty((num_rows, num_precisions), dtype=np.float32)
    costs: Floats = np.empty((num_budgets, num_rows, num_precisions), dtype=np.float32)
    low, high = np.zeros((2, num_budgets))
    for start in range(0, num_rows, MADE_AT_A_TIME):
        part = slice(start, min(start + MADE_AT_A_TIME, num_rows))
        layer = np.arange(part.start, part.stop) * LAYERS // num_rows
        channels = scale[layer] * rng.lognormal(0, 1, len(layer))
        loss[part] = channels[:, None] * 4.0**-bits
        for resource, rate in enumerate(rates):
            costs[resource, part] = rate[layer]
        low += costs[:, part].min(axis=2).sum(axis=1, dtype=np.float64)
        high += costs[:, part].max(axis=2).sum(axis=1, dtype=np.float64)
    return Rows(loss, costs, low + SHARE * (high - low))


def arrays(num_rows: int, num_precisions: int, num_budgets: int) -> dict[str, Any]:
    """Solved as arrays."""
    rows = made(num_rows, num_precisions, num_budgets)
    found, seconds = timed(lambda: Lagrangian(gap=1e-5, time_limit_s=60.0).allocate(rows))
    assert (found.used <= rows.limits * (1 + 1e-12)).all()
    return {
        "kind": "rows",
        "rows": num_rows,
        "precisions": num_precisions,
        "budgets": num_budgets,
        "binding": int((found.prices > 0).sum()),
        "loss": found.loss,
        "gap": found.gap,
        "status": found.status.name.lower(),
        "solve": seconds,
        "arrays_mib": round((rows.loss.nbytes + rows.costs.nbytes) / 2**20),
        "most_mib": most_mib(),
    }


def problem(num_rows: int, num_precisions: int, num_budgets: int) -> dict[str, Any]:
    """Solved as a problem with names, ties and JSON."""
    rows = made(num_rows, num_precisions, num_budgets)
    asked, make = timed(lambda: named(rows))
    found, seconds = timed(lambda: Auto().solve(asked))
    text, write = timed(asked.to_json)
    _, read = timed(lambda: Problem.from_json(text))
    assert found.columns is not None
    assert asked.is_feasible(found.columns)
    return {
        "kind": "problem",
        "rows": num_rows,
        "tied": num_rows // 5,
        "precisions": num_precisions,
        "budgets": num_budgets,
        "loss": found.loss,
        "gap": found.gap,
        "status": found.status.name.lower(),
        "make": make,
        "solve": seconds,
        "to_json": write,
        "from_json": read,
        "json_mib": round(len(text) / 2**20),
        "most_mib": most_mib(),
    }


def named(rows: Rows) -> Problem:
    """With a name for every row, and the first two of every ten tied."""
    names = tuple(f"layer{row}" for row in range(len(rows)))
    precisions = PRECISIONS[: rows.loss.shape[1]]
    kinds = (("weight", "bytes"), ("latency", "seconds"), ("energy", "joules"))
    budgets = tuple(
        Budget.of(CostTable(name, unit, names, precisions, cost.astype(np.float64)), limit)
        for (name, unit), cost, limit in zip(kinds, rows.costs, rows.limits.tolist(), strict=False)
    )
    loss = CostTable("loss", "nats", names, precisions, rows.loss.astype(np.float64))
    return Problem(loss, Constraints(budgets, tuple(zip(names[::10], names[1::10], strict=True))))


def timed(run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What it returns, wall and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    found = run()
    return found, {
        "wall_s": round(time.perf_counter() - wall, 2),
        "processor_s": round(time.process_time() - processor, 2),
    }


def most_mib() -> int:
    """The most memory that this process has had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return round(int(kib) / 1024)


KINDS: dict[str, Callable[[int, int, int], dict[str, Any]]] = {"problem": problem, "rows": arrays}


if __name__ == "__main__":
    main()
