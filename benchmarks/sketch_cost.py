"""What one output sketch costs, in units of one forward and backward pass over the same examples.

Beside it, what collecting the second moments of all layers' inputs costs (plain and guided).

    python benchmarks/sketch_cost.py > benchmarks/sketch_cost.json

All layers at six precisions of weights and activations. The unit is a forward pass and a backward
pass that gives the gradients of all parameters, over the same batches. Processor time on one
thread (median of five, interleaved) and the rise of the resident set at the peak. Needs the
published networks: set MPQ_DATA, or have them in ../shared/data.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from estimators import NETWORKS, ROOT

from mpq import ESTIMATORS, Calibration, Precision
from mpq.cli.loading import load_callable, load_model, load_object
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation
from mpq.sensitivity.passes.second_moments import second_moments
from mpq.workflows.peak_memory import peak_memory_bytes

CANDIDATES = {
    "weights and activations": ("w2a4", "w3a8", "w4a4", "w4a8", "w6a8", "w8a8"),
    "weights": ("w2", "w3", "w4", "w5", "w6", "w8"),
}
MOMENTS = "second moments"
REPEATS = 5


def main() -> None:
    torch.set_num_threads(1)
    found = {name: measure(name) for name in NETWORKS}
    command = " ".join(["python", *sys.argv])
    print(json.dumps({"command": command, "torch": torch.__version__, **found}, indent=1))


def measure(name: str) -> dict[str, Any]:
    """Times and memory of one network."""
    example, weights = NETWORKS[name]
    spec = ROOT / "examples" / f"{example}.py"
    model = load_model(f"{spec}:make_net", load_object(f"{spec}:DATA") / weights)
    data = Calibration(list(Calibration(load_callable(f"{spec}:calibration"))))
    network = Network.of(model, data)
    work: dict[str, Callable[[], Any]] = {"forward and backward": lambda: _both(network, data)}
    for label, texts in CANDIDATES.items():
        work[label] = _sketch(network, data, tuple(map(Precision.parse, texts)))
    work[MOMENTS] = _moments(network, data)
    for run in work.values():
        run()  # warm up; weights' ranges are searched for once
    seconds: dict[str, list[float]] = {label: [] for label in work}
    for _ in range(REPEATS):
        for label, run in work.items():
            start = time.process_time()
            run()
            seconds[label].append(time.process_time() - start)
    memory = {label: peak_memory_bytes(run, network.device)[1] for label, run in work.items()}
    unit = statistics.median(seconds["forward and backward"])
    unit_bytes = memory["forward and backward"]
    return {
        "examples": data.num_examples,
        "forward_and_backward_seconds": unit,
        "forward_and_backward_peak_bytes": unit_bytes,
        **{
            label: {
                "times": statistics.median(seconds[label]) / unit,
                "peak_memory": (memory[label] or 0) / unit_bytes if unit_bytes else None,
            }
            for label in (*CANDIDATES, MOMENTS)
        },
    }


def _sketch(
    network: Network, data: Calibration, candidates: tuple[Precision, ...]
) -> Callable[[], object]:
    quantizer = Quantizer(ActivationRanges.calibrate(network, data, candidates))
    return lambda: ESTIMATORS.build("sketch").estimate(
        Estimation(network, data, quantizer, candidates)
    )


def _moments(network: Network, data: Calibration) -> Callable[[], object]:
    on = Estimation(network, data, Quantizer(ActivationRanges({})), ())
    return lambda: second_moments(on)


def _both(network: Network, data: Calibration) -> None:
    parameters = list(network.module.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    for batch in network.batches(data):
        network.outputs(batch).logsumexp(dim=-1).mean().backward()
        for parameter in parameters:
            parameter.grad = None
    for parameter in parameters:
        parameter.requires_grad_(False)


if __name__ == "__main__":
    main()
