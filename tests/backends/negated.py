"""Assignments with negative scales, as a rounding may find them, for tests of backends."""

from dataclasses import replace

import torch
from torch import nn

from mpq.backends.simulate import prepared, quantizer_of
from mpq.network.modules import weight_of
from mpq.network.weight_layout import layout_of
from mpq.problem.assignment import Assignment
from mpq.quantization.grid import integer_range
from mpq.quantization.stored import StoredWeights
from mpq.quantization.tensor_format import Granularity


def negated(model: nn.Module, assignment: Assignment) -> Assignment:
    """Every other scale negative, with codes for it; of every third row one is the lowest code.

    Args:
        model: The network as it came.
        assignment: Its layers' weights in integers have no zero points.
    """
    module, quantizer = prepared(model, assignment), quantizer_of(assignment)
    stored = {}
    for layer in assignment.layers:
        tensor_format = layer.precision.weight
        if not tensor_format.is_scaled_integer:
            continue
        layer_module = module.get_submodule(layer.name)
        rows = layout_of(layer_module).to_rows(weight_of(layer_module).detach())
        found = quantizer.codes(layer.name, layer_module, tensor_format)
        places = torch.arange(found.scale.numel()).view_as(found.scale)
        is_one = tensor_format.granularity is Granularity.TENSOR
        sign = torch.where((places % 2 == 0) | torch.tensor(is_one), -1.0, 1.0)
        low, high = integer_range(tensor_format.number, tensor_format.symmetric)
        grouped = (found.codes.reshape(*sign.shape, -1) * sign[..., None]).clamp(low, high)
        # What has no place with the other sign.
        grouped[::3, :, 0] = low
        codes = replace(found, codes=grouped.flatten(1), scale=found.scale * sign)
        stored[layer.name] = codes.stored(rows)
    return replace(assignment, weights=StoredWeights("auto", stored))
