"""Numbers that no tool, or not this one, stores or computes with, refused in one place for all."""

from dataclasses import replace
from typing import Final

from mpq.quantization.channel_bits import OUTPUTS, ChannelBits
from mpq.quantization.numerics import Numerics
from mpq.quantization.precision import Precision
from mpq.quantization.rounding import scale_type_of
from mpq.quantization.tensor_format import TensorFormat

OF_CHANNELS: Final = (
    "its output channels differ in bits: write each width as a layer (--channels divide), or all "
    "in the widest (--channels widen)"
)
OF_INPUTS: Final = (
    "its {axis} differ in bits: write each width of inputs as a layer (--channels divide), or all "
    "in the widest (--channels widen)"
)

OF_FEW_BITS: Final = (
    "its kernels read integers of 2 bits and more, and channels of 1 bit are signs, of 0 bits "
    "none: write all in the widest (--channels widen)"
)


def refusal_of_parts(channels: ChannelBits) -> str:
    """Why a tool has no place for parts of a weight that differ in bits."""
    return OF_CHANNELS if channels.axis == OUTPUTS else OF_INPUTS.format(axis=channels.axis)


def numbers_refusal(
    precision: Precision, numerics: Numerics | None, holds_channels: bool = False
) -> str:
    """Why a tool has no place for channels, scales, branch or inputs; empty: it may have.

    Args:
        precision: A layer's.
        numerics: What the tool stores; ``None``: it finds scales by itself.
        holds_channels: Whether output channels may have bits of their own.
    """
    weight, read = precision.weight, precision.activation
    if weight.channels is not None and not (holds_channels and weight.channels.axis == OUTPUTS):
        return refusal_of_parts(weight.channels)
    if weight.channels is not None and any(number.bits < 2 for number in weight.channels.numbers):
        return OF_FEW_BITS
    of_weight = "" if weight.channels else weight.why_simulated
    return of_weight or _of_scales(weight, numerics) or read.why_simulated


def _of_scales(weight: TensorFormat, numerics: Numerics | None) -> str:
    if weight.float_zero:
        return "its zero points are codes, and no fractions: z, not zf"
    if weight.scale is None:
        return ""
    if numerics is None:
        return f"the tool chooses itself what scales are stored in: leave s{weight.scale} out"
    found = scale_type_of(replace(weight, scale=None), numerics)
    if weight.scale == found:
        return ""
    return f"it stores the scales of such weights in {found}, not in {weight.scale}"
