"""What a measured sweep costs with and without reusing what comes before the changed layer.

    python benchmarks/measured_sweep.py > benchmarks/measured_sweep.json

ResNet-20, 2, 3, 4, 5, 6, 8 bits for the weights of one layer at a time, on training images. The
naive sweep runs the whole network for every layer and precision. Forward passes are counted by
torch's own counter of floating-point operations, in units of one pass over the same images; times
are processor seconds of one thread, medians of three sweeps that take turns. ``batched`` has small
batches, which is what it is for. Needs the published weights and images: set MPQ_DATA, or have them
in ../shared/data.
"""

import argparse
import itertools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.flop_counter import FlopCounterMode

from mpq import Calibration, Precision
from mpq.cli.loading import load_callable, load_model, load_object
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.quantizer import Quantizer, quantized
from mpq.sensitivity import Estimation, Measured
from mpq.workflows.evaluate import Reference

EXAMPLE = Path(__file__).parents[1] / "examples" / "resnet20_cifar10.py"
CHOICES = tuple(Precision.parse(f"w{bits}") for bits in (2, 3, 4, 5, 6, 8))
QUANTIZER = Quantizer(ActivationRanges({}))
TOLERANCES = (0.1, 0.2, 0.4)
REPEATS = 3

Table = npt.NDArray[np.float64]
Sweep = Callable[[Network, Calibration], Table]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=128, help="in one batch")
    parser.add_argument("--many-images", type=int, default=512, help="in batches of 128")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(
        f"{EXAMPLE}:make_net", load_object(f"{EXAMPLE}:DATA") / "cifar10/resnet20.safetensors"
    )
    data = Calibration(load_callable(f"{EXAMPLE}:calibration"), stop=arguments.many_images)
    network = Network.of(model, data)
    found = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread",
        "torch": torch.__version__,
        "layers": len(network.layers),
        "precisions": len(CHOICES),
        "prefix_reuse": against_naive(network, Calibration(data, stop=arguments.images)),
        "batched": against_one_by_one(network, data),
        "tolerance": against_all_examples(network, data),
    }
    print(json.dumps(found, indent=1))


def naive(network: Network, data: Calibration) -> Table:
    """The whole network for every layer and precision."""
    reference = Reference(network.module, data, network.metric)
    values = np.zeros((len(network.layers), len(CHOICES)))
    for cell in itertools.product(range(len(network.layers)), range(len(CHOICES))):
        alone = {network.layers[cell[0]].name: CHOICES[cell[1]]}
        with quantized(network, alone, QUANTIZER):
            values[cell] = reference.compare(network.module).divergence
    return values


def measured(**options: Any) -> Sweep:
    """The estimator."""

    def sweep(network: Network, data: Calibration) -> Table:
        return (
            Measured(**options).estimate(Estimation(network, data, QUANTIZER, CHOICES)).table.values
        )

    return sweep


def against_naive(network: Network, data: Calibration) -> dict[str, Any]:
    """The aim is 0.6 of the naive sweep's passes, and the same numbers to 1e-6."""
    sweeps = {"naive": naive, "reused": measured()}
    (expected, naive_passes), (found, passes) = (
        counted(sweep, network, data) for sweep in sweeps.values()
    )
    seconds = cpu_seconds(sweeps, network, data)
    return {
        "images": data.num_examples,
        "naive_forward_passes": naive_passes,
        "forward_passes": passes,
        "forward_passes_ratio": passes / naive_passes,
        "largest_relative_difference": float(relative(expected, found).max()),
        "naive_cpu_seconds": seconds["naive"],
        "cpu_seconds": seconds["reused"],
        "cpu_seconds_ratio": seconds["reused"] / seconds["naive"],
    }


def against_one_by_one(network: Network, data: Calibration) -> list[dict[str, Any]]:
    """Several precisions in one pass, for batches of a few sizes."""
    rows = []
    for size in (1, 4, 16, 64):
        batches = Calibration([next(iter(data)).slice(0, size)])
        sweeps = {"one_by_one": measured(), "batched": measured(batched=True)}
        seconds = cpu_seconds(sweeps, network, batches)
        expected, found = (sweep(network, batches) for sweep in sweeps.values())
        rows.append(
            {
                "batch_size": size,
                "one_by_one_cpu_seconds": seconds["one_by_one"],
                "batched_cpu_seconds": seconds["batched"],
                "cpu_seconds_ratio": seconds["batched"] / seconds["one_by_one"],
                "largest_relative_difference": float(relative(expected, found).max()),
            }
        )
    return rows


def against_all_examples(network: Network, data: Calibration) -> list[dict[str, Any]]:
    """How many passes a tolerance saves, and how far its numbers are from those of all images."""
    expected, all_passes = counted(measured(), network, data)
    rows = []
    for tolerance in TOLERANCES:
        found, passes = counted(measured(tolerance=tolerance), network, data)
        rows.append(
            {
                "images": data.num_examples,
                "tolerance": tolerance,
                "forward_passes_of_all_images": all_passes,
                "forward_passes": passes,
                "forward_passes_ratio": passes / all_passes,
                "median_relative_difference": float(np.median(relative(expected, found))),
                "largest_relative_difference": float(relative(expected, found).max()),
            }
        )
    return rows


def counted(sweep: Sweep, network: Network, data: Calibration) -> tuple[Table, float]:
    """The table, and the multiplications it took over those of one pass over the images."""
    with FlopCounterMode(display=False) as whole, torch.no_grad():
        for batch in network.batches(data):
            network.outputs(batch)
    with FlopCounterMode(display=False) as counter:
        table = sweep(network, data)
    return table, counter.get_total_flops() / whole.get_total_flops()


def cpu_seconds(sweeps: dict[str, Sweep], network: Network, data: Calibration) -> dict[str, float]:
    """Medians; the sweeps take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in sweeps}
    for _ in range(REPEATS):
        for name, sweep in sweeps.items():
            start = time.process_time()
            sweep(network, data)
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def relative(expected: Table, found: Table) -> Table:
    error: Table = np.abs(found - expected) / expected
    return error


if __name__ == "__main__":
    main()
