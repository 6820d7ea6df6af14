"""Grids: where the numbers of a row may lie, and putting them there.

Tensors come as rows ``[O, K]``; every row has its own scale.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from mpq.quantization.formats import NumberFormat


@final
@dataclass(frozen=True, eq=False)
class Grid:
    """Where the numbers of each row may lie.

    Args:
        number: The number format.
        scale: ``[O]``, positive.
        zero_point: ``[O]`` int32; 0 for symmetric and floating-point formats.
        symmetric: Whether integers are signed around 0.
    """

    number: NumberFormat
    scale: Tensor
    zero_point: Tensor
    symmetric: bool

    def round(self, rows: Tensor) -> Tensor:
        """Nearest point of the grid for ``[O, K]``, in the same dtype."""
        if self.number.is_float:
            scaled = rows.float() / self.scale[:, None]
            return (round_float(scaled, self.number) * self.scale[:, None]).to(rows.dtype)
        # The arithmetic of torch's fake-quantize kernels, bit for bit; on a CPU those take 20 times
        # as long (benchmarks/rounding.py), because they also keep a mask for the gradient.
        numbers = self.codes(rows).sub_(self.zero_point[:, None]).mul_(self.scale[:, None])
        return numbers.to(rows.dtype)

    def codes(self, rows: Tensor) -> Tensor:
        """The integers, as float32, that stand for ``[O, K]`` in an integer format."""
        low, high = integer_range(self.number, self.symmetric)
        codes = (rows.float() * self.scale.reciprocal()[:, None]).round_()
        return codes.add_(self.zero_point[:, None]).clamp_(low, high)


def integer_range(number: NumberFormat, symmetric: bool) -> tuple[int, int]:
    """Smallest and largest code: signed if symmetric, from 0 if affine."""
    levels = 2**number.bits
    return (-(levels // 2), levels // 2 - 1) if symmetric else (0, levels - 1)


def make_grid(number: NumberFormat, symmetric: bool, low: Tensor, high: Tensor) -> Grid:
    """The grid that just covers a range.

    Args:
        number: A format that needs a scale.
        symmetric: Whether zero is the middle.
        low: ``[O]`` smallest number of each row.
        high: ``[O]`` largest number of each row.
    """
    low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
    zero = torch.zeros_like(low, dtype=torch.int32)
    if number.is_float:
        scale = torch.maximum(-low, high) / number.max_value
        return Grid(number, _positive(scale), zero, symmetric)
    code_low, code_high = integer_range(number, symmetric)
    if symmetric:
        scale = torch.maximum(low / code_low, high / code_high)
        return Grid(number, _positive(scale), zero, symmetric)
    scale = _positive((high - low) / code_high)
    point = (-low / scale).round().clamp(code_low, code_high).to(torch.int32)
    return Grid(number, scale, point, symmetric)


def _positive(scale: Tensor) -> Tensor:
    """A row of zeros needs some scale; any will do."""
    return torch.where(scale > 0, scale, torch.ones_like(scale)).clamp_min(
        torch.finfo(torch.float32).tiny
    )


def round_float(scaled: Tensor, number: NumberFormat) -> Tensor:
    """Nearest number of a floating-point format, saturating; float32.

    Args:
        scaled: Float32, any shape.
        number: A floating-point format.
    """
    clipped = scaled.clamp(-number.max_value, number.max_value)
    if number.torch_dtype is None:
        return _round_mantissa(clipped, number)
    return clipped.to(getattr(torch, number.torch_dtype)).float()


def _round_mantissa(x: Tensor, number: NumberFormat) -> Tensor:
    """To the mantissa's bits, ties to even; below the smallest normal number the step stays."""
    smallest_normal = 2.0**number.min_exponent
    exponent = torch.frexp(x.abs().clamp_min(smallest_normal))[1] - 1  # frexp has 0.5 <= m < 1
    step = torch.ldexp(torch.full_like(x, 2.0**-number.mantissa_bits), exponent)
    return (x / step).round() * step
