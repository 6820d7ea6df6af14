"""What scales are stored in, in one table: spelling, bits and ends of every type.

No torch here, as in ``mpq.quantization.formats``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Final, final

SECOND_SCALE_BITS: Final = 32
"""Bits of a second scale, and of a mean, which are fp32."""
_SMALLEST_NORMAL: Final = 2.0**-126
"""Of float32, in which scales are computed with."""


@final
@dataclass(frozen=True)
class ScaleFormat:
    """How one scale of a weight is stored.

    Args:
        name: What stands after ``s`` in a precision: ``w4g64sfp8``.
        bits: Of one scale.
        summary: A sentence for ``mpq formats``.
        smallest: Smallest magnitude, in units of the second scale where there is one; what is
            smaller becomes it, and not 0.
        largest: Largest magnitude in the same units, of numbers that float32 has.
        torch_dtype: Name of the torch dtype whose cast rounds to its numbers.
        multiplier_bits: Of a dyadic scale ``m / 2^e``: bits of ``m``, sign included; else 0.
        second_scale: Whether scales are multiples of a second scale, in fp32.
        block: Scales that share a second scale; 0: all of a weight.
        has_mean: Whether the mean of all scales is taken off first, and stored in fp32.
    """

    name: str
    bits: int
    summary: str
    smallest: float
    largest: float
    torch_dtype: str = ""
    multiplier_bits: int = 0
    second_scale: bool = False
    block: int = 0
    has_mean: bool = False

    @property
    def can_be_negative(self) -> bool:
        """Whether it holds either sign; scales of both signs have no mean to speak of."""
        return not self.has_mean

    def num_second_scales(self, num_scales: int) -> int:
        """How many second scales so many scales have."""
        if not self.second_scale:
            return 0
        return -(-num_scales // self.block) if self.block else 1

    def stored_bits(self, num_scales: int) -> int:
        """Bits of so many scales of one weight, second scales and mean included.

        >>> SCALE_FORMATS["dq"].stored_bits(512) / 512  # 8 bits, and 3 of 32
        8.1875
        """
        second = self.num_second_scales(num_scales) + self.has_mean
        return num_scales * self.bits + second * SECOND_SCALE_BITS


def _dyadic(multiplier_bits: int) -> ScaleFormat:
    name = "dyadic" if multiplier_bits == 32 else f"dyadic{multiplier_bits}"
    return ScaleFormat(
        name,
        multiplier_bits + 8,
        f"m / 2^e, m an integer of {multiplier_bits} bits, e one of 8 (HAWQ-V3)",
        2.0**-100,  # what is multiplied on the way stays a normal number
        2.0 ** (multiplier_bits - 1) - max(1.0, 2.0 ** (multiplier_bits - 25)),
        multiplier_bits=multiplier_bits,
    )


_ALL = (
    ScaleFormat(
        "fp32", 32, "floats as they are computed with", _SMALLEST_NORMAL, 3.4028234663852886e38,
        "float32",
    ),
    ScaleFormat(
        "fp16", 16, "half precision, as GPTQ and AWQ store scales of groups", 2.0**-24, 65504.0,
        "float16",
    ),
    ScaleFormat(
        "bf16", 16, "the upper half of a float32", _SMALLEST_NORMAL, 3.3895313892515355e38,
        "bfloat16",
    ),
    ScaleFormat(
        "fp8", 8, "e4m3, with one power of two, in fp32, for the whole weight", 2.0**-9, 448.0,
        "float8_e4m3fn", second_scale=True,
    ),
    ScaleFormat(
        "dq", 8, "double quantization: integers of 8 bits around the mean of all scales, with a "
        "second scale for 256 of them (QLoRA)", 0.0, inf, second_scale=True, block=256,
        has_mean=True,
    ),
    _dyadic(32),
    _dyadic(16),
    _dyadic(8),
)  # fmt: skip

SCALE_FORMATS: Final[Mapping[str, ScaleFormat]] = {told.name: told for told in _ALL}
"""Every type of scale, by what stands after ``s``."""
