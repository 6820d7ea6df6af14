"""Microscaling weights against integers in groups that take the same bytes.

    python benchmarks/microscaling.py > benchmarks/microscaling.json

The small Llama and the vision transformer, every layer in one precision, in simulation: KL
divergence from the original on held-out examples of mxfp4 (4.25 bits a weight) beside 4 bits in
groups of 64, nvfp4 (4.5) beside 4 bits in groups of 32, and mxfp8 (8.25) beside 8 bits in groups
of 64, with ranges by least squared error and from the smallest to the largest number. Where rows
are no whole groups the bytes differ by a few scales: both are printed. Needs the published
networks: set MPQ_DATA, or have them in ../shared/data.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

import torch

from mpq import Calibration, Precision
from mpq.cli.loading import load_callable, load_model, load_object
from mpq.hardware_profiles import Pricing
from mpq.network.network import Network
from mpq.problem.limits import uniform_cost
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.quantizer import Quantizer
from mpq.workflows.evaluate import Reference
from mpq.workflows.evaluator import Evaluator

EXAMPLES: Final = Path(__file__).parents[1] / "examples"
NETWORKS: Final = {
    "llama": ("llama_stories", "llm/stories260K.fp32.safetensors"),
    "vit": ("vit_mnist", "mnist/vit_mnist.safetensors"),
}
PAIRS: Final = (("mxfp4", "w4g64"), ("nvfp4", "w4g32"), ("mxfp8", "w8g64"))
"""Of the same bits a weight: scales take 8 bits in the one and 16 in the other."""
RANGES: Final = ("mse", "minmax")


def main() -> None:
    """Prints a row for each network, range and pair."""
    torch.set_num_threads(1)
    found = {
        "command": " ".join(["python", *sys.argv]),
        "torch": torch.__version__,
        "rows": [row for network in NETWORKS for row in rows(network)],
    }
    print(json.dumps(found, indent=1))


def rows(name: str) -> list[dict[str, Any]]:
    """Those of one network."""
    example, weights = NETWORKS[name]
    place = EXAMPLES / f"{example}.py"
    model = load_model(f"{place}:make_net", load_object(f"{place}:DATA") / weights)
    network = Network.of(model, Calibration(load_callable(f"{place}:calibration")))
    reference = Reference(model, Calibration(load_callable(f"{place}:held_out")))
    precisions = [Precision.parse(spelled) for pair in PAIRS for spelled in pair]
    prices = Pricing(network.layers).table("weight_bytes", precisions)

    def measured(spelled: str, evaluator: Evaluator) -> dict[str, Any]:
        precision = Precision.parse(spelled)
        found = evaluator.measure(evaluator.uniform(precision))
        return {
            "precision": spelled,
            "weight_bytes": uniform_cost(prices, precision),
            "held_out_kl_nats": found.divergence,
        }

    found = []
    for weight_range in RANGES:
        # Nothing to calibrate: inputs stay as they are.
        evaluator = Evaluator(network, Quantizer(ActivationRanges({}), weight_range), reference)
        for pair in PAIRS:
            block, group = (measured(spelled, evaluator) for spelled in pair)
            ratio = block["held_out_kl_nats"] / group["held_out_kl_nats"]
            row = {"network": name, "weight_range": weight_range, "microscaling": block}
            found.append(row | {"integers": group, "kl_ratio": ratio})
    return found


if __name__ == "__main__":
    main()
