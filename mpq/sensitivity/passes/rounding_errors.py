"""Squared errors that formats make in weights and in inputs."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mpq._support.progress import track
from mpq.network.examples import Calibration
from mpq.network.modules import hooks
from mpq.network.network import Network
from mpq.quantization.precision import TensorFormat
from mpq.quantization.quantizer import Quantizer


def weight_errors(
    network: Network, quantizer: Quantizer, formats: Sequence[TensorFormat]
) -> npt.NDArray[np.float64]:
    """Squared error of every layer's weight in every format, ``[L, formats]``."""
    found = np.zeros((len(network.layers), len(formats)))
    for row, layer in enumerate(track(network.layers, "rounded weights")):
        weight, layer_module = network.weight(layer.name), network.layer_module(layer.name)
        for column, tensor_format in enumerate(formats):
            change = quantizer.weight(layer.name, layer_module, tensor_format) - weight
            found[row, column] = float(change.double().square().sum())
    return found


def input_errors(
    network: Network, data: Calibration, quantizer: Quantizer, formats: Sequence[TensorFormat]
) -> npt.NDArray[np.float64]:
    """Squared error of every layer's input in every format, per example, ``[L, formats]``.

    One forward pass over the data, none if no format rounds.
    """
    found = np.zeros((len(network.layers), len(formats)))
    rounding = [(column, f) for column, f in enumerate(formats) if not f.is_exact]
    if not rounding:
        return found

    def add(row: int, name: str, layer_module: nn.Module, args: tuple[Any, ...]) -> None:
        for column, tensor_format in rounding:
            change = quantizer.activation(name, layer_module, args[0], tensor_format) - args[0]
            found[row, column] += float(change.double().square().sum())

    layers = enumerate(network.layers)
    handles = [
        network.layer_module(layer.name).register_forward_pre_hook(partial(add, row, layer.name))
        for row, layer in layers
    ]
    examples = 0
    with hooks(handles), torch.no_grad():
        for batch in track(network.batches(data), "rounded inputs", data.num_batches):
            network.outputs(batch)
            examples += batch.size
    return found / examples
