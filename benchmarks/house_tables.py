"""The tables of five estimators on three real networks, to see what a change moves.

    python benchmarks/house_tables.py > benchmarks/house_tables.json
    python benchmarks/house_tables.py --against benchmarks/house_tables.json

Prints JSON: of every network and estimator the table ``[layers, precisions]`` on the first two
batches. With ``--against`` it also prints, for each, the largest difference from an earlier output,
relative to the larger of the two numbers. Needs the published networks: set MPQ_DATA, or have them
in ../shared/data.
"""

import argparse
import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from estimators import NETWORKS, ROOT

from mpq import ESTIMATORS, Calibration, Precision
from mpq.cli.loading import load_callable, load_model, load_object
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation

NAMES = ("sketch", "fisher", "output-gradient", "weight-error", "hessian-trace")
PRECISIONS = ("w2a4", "w4a8", "w8a8")
NUM_BATCHES = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="an earlier output")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    header = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__}
    found: dict[str, Any] = {**header, "networks": {name: tables(name) for name in NETWORKS}}
    if arguments.against:
        earlier = json.loads(arguments.against.read_text())["networks"]
        found["largest_relative_difference"] = {
            name: {each: difference(earlier[name], now, each) for each in NAMES}
            for name, now in found["networks"].items()
        }
    print(json.dumps(found, indent=1))


def tables(name: str) -> dict[str, Any]:
    """The tables of one network."""
    example, weights = NETWORKS[name]
    spec = ROOT / "examples" / f"{example}.py"
    model = load_model(f"{spec}:make_net", load_object(f"{spec}:DATA") / weights)
    data = Calibration(list(islice(Calibration(load_callable(f"{spec}:calibration")), NUM_BATCHES)))
    network, candidates = Network.of(model, data), tuple(map(Precision.parse, PRECISIONS))
    quantizer = Quantizer(ActivationRanges.calibrate(network, data, candidates))
    on = Estimation(network, data, quantizer, candidates)
    values = {each: ESTIMATORS.build(each, 0).estimate(on).table.values for each in NAMES}
    return {
        "examples": data.num_examples,
        "precisions": PRECISIONS,
        "layers": on.names,
        # A row a line would take thousands of lines.
        "tables": {each: json.dumps(table.tolist()) for each, table in values.items()},
    }


def difference(earlier: dict[str, Any], now: dict[str, Any], name: str) -> dict[str, Any] | str:
    """The largest one of an estimator, and where it is."""
    if list(earlier["layers"]) != list(now["layers"]):
        return "other layers"
    was, are = (np.array(json.loads(found["tables"][name])) for found in (earlier, now))
    larger = np.maximum(abs(was), abs(are))
    relative = np.where(larger > 0, abs(are - was) / np.where(larger > 0, larger, 1.0), 0.0)
    layer, column = np.unravel_index(relative.argmax(), relative.shape)
    where = f"{now['layers'][layer]} at {now['precisions'][column]}"
    return {"difference": float(relative.max()), "at": where if relative.any() else None}


if __name__ == "__main__":
    main()
