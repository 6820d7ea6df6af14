"""What a few measurements say of predictions, on networks where predictions are known to be right.

    python benchmarks/spot_check.py > benchmarks/spot_check.json

For the demo, ResNet-20, a vision transformer and a small Llama, at two sets of candidates. The
sketch is taken once, every layer is measured at every candidate once, on the examples that a check
uses, and then the cells of NUM_CHECKS seeds are drawn from these tables: in how many checks a cell
would be called off (too low) or too dear by each of FACTORS, and in how many the order is (false
alarms, as the sketch is right here); and in how many a random order would be told. For OTHERS, at
the first set, the same of their order: where that is low, it is they that are wrong. Needs the
published networks: set MPQ_DATA, or have them in ../shared/data.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from estimators import NETWORKS, ROOT

from mpq import ESTIMATORS, Calibration, Precision, demo
from mpq._support.arrays import Array
from mpq.cli.loading import load_callable, load_model, load_object
from mpq.network.network import Network
from mpq.problem.cost_table import CostTable
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation
from mpq.sensitivity.checked import AGREEMENT, CheckedCell
from mpq.sensitivity.spot_check import (
    NUM_CELLS,
    agreement,
    chosen_cells,
    few_examples,
    judged,
    measured_rows,
    spot_check,
    without_gradient,
)

CANDIDATES = {
    "weights": ("w2", "w3", "w4", "w5", "w6", "w8"),
    "weights and activations": ("w2a4", "w3a8", "w4a4", "w4a8", "w6a8", "w8a8"),
}
NUM_CHECKS = 1000
FACTORS = (5, 10, 20, 30, 50)
OTHERS = ("hessian-trace", "fisher", "relevance", "zero-cost", "weight-error", "orthogonality")
MAX_EXAMPLES = 512
"""For OTHERS: the estimates of ResNet-20 would take most of the time otherwise."""


def main() -> None:
    torch.set_num_threads(1)
    found = {name: measure(*given(name)) for name in ("demo", *NETWORKS)}
    header = {
        "command": " ".join(["python", *sys.argv]),
        "torch": torch.__version__,
        "num_checks": NUM_CHECKS,
        "agreement": AGREEMENT,
        "random_orders_below_agreement": random_orders_below(AGREEMENT),
    }
    seconds = {"processor_seconds": time.process_time()}
    print(json.dumps({**header, **found, **seconds}, indent=1))


def given(name: str) -> tuple[torch.nn.Module, Any]:
    """A network and its calibration data."""
    if name == "demo":
        return demo.make_net(), demo.calibration
    example, weights = NETWORKS[name]
    spec = ROOT / "examples" / f"{example}.py"
    model = load_model(f"{spec}:make_net", load_object(f"{spec}:DATA") / weights)
    return model, load_callable(f"{spec}:calibration")


def measure(model: torch.nn.Module, source: Any) -> dict[str, Any]:
    """Both sets of candidates."""
    data = Calibration(list(Calibration(source)))
    network = Network.of(model, data)
    found: dict[str, Any] = {}
    for label, texts in CANDIDATES.items():
        candidates = tuple(map(Precision.parse, texts))
        ranges = ActivationRanges.calibrate(network, data, candidates)
        on = Estimation(network, data, Quantizer(ranges), candidates)
        values = measured_rows(few_examples(on), on.names)
        found[label] = checks_of_the_sketch(on, values)
        if label == "weights":
            found[label]["others"] = {name: order_of(name, on, values) for name in OTHERS}
    return found


def checks_of_the_sketch(on: Estimation, values: Array) -> dict[str, Any]:
    """What NUM_CHECKS checks say, and what one of them takes."""
    table = ESTIMATORS.build("sketch", 0).estimate(on).table
    start = time.process_time()
    passes = spot_check(on, table).forward_passes
    seconds = time.process_time() - start
    checks = drawn(on, table, values)
    each = list(map(ratios, checks))
    largest, smallest = np.array([(max(x), min(x)) for x in each]).T
    return {
        "layers_without_gradient": without_gradient(on, table),
        "measured_over_predicted": {
            "smallest": float(smallest.min()),
            "median": float(np.median(np.concatenate(each))),
            "largest": float(largest.max()),
        },
        "checks_off_if_factor": {x: int((largest > x).sum()) for x in FACTORS},
        "checks_dear_if_factor": {x: int((smallest < 1 / x).sum()) for x in FACTORS},
        **of_order(checks),
        "random_orders_told": random_orders_told(checks),
        "forward_passes_per_check": passes,
        "processor_seconds_per_check": seconds,
    }


def order_of(name: str, on: Estimation, values: Array) -> dict[str, Any]:
    """What checks say of another estimator's order."""
    fewer = replace(on, data=on.data.until(MAX_EXAMPLES))
    return of_order(drawn(on, ESTIMATORS.build(name, 0).estimate(fewer).table, values))


def drawn(on: Estimation, table: CostTable, values: Array) -> list[tuple[CheckedCell, ...]]:
    """The cells of every check, from ``[L, B]`` losses that are measured already."""
    blind = without_gradient(on, table)
    found = []
    for seed in range(NUM_CHECKS):
        chosen = chosen_cells(on, table, blind, seed)
        rows = {name: values[on.names.index(name), columns] for name, columns in chosen.items()}
        found.append(judged(on, table, chosen, rows))
    return found


def ratios(cells: Sequence[CheckedCell]) -> list[float]:
    """Measured over predicted; a millionth of the largest loss is rounding, as in a check."""
    least = 1e-6 * max(cell.measured for cell in cells)
    return [max(cell.measured, least) / max(cell.predicted, least) for cell in cells]


def of_order(checks: Sequence[Sequence[CheckedCell]]) -> dict[str, Any]:
    """In how many checks the order is called wrong, and Kendall's tau."""
    taus = [tau for cells in checks if (tau := agreement(cells)) is not None]
    return {
        "checks_out_of_order": sum(tau < AGREEMENT for tau in taus),
        "checks_without_an_order": len(checks) - len(taus),
        "tau": {"smallest": min(taus), "median": float(np.median(taus))} if taus else None,
    }


def random_orders_told(checks: Sequence[Sequence[CheckedCell]]) -> int:
    """Checks that would call the order wrong if their predictions were dealt out at random."""
    rng = np.random.default_rng(0)
    count = 0
    for cells in checks:
        dealt = rng.permutation([cell.predicted for cell in cells]).tolist()
        mixed = [replace(c, predicted=p) for c, p in zip(cells, dealt, strict=True)]
        tau = agreement(mixed)
        count += tau is not None and tau < AGREEMENT
    return count


def random_orders_below(most: float, num_cells: int = NUM_CELLS) -> float:
    """Share of all orders with a lower tau, where all pairs count: by Mahonian numbers."""
    counts = np.ones(1)
    for n in range(2, num_cells + 1):
        counts = np.convolve(counts, np.ones(n))  # orders of n with so many inversions
    pairs = len(counts) - 1
    taus = 1 - 2 * np.arange(pairs + 1) / pairs
    return float(counts[taus < most].sum() / counts.sum())


if __name__ == "__main__":
    main()
