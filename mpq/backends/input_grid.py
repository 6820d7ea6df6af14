"""The grid of a layer's static input: the simulation's own, so that both round to the same codes.

Its range is in one place, the assignment, of which ``quantizer_of`` gives the quantizer its ranges.
"""

import torch

from mpq.errors import ModelError
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.grid import Grid
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.range_method import ActivationRange
from mpq.quantization.rounding import static_grid
from mpq.quantization.tensor_format import TensorFormat


def input_grid(layer: AssignedLayer) -> Grid:
    """One row, on the CPU.

    Args:
        layer: With a static input format.

    Raises:
        ModelError: If its range is missing; names the layer.
    """
    return _grid(layer.name, layer.precision.activation, layer.activation_range)


def input_grid_of(quantizer: Quantizer, name: str, tensor_format: TensorFormat) -> Grid:
    """The same for whoever has the quantizer, and no assignment.

    Args:
        quantizer: Has the ranges.
        name: The layer's.
        tensor_format: A static one.

    Raises:
        ModelError: As ``input_grid``.
    """
    return _grid(name, tensor_format, quantizer.ranges.of(name, tensor_format))


def _grid(name: str, tensor_format: TensorFormat, ends: ActivationRange | None) -> Grid:
    if ends is None:
        raise ModelError(f"layer {name!r} has no calibrated activation range")
    return static_grid(tensor_format, ends, torch.device("cpu"))
