"""What a layer reads, after storing it in a format: which axes share a scale is the layer's."""

from torch import Tensor, nn

from mpq.network.layer import CACHES
from mpq.network.operand import Operand
from mpq.network.tracing import kind_of
from mpq.quantization.cached_rows import quantize_cached
from mpq.quantization.input_sample import channel_axis, token_axes_of
from mpq.quantization.numerics import Numerics
from mpq.quantization.range_method import ActivationRange
from mpq.quantization.rounding import quantize_activation
from mpq.quantization.tensor_format import TensorFormat


def rounded_input(
    layer_module: nn.Module,
    tensor_format: TensorFormat,
    numerics: Numerics,
    x: Tensor,
    calibrated: ActivationRange | None,
) -> Tensor:
    """A layer's input after storing it in a format.

    Args:
        layer_module: Says what of it shares a scale.
        tensor_format: The format.
        numerics: How scales are stored, and numbers rounded.
        x: Floating point, not empty.
        calibrated: Its range; ``None``: the format needs none.
    """
    if isinstance(layer_module, Operand) and layer_module.kind in CACHES:
        num_heads = layer_module.weight.shape[0]
        return quantize_cached(x, tensor_format, calibrated, num_heads, numerics)
    token_axes, axis = token_axes_of(kind_of(layer_module), x.ndim), channel_axis(layer_module)
    return quantize_activation(x, tensor_format, calibrated, token_axes, numerics, axis)
