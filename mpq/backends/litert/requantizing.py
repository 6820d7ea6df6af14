"""From sums of products to codes, as LiteRT's kernels do it: five of them, which part at ties."""

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final

import torch
from torch import Tensor

FRACTION: Final = 31
"""Bits behind the point of a kernel's multiplier."""
SHORT: Final = 15
"""Bits behind the point of the multiplier that is left of it for sums of 64 bits."""


class Rounding(Enum):
    """Which kernel rounds, and how."""

    ONCE = "XNNPACK: a product in float32, to the nearest, ties to even"
    TWICE_UP = "ruy: an integer product, then a shift, ties up"
    SHORT = "convolutions of 16 bits: a product with a multiplier of 15 bits, ties up"
    FLOAT64 = "linear layers of 16 bits: a product in float64, ties away from zero"
    TWICE_AWAY = "the reference kernels: an integer product, then a shift, ties away from zero"


IN_FLOAT64: Final = (Rounding.SHORT, Rounding.FLOAT64)
"""Kernels that multiply scales in float64; the others' products of scales are float32."""


def requantized(sums: Tensor, scales: Tensor, output_scale: float, rounding: Rounding) -> Tensor:
    """Sums in codes of the output, before its zero point is added and codes are cut.

    Args:
        sums: Whole numbers of float64, any shape; one that is no whole number is rounded first
            where the kernel computes in integers.
        scales: What one unit of a sum is worth, of a shape that fits the sums': float32, but
            float64 of kernels ``IN_FLOAT64``.
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


def _short(sums: Tensor, scales: Tensor, output_scale: float) -> Tensor:
    """One rounding; but of a multiplier so short that large codes are off by half a code."""
    mantissa, exponent = torch.frexp(scales.double() / output_scale)
    factor = (mantissa * 2**FRACTION).round().to(torch.int64)
    # What rounds up to 1 is a half, and twice as much.
    is_one = factor == 2**FRACTION
    factor, exponent = torch.where(is_one, factor >> 1, factor), exponent + is_one
    dropped = FRACTION - SHORT
    kept = ((factor + (1 << (dropped - 1))) >> dropped).clamp(max=2**SHORT - 1)
    right = SHORT - exponent.to(torch.int64)
    shifted: Tensor = (sums.round().to(torch.int64) * kept + (1 << (right - 1))) >> right
    return shifted.double()


def _float64(sums: Tensor, scales: Tensor, output_scale: float) -> Tensor:
    found = sums.round() * (scales.double() / output_scale)
    return found.sign() * (found.abs() + 0.5).floor()


def _half_up(high: Tensor, right: Tensor) -> Tensor:
    half = torch.where(right > 0, 1 << (right - 1).clamp(min=0), 0)
    return (high + half) >> right


def _half_away(high: Tensor, right: Tensor) -> Tensor:
    half = torch.where(right > 0, 1 << (right - 1).clamp(min=0), 0)
    return high.sign() * ((high.abs() + half) >> right)


_KERNELS: Final[Mapping[Rounding, Callable[[Tensor, Tensor, float], Tensor]]] = {
    Rounding.ONCE: _once,
    Rounding.SHORT: _short,
    Rounding.FLOAT64: _float64,
    Rounding.TWICE_UP: lambda sums, scales, output: _twice(sums, scales, output, _half_up),
    Rounding.TWICE_AWAY: lambda sums, scales, output: _twice(sums, scales, output, _half_away),
}
