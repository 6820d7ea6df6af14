"""One trained network through every target: searched for it, exported, run by its own runtime.

    python benchmarks/deployment.py > benchmarks/deployment.json

The Llama of the TinyStories (examples/llama_stories_transformers.py), within 0.8 times the weight
bytes of the target's own w8 (torchao, which stores a byte per code: 1.05 times). Prints JSON: for
every target the figures of ``export.json`` (difference from the simulation, KL divergence from the
original in the runtime and in the simulation, bytes in the file and predicted, examples a second on
this machine) and what the best uniform precision within the same bytes loses in the simulation.
Needs the published networks: set MPQ_DATA, or have them in ../shared/data, and the extras of the
targets.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import mpq
from mpq.cli.loading import load_callable

NETWORK = Path(__file__).parents[1] / "examples" / "llama_stories_transformers.py"
LIMITS = {
    "compressed-tensors": "weight_bytes=0.8x:w8",
    "gguf": "weight_bytes=0.8x:w8",
    "mlx": "weight_bytes=0.8x:w8",
    "onnx-qdq": "weight_bytes=0.8x:w8",
    "openvino": "weight_bytes=0.8x:w8",
    # A byte for every code, whatever its bits: nothing is below w8.
    "torchao": "weight_bytes=1.05x:w8",
}


def shipped(target: str, folder: Path) -> dict[str, Any]:
    """The figures of one target."""
    part = {name: load_callable(f"{NETWORK}:{name}") for name in ("make_net", "calibration")}
    held_out, model = load_callable(f"{NETWORK}:held_out"), part["make_net"]()
    task = mpq.Task(model, part["calibration"], held_out, to=target)
    result = mpq.search(task, [LIMITS[target.partition(":")[0]]], progress=True)
    mpq.export(result.assignment, folder, target, model, held_out)
    told: dict[str, Any] = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    (budget,) = result.assignment.metadata.budgets
    rows = {row.label: row for row in result.comparisons}
    within = [
        row for label, row in rows.items()
        if label not in ("original", "result") and row.costs["weight_bytes"] <= budget.limit
    ]  # fmt: skip
    best = min(within, key=lambda row: row.measured.divergence, default=None)
    return told | {
        "precisions": sorted({str(p) for p in result.assignment.precisions.values()}),
        "held_out_kl_nats": rows["result"].measured.divergence,
        "best_uniform": best and best.label,
        "best_uniform_held_out_kl_nats": best and best.measured.divergence,
    }


def main(targets: list[str]) -> None:
    """All of them, or those that are named."""
    found: dict[str, Any] = {"command": "python benchmarks/deployment.py"}
    with tempfile.TemporaryDirectory() as place:
        load_callable(f"{NETWORK}:save_tokenizer")(f"{place}/tokenizer")
        for name in targets or LIMITS:
            spelled = f"gguf:tokenizer={place}/tokenizer" if name == "gguf" else name
            told = shipped(spelled, Path(place, name))
            found[name] = told | {"target": name, "limit": LIMITS[name]}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
