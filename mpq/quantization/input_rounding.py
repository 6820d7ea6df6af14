"""What a layer reads, after storing it in a format: which axes share a scale is the layer's."""

from torch import Tensor, nn

from mpq.network.layer import CACHES
from mpq.network.operand import Operand
from mpq.network.tracing import kind_of
from mpq.quantization.cached_rows import quantize_cached
from mpq.quantization.input_sample import channel_axis, token_axes_of
from mpq.quantization.numerics import Numerics
from mpq.quantization.rounding import quantize_activation
from mpq.quantization.step_cases import Case


def rounded_input(layer_module: nn.Module, numerics: Numerics, x: Tensor, case: Case) -> Tensor:
    """A layer's input after storing it in a format.

    Args:
        layer_module: Says what of it shares a scale.
        numerics: How scales are stored, and numbers rounded.
        x: Floating point, not empty.
        case: The format, and its range; ``None``: it needs none.
    """
    tensor_format, calibrated = case
    if isinstance(layer_module, Operand) and layer_module.kind in CACHES:
        num_heads = layer_module.weight.shape[0]
        return quantize_cached(x, tensor_format, calibrated, num_heads, numerics)
    token_axes, axis = token_axes_of(kind_of(layer_module), x.ndim), channel_axis(layer_module)
    return quantize_activation(x, tensor_format, calibrated, token_axes, numerics, axis)
