"""From sums of products to codes, as LiteRT's kernels do it: three of them, which part at ties."""

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final

import torch
from torch import Tensor

FRACTION: Final = 31
"""Bits behind the point of a kernel's multiplier."""


class Rounding(Enum):
    """Which kernel rounds, and how."""

    ONCE = "XNNPACK: a product in float32, to the nearest, ties to even"
    TWICE_UP = "ruy: an integer product, then a shift, ties up"
    TWICE_AWAY = "the reference kernels: an integer product, then a shift, ties away from zero"


def requantized(sums: Tensor, scales: Tensor, output_scale: float, rounding: Rounding) -> Tensor:
    """Sums in codes of the output, before its zero point is added and codes are cut.

    Args:
        sums: Whole numbers of float64, any shape; one that is no whole number is rounded first
            where the kernel computes in integers.
        scales: What one unit of a sum is worth: float32, of a shape that fits the sums'.
        output_scale: What one code of the output is worth.
        rounding: The kernel's.

    Returns:
        Whole numbers, float64.
    """
    return _KERNELS[rounding](sums, scales, output_scale)


def _once(sums: Tensor, scales: Tensor, output_scale: float) -> Tensor:
    ratios = scales / torch.tensor(output_scale, dtype=torch.float32, device=scales.device)
    return (sums.float() * ratios).round().double()


def _twice(
    sums: Tensor, scales: Tensor, output_scale: float, shifted: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    mantissa, exponent = torch.frexp(scales.double() / output_scale)
    factor = (mantissa * 2**FRACTION).round().to(torch.int64)
    left, right = exponent.clamp(min=0), (-exponent).clamp(min=0)
    product = (sums.round().to(torch.int64) << left) * factor
    # What does not fit any more is cut in the end, as the output's codes end at 127.
    high = (product + 2 ** (FRACTION - 1)) >> FRACTION
    return shifted(high, right).double()


def _half_up(high: Tensor, right: Tensor) -> Tensor:
    half = torch.where(right > 0, 1 << (right - 1).clamp(min=0), 0)
    return (high + half) >> right


def _half_away(high: Tensor, right: Tensor) -> Tensor:
    half = torch.where(right > 0, 1 << (right - 1).clamp(min=0), 0)
    return high.sign() * ((high.abs() + half) >> right)


_KERNELS: Final[Mapping[Rounding, Callable[[Tensor, Tensor, float], Tensor]]] = {
    Rounding.ONCE: _once,
    Rounding.TWICE_UP: lambda sums, scales, output: _twice(sums, scales, output, _half_up),
    Rounding.TWICE_AWAY: lambda sums, scales, output: _twice(sums, scales, output, _half_away),
}
