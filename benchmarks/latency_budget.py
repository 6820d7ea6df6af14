"""Networks found for a measured latency budget, exported to ONNX and run: do they meet it?

    python benchmarks/latency_budget.py

The pyramid (examples/pyramid_mnist.py; trained first, which takes a few minutes, or read from the
path in MPQ_PYRAMID) is measured on this machine with ONNX Runtime on one thread, then searched
within limits on its latency, and on its latency and its weights' bytes. Every answer, and every
uniform format, is exported and run one image at a time: median processor time in turns, and over
2,000 held-out images accuracy and KL divergence from the original. Prints JSON. Needs MNIST: set
MPQ_DATA, or have it in ../shared/data.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from scipy.special import log_softmax

import mpq
from mpq._support.rows import Memory
from mpq.cli.loading import load_callable, load_model
from mpq.hardware_profiles import NetworkProfile
from mpq.hardware_profiles.profiling import RUNTIMES, Timer
from mpq.hardware_profiles.profiling.compiled_network import CompiledNetwork
from mpq.hardware_profiles.profiling.timer import pinned
from mpq.network.network import Network
from mpq.quantization.precision import Precision
from mpq.workflows.defaults import MAX_INTERVAL, ROUNDS

ROOT = Path(__file__).parents[1]
PRECISIONS = ("fp32", "w7a8", "w2g32a8d", "w4g32a8d", "w8g32a8d")
LIMITS = (
    ("latency=0.55x:fp32",),
    ("latency=0.6x:fp32",),
    ("latency=0.7x:fp32",),
    ("latency=0.9x:fp32", "weight_bytes=3.5MB"),
)


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = run(pyramid(Path(folder)))
    versions = {name: version(name) for name in ("numpy", "torch", "onnxruntime")}
    command = " ".join(["python", *sys.argv])
    print(json.dumps({"command": command, "versions": versions, **found}, indent=1))


def run(weights: Path) -> dict[str, Any]:
    """Profile, searches, and everything measured at the end, in turns."""
    spec = f"{ROOT / 'examples' / 'pyramid_mnist.py'}"
    model = load_model(f"{spec}:make_net", weights)
    calibration, held_out = (load_callable(f"{spec}:{n}") for n in ("calibration", "held_out"))
    known = mpq.profile(mpq.Task(model, calibration, candidates=PRECISIONS))
    task = mpq.Task(model, calibration, held_out, known, PRECISIONS, rounding="nearest")
    results = {", ".join(limits): mpq.search(task, limits) for limits in LIMITS}
    assigned: dict[str, Mapping[str, Precision]] = {
        label: result.assignment.precisions for label, result in results.items()
    }
    names = known.latency.layers
    assigned |= {p: dict.fromkeys(names, Precision.parse(p)) for p in PRECISIONS}
    measured = measure(model, calibration, held_out, known, assigned)
    answers = {label: answer(result, label, measured) for label, result in results.items()}
    return {
        "machine": dict(known.machine), "layers_computed_wrongly": known.record["computed_wrongly"],
        "uniform": {p: measured[p] for p in PRECISIONS}, "searched": answers,
    }  # fmt: skip


def answer(
    result: mpq.SearchResult, label: str, measured: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """What was asked, predicted and measured, and the uniform formats that meet the limits."""
    limits = {b.resource: b.limit for b in result.problem.budgets}
    uniform = {row.label: row.costs["weight_bytes"] for row in result.comparisons}
    able = [
        p
        for p in PRECISIONS
        if measured[p]["latency_s"] <= limits["latency"]
        and uniform.get(p, uniform["original"]) <= limits.get("weight_bytes", np.inf)
    ]
    chosen = result.comparison("result")
    return {
        "limits": limits,
        "solver": result.solution.solver,
        "status": result.solution.status.name.lower(),
        "predicted_latency_s": chosen.costs["latency_seconds"],
        "weight_bytes": chosen.costs["weight_bytes"],
        "simulated_kl_nats": chosen.measured.divergence,
        **measured[label],
        "over_the_limit": measured[label]["latency_s"] / limits["latency"] - 1,
        "uniform_that_meet": able,
        "is_more_accurate_than_those": all(
            measured[label]["accuracy"] > measured[p]["accuracy"] for p in able
        ),
        "is_closer_to_the_original_than_those": all(
            measured[label]["kl_nats"] < measured[p]["kl_nats"] for p in able
        ),
        "precisions": {name: str(p) for name, p in result.assignment.precisions.items()},
    }


def measure(
    model: torch.nn.Module,
    calibration: Any,
    held_out: Any,
    known: NetworkProfile,
    assigned: Mapping[str, Mapping[str, Precision]],
) -> dict[str, dict[str, float]]:
    """Every network, run by ONNX Runtime one image at a time."""
    data = mpq.Calibration.of(calibration)
    compiled = CompiledNetwork.of(
        Network.of(model, data), data, known.latency.precisions, 1, mpq.Ranges()
    )
    runtime = RUNTIMES.build("onnxruntime")
    programs = {
        label: runtime.network(compiled, precisions) for label, precisions in assigned.items()
    }
    with pinned(1):
        times = Timer(ROUNDS, MAX_INTERVAL).measure(
            {label: program.run for label, program in programs.items()},
            [[label] for label in programs], Memory(), "networks",
        )  # fmt: skip
    batches = list(held_out())
    x, y = (torch.cat(parts).numpy() for parts in zip(*batches, strict=True))
    with torch.no_grad():
        original = log_softmax(model(torch.from_numpy(x)).numpy().astype(np.float64), axis=1)
    found = {}
    for label, program in programs.items():
        logits = np.concatenate([program.outputs(image[None]) for image in x])
        logs = log_softmax(logits.astype(np.float64), axis=1)
        found[label] = {
            "latency_s": times[label].median_s,
            "latency_half_width_s": times[label].half_width_s,
            "latency_wall_s": times[label].wall_s,
            "accuracy": float((logits.argmax(axis=1) == y).mean()),
            "kl_nats": float((np.exp(original) * (original - logs)).sum(axis=1).mean()),
        }
    return found


def pyramid(folder: Path) -> Path:
    """Weights of the pyramid, trained if need be."""
    path = Path(os.environ.get("MPQ_PYRAMID") or folder / "pyramid.safetensors")
    if not path.exists():
        script = ROOT / "examples" / "pyramid_mnist.py"
        subprocess.run([sys.executable, str(script), str(path)], check=True, stdout=sys.stderr)
    return path


if __name__ == "__main__":
    main()
