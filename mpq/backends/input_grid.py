"""The grid of a layer's static input, from the one place that has its range: the assignment."""

import torch

from mpq.errors import ModelError
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.grid import Grid
from mpq.quantization.rounding import static_grid


def input_grid(layer: AssignedLayer) -> Grid:
    """The very grid that the simulation rounds a layer's input on, one row, on the CPU.

    Args:
        layer: With a static input format.

    Raises:
        ModelError: If its range is missing; names the layer.
    """
    if layer.activation_range is None:
        raise ModelError(f"layer {layer.name!r} has no calibrated activation range")
    return static_grid(layer.precision.activation, layer.activation_range, torch.device("cpu"))
