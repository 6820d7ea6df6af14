"""What a few measurements say of predictions, on networks where predictions are known to be right.

    python benchmarks/spot_check.py > benchmarks/spot_check.json

For the demo, ResNet-20, a vision transformer and a small Llama, at two sets of candidates: the
largest ratio of measured over predicted loss among the cells that were looked at, how many of them
were called off or too dear (a false alarm), in how many checks the order was, and what the check
took; with as many seeds as SEEDS says. For OTHERS, with the first seed, how far the order agrees
(Kendall's tau): where that is low, it is they that are wrong. Needs the published networks: set
MPQ_DATA, or have them in ../shared/data.
"""

import json
import sys
import time
from typing import Any

import torch
from estimators import NETWORKS, ROOT

from mpq import ESTIMATORS, Calibration, Precision, demo
from mpq.cli.loading import load_callable, load_model, load_object
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation
from mpq.sensitivity.checked import AGREEMENT, CheckedCell
from mpq.sensitivity.spot_check import spot_check

CANDIDATES = {
    "weights and activations": ("w2a4", "w3a8", "w4a4", "w4a8", "w6a8", "w8a8"),
    "weights": ("w2", "w3", "w4", "w5", "w6", "w8"),
}
SEEDS = range(5)
OTHERS = ("hessian-trace", "fisher", "relevance", "zero-cost", "weight-error", "orthogonality")


def main() -> None:
    torch.set_num_threads(1)
    found = {name: measure(*given(name)) for name in ("demo", *NETWORKS)}
    command = " ".join(["python", *sys.argv])
    print(json.dumps({"command": command, "torch": torch.__version__, **found}, indent=1))


def given(name: str) -> tuple[torch.nn.Module, Any]:
    """A network and its calibration data."""
    if name == "demo":
        return demo.make_net(), demo.calibration
    example, weights = NETWORKS[name]
    spec = ROOT / "examples" / f"{example}.py"
    model = load_model(f"{spec}:make_net", load_object(f"{spec}:DATA") / weights)
    return model, load_callable(f"{spec}:calibration")


def measure(model: torch.nn.Module, source: Any) -> dict[str, Any]:
    """Every set of candidates, every seed."""
    data = Calibration(list(Calibration(source)))
    network = Network.of(model, data)
    return {
        label: checks(network, data, tuple(map(Precision.parse, texts)))
        for label, texts in CANDIDATES.items()
    }


def checks(network: Network, data: Calibration, candidates: tuple[Precision, ...]) -> Any:
    """What the checks of all seeds say."""
    ranges = ActivationRanges.calibrate(network, data, candidates)
    on = Estimation(network, data, Quantizer(ranges), candidates)
    cells, taus = list[CheckedCell](), list[float | None]()
    blind, seconds, passes = set[str](), 0.0, 0.0
    for seed in SEEDS:
        table = ESTIMATORS.build("sketch", seed).estimate(on).table
        start = time.perf_counter()
        check = spot_check(on, table, seed)
        seconds += time.perf_counter() - start
        passes += check.forward_passes
        cells += check.cells
        taus.append(check.agreement)
        blind |= set(check.no_gradient)
    ratios = sorted(c.measured / c.predicted for c in cells if c.predicted > 0)
    return {
        "num_cells": len(cells),
        "num_off": sum(c.is_off for c in cells),
        "num_dear": sum(c.is_dear for c in cells),
        "num_out_of_order": sum(tau is not None and tau < AGREEMENT for tau in taus),
        "smallest_agreement": min(tau for tau in taus if tau is not None),
        "layers_without_gradient": sorted(blind),
        "smallest_measured_over_predicted": ratios[0],
        "median_measured_over_predicted": ratios[len(ratios) // 2],
        "largest_measured_over_predicted": ratios[-1],
        "forward_passes_per_check": passes / len(SEEDS),
        "seconds_per_check": seconds / len(SEEDS),
        "agreement_of_others": {name: agreement_of(on, name) for name in OTHERS},
    }


def agreement_of(on: Estimation, name: str) -> float | None:
    """Kendall's tau in the check of an estimator."""
    return spot_check(on, ESTIMATORS.build(name, 0).estimate(on).table).agreement


if __name__ == "__main__":
    main()
