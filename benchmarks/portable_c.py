"""Two trained networks as C for microcontrollers: compiled, run, compared with the simulations.

    python benchmarks/portable_c.py > benchmarks/portable_c.json

The network of the demo and ResNet-20 on CIFAR-10, each searched within a limit on flash among what
a Cortex-M4 has published kernels for, and uniformly at 8 and 4 bits. Prints JSON: the figures of
``export.json`` for held-out examples (bytes of constants and of the arena in the compiled object,
difference from the simulation that rounds as the C does, difference from the one that a search
measures in, KL divergences), beside ``flash`` and ``peak_ram`` of the report. Needs a C compiler
and the published networks: set MPQ_DATA, or have them in ../shared/data.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import mpq
from mpq.cli.loading import load_callable, load_model

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("MPQ_DATA") or ROOT.parent / "shared" / "data")
RESNET = ROOT / "examples" / "resnet20_cifar10.py"
NETWORKS: dict[str, tuple[str, Path | None]] = {
    "demo": ("mpq.demo", None),
    "resnet20": (str(RESNET), DATA / "cifar10" / "resnet20.safetensors"),
}
KERNELS = ("w2a8", "w4a8", "w8a8")
"""What the profile of the Cortex-M4 has kernels for, at 8-bit activations."""
TRIED: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "searched": (KERNELS, ["flash=0.65x:w8a8"]),
    "w8a8": (("w8a8",), ["flash=1x:w8a8"]),
    "w4a4": (("w4a4",), ["flash=1x:w4a4"]),
}
NUM_BATCHES = 4
"""Of calibration examples: ranges of a few hundred images are those of all."""


def shipped(network: str, tried: str, folder: Path) -> dict[str, Any]:
    """The figures of one network in one way."""
    place, weights = NETWORKS[network]
    model = load_model(f"{place}:make_net", weights)
    calibration, held_out = (load_callable(f"{place}:{x}") for x in ("calibration", "held_out"))

    def first() -> Iterator[Any]:
        return islice(iter(calibration()), NUM_BATCHES)

    candidates, limits = TRIED[tried]
    examples = list(islice(iter(held_out()), 1))
    task = mpq.Task(
        model,
        first,
        held_out,
        to="c",
        device="cortex-m4",
        candidates=candidates,
        rounding="nearest",
    )
    result = mpq.search(task, [*limits, "peak_ram=1x:w8a8"], sensitivity="weight-error")
    mpq.export(result.assignment, folder, "c", model, first, held_out=examples)
    told: dict[str, Any] = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    budgets = {budget.resource: budget for budget in result.assignment.metadata.budgets}
    measured = result.assignment.metadata
    return told | {
        "network": network,
        "tried": tried,
        "limits": limits,
        "report_flash_bytes": budgets["flash"].used,
        "report_peak_ram_bytes": budgets["peak_ram"].used,
        "search_held_out_kl_nats": measured.measured_loss,
        "search_held_out_accuracy": measured.measured_accuracy,
    }


def main(networks: list[str]) -> None:
    """All of them, or those that are named."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for network in networks or NETWORKS:
            rows += [shipped(network, tried, Path(place, network + tried)) for tried in TRIED]
    command = " ".join(["python benchmarks/portable_c.py", *networks])
    found = {"command": command, "rows": rows}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
