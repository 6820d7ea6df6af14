"""Numbers that no tool, or not this one, stores or computes with, refused in one place for all."""

from dataclasses import replace

from mpq.quantization.numerics import Numerics
from mpq.quantization.precision import Precision, TensorFormat
from mpq.quantization.rounding import scale_type_of


def numbers_refusal(precision: Precision, numerics: Numerics | None) -> str:
    """Why a tool has no place for scales, branch or inputs of a precision; empty: it may have.

    Args:
        precision: A layer's.
        numerics: What the tool stores; ``None``: it finds scales by itself.
    """
    weight, activation = precision.weight, precision.activation
    return weight.why_simulated or _of_scales(weight, numerics) or activation.why_simulated


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
