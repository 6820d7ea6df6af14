"""Squared errors that formats make in weights and in inputs."""

import numpy as np
import torch
from torch import Tensor

from mpq._support.arrays import Array
from mpq._support.progress import track
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.passes.backward_pass import Tap
from mpq.sensitivity.passes.forward_pass import read_layers
from mpq.sensitivity.passes.weight_changes import WeightChanges


def weight_errors(on: Estimation) -> Array:
    """Squared error of every layer's weight at every candidate, ``[L, B]``."""
    return np.stack([found.sum(axis=0) for found in channel_errors(on).values()])


def channel_errors(on: Estimation) -> dict[str, Array]:
    """Layer name to ``[O, B]``, squared errors of every output channel's weights."""
    found = dict[str, Array]()
    for name in track(on.names, "rounded weights"):
        # By format and not by candidate: w4a8 and w4a16 have one weight, rounded once.
        squares = WeightChanges.of_original(on, name).squares().cpu().numpy()
        found[name] = on.weights.by_candidate(squares)
    return found


def input_errors(on: Estimation) -> Array:
    """Squared error of every layer's input at every candidate, per example, ``[L, B]``.

    One forward pass over the data, none if no candidate rounds inputs.
    """
    # On each layer's device, so that no pass waits for a transfer.
    found = {
        name: on.network.weight(name).new_zeros(len(on.inputs.formats), dtype=torch.float64)
        for name in on.names
    }

    def add(tap: Tap, x: Tensor, _: Tensor) -> None:
        for column, tensor_format in on.inputs.rounding:
            change = on.rounded_input(tap.name, x, tensor_format) - x
            found[tap.name][column] += change.double().square().sum()

    if not on.inputs.is_rounding:
        return np.zeros(on.shape)
    examples = read_layers(on, add, "rounded inputs")
    errors = np.stack([sums.cpu().numpy() for sums in found.values()])
    return on.inputs.by_candidate(errors / examples)
