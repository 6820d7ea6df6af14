"""Predicted against measured latency of whole networks at random mixed precisions, on this machine.

    python benchmarks/latency.py

For each network, ``mpq.hardware_profiles.profiling.profile`` measures layers, pairs of layers and
24 mixed networks; then 24 other mixed networks are measured, of which the profile knows nothing.
Compared are

- ``corrected``: the profile,
- ``layers_and_pairs``: the plain sum of layers alone and of what is between them,
- ``layers``: the plain sum of layers alone, as tables of layer times give it,
- ``layers_rescaled``: that sum, rescaled to the uniform networks,
- ``control``: no layer's own time, only the uniform networks and the share of multiplications at
  every precision,
- ``control_fitted``: the same shares, fitted to all whole networks that the profile has seen.

ResNet-20 and the two encoders run by ONNX Runtime on one thread; ResNet-20 also with int8
convolutions channels last, ONNX Runtime's default, to show what that does to sums. Medians of 60
rounds of processor time, wall time beside. The pyramid is trained first (a few minutes), in a
temporary folder, or read from the path in MPQ_PYRAMID. Prints JSON. Needs the published networks:
set MPQ_DATA, or have them in ../shared/data.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
import torch

from mpq._support.rows import Memory
from mpq.cli.loading import load_callable, load_model
from mpq.hardware_profiles import NetworkProfile, Workload
from mpq.hardware_profiles.profiling import RUNTIMES, TimeErrors, Timer
from mpq.hardware_profiles.profiling.compiled_network import CompiledNetwork
from mpq.hardware_profiles.profiling.correction import predicted
from mpq.hardware_profiles.profiling.network_times import (
    NetworkTimes,
    random_assignments,
    time_networks,
)
from mpq.hardware_profiles.profiling.timer import pinned
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.workflows.defaults import ROUNDS
from mpq.workflows.profile import profile
from mpq.workflows.task import Task

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("MPQ_DATA") or ROOT.parent / "shared" / "data")
RESNET = ("resnet20_cifar10", DATA / "cifar10/resnet20.safetensors", ("fp32", "w7a8"))
CASES: dict[str, tuple[str, Path | None, tuple[str, ...], str]] = {
    "resnet20": (*RESNET, "onnxruntime"),
    "resnet20, channels last": (*RESNET, "onnxruntime:channels_last=true"),
    "vit": (
        "vit_mnist", DATA / "mnist/vit_mnist.safetensors", ("fp32", "w7a8", "w4g32a8d"),
        "onnxruntime",
    ),
    "pyramid": (
        "pyramid_mnist", None, ("fp32", "w7a8", "w4g32a8d", "w8g32a8d"), "onnxruntime",
    ),
}  # fmt: skip
SEEN, UNSEEN = 24, 24
MAX_INTERVAL = 0.1

Array = npt.NDArray[np.float64]


def main() -> None:
    torch.set_num_threads(1)
    names = sys.argv[1:] or list(CASES)
    with tempfile.TemporaryDirectory() as folder:
        found = {name: measure(name, Path(folder)) for name in names}
    versions = {name: version(name) for name in ("numpy", "torch", "onnxruntime")}
    command = " ".join(["python", *sys.argv])
    print(json.dumps({"command": command, "versions": versions, **found}, indent=1))


def measure(case: str, folder: Path) -> dict[str, Any]:
    """One network: its profile, then other mixed networks."""
    example, weights, precisions, runtime = CASES[case]
    spec = ROOT / "examples" / f"{example}.py"
    model = load_model(f"{spec}:make_net", weights or pyramid(folder))
    calibration = load_callable(f"{spec}:calibration")
    task = Task(model, calibration, candidates=precisions)
    known = profile(task, runtime, num_networks=SEEN, max_interval=MAX_INTERVAL)
    network = Network.of(model, Calibration.of(calibration))
    compiled = CompiledNetwork.of(
        network,
        Calibration.of(calibration),
        known.latency.precisions,
        known.batch_size,
        task.ranges,
    )
    candidates = random_assignments(known.latency, network.ties, UNSEEN, seed=1)
    built = RUNTIMES.build(runtime)
    with pinned(built.num_threads):
        unseen = time_networks(
            compiled, built, known.latency.precisions, candidates, Timer(ROUNDS, MAX_INTERVAL),
            Memory(),
        )  # fmt: skip
    return report(known, network, unseen)


def report(known: NetworkProfile, network: Network, unseen: NetworkTimes) -> dict[str, Any]:
    """How well each predictor does."""
    truth = unseen.seconds
    predictions = predictors(known, network, unseen.candidates)
    seconds = np.array([n["median_s"] for n in known.record["networks"]])
    return {
        "machine": dict(known.machine),
        "precisions": [str(p) for p in known.latency.precisions],
        "layers_computed_wrongly": known.record["computed_wrongly"],
        "measured_ms": {
            "fastest": min(truth) * 1e3, "median": float(np.median(truth)) * 1e3,
            "slowest": max(truth) * 1e3,
            "median_half_width_share": float(
                np.median([i.half_width_s / i.median_s for i in unseen.intervals])
            ),
            "wall_over_cpu": float(np.median([i.wall_s / i.median_s for i in unseen.intervals])),
            "mean_of_seen": float(seconds[:SEEN].mean()) * 1e3,
        },
        "uniform_ms": {label: s * 1e3 for label, s in uniform(known).items()},
        "correction": known.record["correction"],
        "predictors": {
            label: asdict(TimeErrors.of(values, truth)) for label, values in predictions.items()
        },
    }  # fmt: skip


def predictors(
    known: NetworkProfile, network: Network, candidates: npt.NDArray[np.intp]
) -> dict[str, Array]:
    """``[M]`` seconds by each."""
    table = known.cost("latency", network.layers, known.latency.precisions, Workload())
    alone = layers_alone(known)
    rows = np.arange(len(network.layers))
    seen = seen_choices(known)
    seconds = np.array([n["median_s"] for n in known.record["networks"]])
    plain = np.array([alone[rows, row].sum() for row in candidates])
    ends = uniform(known)
    sums = {
        str(p): float(alone[:, column].sum()) for column, p in enumerate(known.latency.precisions)
    }
    line = np.polyfit([sums[p] for p in ends], list(ends.values()), 1)
    found = {
        "corrected": predicted(table, candidates),
        "layers_and_pairs": plain + np.array([between(known, network, row) for row in candidates]),
        "layers": plain,
        "layers_rescaled": np.polyval(line, plain),
    }
    shares, shares_seen = mac_shares(known, network, candidates), mac_shares(known, network, seen)
    if len(ends) == len(known.latency.precisions):
        found["control"] = shares @ np.array(list(ends.values()))
    weighted = np.linalg.lstsq(shares_seen / seconds[:, None], np.ones(len(seconds)), rcond=None)
    return found | {"control_fitted": shares @ weighted[0]}


def layers_alone(known: NetworkProfile) -> Array:
    """``[L, B]`` seconds of layers measured one at a time."""
    found = np.full(known.latency.values.shape, np.nan)
    idle = known.record["idle"]["median_s"]
    for row in known.record["layers"]:
        place = known.latency.layers.index(row["layer"])
        column = [str(p) for p in known.latency.precisions].index(row["precision"])
        found[place, column] = max(row["median_s"] - idle, 0.0)
    return found


def between(known: NetworkProfile, network: Network, candidate: npt.NDArray[np.intp]) -> float:
    """Seconds that pairs of layers were measured to take beyond what both take alone."""
    alone, idle = layers_alone(known), known.record["idle"]["median_s"]
    place = {layer.name: row for row, layer in enumerate(network.layers)}
    spelled = [str(p) for p in known.latency.precisions]
    kernels = {spelled.index(p): kernel(p) for p in spelled}
    total = 0.0
    for pair in known.record["neighbours"]:
        rows = [place[name] for name in pair["layers"]]
        measured_at = [spelled.index(p) for p in pair["precisions"]]
        if all(
            kernels[candidate[row]] == kernels[column]
            for row, column in zip(rows, measured_at, strict=True)
        ):
            total += pair["median_s"] - idle - sum(alone[rows, measured_at])
    return total


def kernel(precision: str) -> str:
    """Precisions of one kernel were measured in pairs once."""
    return "float" if precision == "fp32" else "nbits" if "g" in precision else "qdq"


def seen_choices(known: NetworkProfile) -> npt.NDArray[np.intp]:
    """``[M, L]`` of the networks that the profile has seen."""
    spelled = [str(p) for p in known.latency.precisions]
    return np.array(
        [
            [spelled.index(n["precisions"][name]) for name in known.latency.layers]
            for n in known.record["networks"]
        ]
    )


def uniform(known: NetworkProfile) -> dict[str, float]:
    """Seconds of the uniform networks that ran."""
    return {
        next(iter(spelled)): n["median_s"]
        for n in known.record["networks"]
        if len(spelled := set(n["precisions"].values())) == 1
    }


def mac_shares(known: NetworkProfile, network: Network, candidates: npt.NDArray[np.intp]) -> Array:
    """``[M, B]`` share of the multiplications at every precision."""
    macs = np.array([layer.macs for layer in network.layers], dtype=np.float64)
    columns = range(len(known.latency.precisions))
    return np.array([[macs[row == column].sum() for column in columns] for row in candidates]) / (
        macs.sum()
    )


def pyramid(folder: Path) -> Path:
    """Weights of the pyramid, trained if need be."""
    path = Path(os.environ.get("MPQ_PYRAMID") or folder / "pyramid.safetensors")
    if not path.exists():
        script = ROOT / "examples" / "pyramid_mnist.py"
        subprocess.run([sys.executable, str(script), str(path)], check=True, stdout=sys.stderr)
    return path


if __name__ == "__main__":
    main()
