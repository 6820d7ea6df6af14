"""A number format of another package: six bits, as in the OCP microscaling formats."""

from mpq.quantization.number_format import NumberFormat

TOY = NumberFormat(
    "fp6_toy",
    bits=6,
    is_float=True,
    max_value=28.0,
    exponent_bits=3,
    mantissa_bits=2,
    summary="floating point of 6 bits",
)
