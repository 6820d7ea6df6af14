"""The same networks by every runtime on this machine, in every format that runs there.

    python benchmarks/runtimes.py

ResNet-20, the vision transformer and, where MPQ_PYRAMID is the path of its weights, the pyramid
(examples/pyramid_mnist.py): milliseconds of the uniform networks, and of the sum of their layers
where not every layer runs in a format. One thread, medians of 30 rounds of processor time. Prints
JSON. Needs the published networks: set MPQ_DATA, or have them in ../shared/data.
"""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from mpq.cli.loading import load_callable, load_model
from mpq.hardware_profiles.profiling import RUNTIMES
from mpq.workflows.profile import profile
from mpq.workflows.task import Task

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("MPQ_DATA") or ROOT.parent / "shared" / "data")
NETWORKS = {
    "resnet20": ("resnet20_cifar10", DATA / "cifar10/resnet20.safetensors"),
    "vit": ("vit_mnist", DATA / "mnist/vit_mnist.safetensors"),
}


def main() -> None:
    torch.set_num_threads(1)
    networks = dict(NETWORKS)
    if "MPQ_PYRAMID" in os.environ:
        networks["pyramid"] = ("pyramid_mnist", Path(os.environ["MPQ_PYRAMID"]))
    found = {
        network: {name: measure(*networks[network], name) for name in RUNTIMES.names()}
        for network in networks
    }
    versions = {name: version(name) for name in ("torch", "onnxruntime", "openvino", "torchao")}
    command = " ".join(["python", *sys.argv])
    print(json.dumps({"command": command, "versions": versions, **found}, indent=1))


def measure(example: str, weights: Path, runtime: str) -> dict[str, Any]:
    """Milliseconds by precision, and layers that a runtime computes wrongly."""
    spec = ROOT / "examples" / f"{example}.py"
    model = load_model(f"{spec}:make_net", weights)
    task = Task(model, load_callable(f"{spec}:calibration"))
    known = profile(task, runtime, num_networks=1, rounds=30, max_interval=0.5)
    uniform = {
        next(iter(spelled)): n["median_s"] * 1e3
        for n in known.record["networks"]
        if len(spelled := set(n["precisions"].values())) == 1
    }
    layers: dict[str, list[float]] = {}
    for row in known.record["layers"]:
        layers.setdefault(row["precision"], []).append(row["median_s"])
    idle = known.record["idle"]["median_s"]
    return {
        "network_ms": uniform,
        "layers_alone_ms": {
            p: float(np.sum(times) - idle * len(times)) * 1e3 for p, times in layers.items()
        },
        "layers_run": {p: len(times) for p, times in layers.items()},
        "layers_computed_wrongly": {
            row["precision"]: sum(
                r["precision"] == row["precision"] for r in known.record["computed_wrongly"]
            )
            for row in known.record["computed_wrongly"]
        },
    }


if __name__ == "__main__":
    main()
