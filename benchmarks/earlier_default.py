"""The search of a commit before weights were rounded with regard to data, on the same work.

    git worktree add ../earlier 95d0cf1
    python benchmarks/earlier_default.py --checkout ../earlier > benchmarks/earlier_default.json

What ``mpq.search`` of that commit loses with its defaults at the bytes of uniform 3, 4 and 5 bits
on the fresh examples of ``rounding_search.py``, with that script's networks, calibration examples
and seeds; beside it what the searches to nearest and with ``auto`` lose
(``rounding_search/NETWORK.json``), and their ratios to it, geometric means over seeds. Needs the
published networks: MPQ_DATA, or ../shared/data.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from estimators import NETWORKS, ROOT
from rounding_search import BUDGET_BITS, CANDIDATES, SEARCHED, network, parts

HERE = Path(__file__).resolve().parent

EARLIER = """
import json, sys, torch
import mpq
from mpq.cli.loading import load_model, load_object
examples, spec, weights, candidates, bits = json.loads(sys.argv[1])
torch.set_num_threads(1)
found = []
for seed, file in enumerate(examples):
    seen, held_out, fresh = torch.load(file)
    model = load_model(f"{spec}:make_net", load_object(f"{spec}:DATA") / weights)
    task = mpq.Task(model, seen, held_out, candidates=candidates, seed=seed)
    for width in bits:
        result = mpq.search(task, [mpq.Limit.parse(f"weight_bytes=1x:w{width}")])
        lost = mpq.evaluate(model, result.assignment, fresh)["quantized"].divergence
        found.append({"seed": seed, "bits": width, "kl_nats": lost})
print(json.dumps([mpq.__file__, found]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkout", type=Path, required=True, help="a checkout of that commit")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    commit = subprocess.check_output(
        ["git", "-C", str(given.checkout), "rev-parse", "--short", "HEAD"], text=True
    ).strip()
    rows = [row for name in NETWORKS for row in compared(name, given.checkout, given.seeds)]
    header = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__}
    print(json.dumps({**header, "earlier": commit, "rows": rows}, indent=1))


def compared(name: str, checkout: Path, seeds: int) -> list[dict[str, Any]]:
    """A row for every budget of one network."""
    earlier = searched_by(checkout, name, seeds)
    today = json.loads((HERE / "rounding_search" / f"{name}.json").read_text())["rows"]
    rows = []
    for bits in BUDGET_BITS:
        before = [row["kl_nats"] for row in earlier if row["bits"] == bits]
        after = {
            rounding: [
                budget[SEARCHED]["kl_nats"]
                for row in today
                if row["rounding"] == rounding and row["seed"] < seeds
                for budget in row["budgets"]
                if budget["bits"] == bits
            ]
            for rounding in ("nearest", "auto")
        }
        row = {"network": name, "bits": bits, "earlier_kl_nats": before}
        for rounding, lost in after.items():
            row |= {f"{rounding}_kl_nats": lost, f"{rounding}_ratio": mean_ratio(lost, before)}
        rows.append(row)
    return rows


def searched_by(checkout: Path, name: str, seeds: int) -> list[dict[str, Any]]:
    """What the search of a checkout loses, in a process of its own."""
    example, weights = NETWORKS[name]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{seed}.pt" for seed in range(seeds)]
        for seed, file in enumerate(files):
            _, (calibration, fresh) = network(name, seed)
            torch.save((*parts(calibration), fresh), file)
        spec = ROOT / "examples" / f"{example}.py"
        asked = [list(map(str, files)), str(spec), weights, CANDIDATES, BUDGET_BITS]
        answer = subprocess.check_output(
            [sys.executable, "-c", EARLIER, json.dumps(asked)],
            env={**os.environ, "PYTHONPATH": str(checkout.resolve())},
            cwd=folder,
            text=True,
        )
    imported, found = json.loads(answer.splitlines()[-1])
    if not Path(imported).is_relative_to(checkout.resolve()):
        sys.exit(f"{imported} was imported, which is not in {checkout}")
    return list(found)


def mean_ratio(losses: list[float], base: list[float]) -> float:
    """The geometric mean of ratios, seed by seed."""
    return float(np.exp(np.mean(np.log(losses) - np.log(base))))


if __name__ == "__main__":
    main()
