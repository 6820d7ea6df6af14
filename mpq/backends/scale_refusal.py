"""Scales and zero points that a tool does not store, refused in one place for all of them."""

from dataclasses import replace

from mpq.quantization.numerics import Numerics
from mpq.quantization.precision import TensorFormat
from mpq.quantization.rounding import scale_type_of


def scale_refusal(weight: TensorFormat, numerics: Numerics | None) -> str:
    """Why a tool's files have no place for what a precision asks of scales; empty: they have.

    Args:
        weight: Its format.
        numerics: What the tool stores; ``None``: it finds scales by itself.
    """
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
