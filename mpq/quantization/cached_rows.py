"""Keys and values as they are after a cache has stored them."""

from dataclasses import replace

from torch import Tensor

from mpq.quantization.cache_bits import TOKEN_SCALE
from mpq.quantization.grid import make_grid
from mpq.quantization.numerics import Numerics
from mpq.quantization.range_method import ActivationRange
from mpq.quantization.rounding import quantize_activation
from mpq.quantization.second_scales import stored_scale
from mpq.quantization.tensor_format import Granularity, TensorFormat


def quantize_cached(
    x: Tensor,
    tensor_format: TensorFormat,
    calibrated: ActivationRange | None,
    num_heads: int,
    numerics: Numerics,
) -> Tensor:
    """Keys or values as a cache holds them.

    A scale of a token is that of one head, and is stored beside its codes. All others are
    calibrated, as those of a layer's inputs.

    Args:
        x: ``[N, T, H D]``, heads side by side.
        tensor_format: Static formats need a range.
        calibrated: The range; unused by others.
        num_heads: ``H``.
        numerics: How codes of static formats are rounded.
    """
    if tensor_format.granularity is not Granularity.TOKEN:
        return quantize_activation(x, tensor_format, calibrated, 1, numerics)
    rows = x.reshape(-1, x.shape[-1] // num_heads)
    low, high = rows.amin(dim=1), rows.amax(dim=1)
    grid = make_grid(tensor_format.number, tensor_format.symmetric, low, high)
    return replace(grid, scale=stored_scale(grid.scale, TOKEN_SCALE)).round(rows).view_as(x)
