"""Assignments of single layers, with ranges calibrated."""

from typing import Any

from torch import nn

from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision


def assigned(model: nn.Module, data: Any, spellings: dict[str, str]) -> Assignment:
    """An assignment, with ranges calibrated; the entry ``""`` is for all other layers."""
    network = Network.of(model, data)
    names = [layer.name for layer in network.layers]
    chosen = {name: Precision.parse(spellings.get(name, spellings[""])) for name in names}
    ranges = ActivationRanges.calibrate(
        network, Calibration.of(data), set(chosen.values()), "minmax"
    )
    layers = tuple(
        AssignedLayer(
            layer.name, layer.kind, layer.weight_shape, chosen[layer.name],
            ranges.known.get((layer.name, chosen[layer.name].activation)),
        )
        for layer in network.layers
    )  # fmt: skip
    return Assignment(layers, folded=network.folded)
