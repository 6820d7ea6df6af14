"""One number format: how a number is stored and rounded."""

import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Final, final

from mpq.errors import InputError
from mpq.quantization.input_codes import twin_levels

_LOOKED_UP: Final = 11
"""Bits of the significand of fp16."""
_SPELLING = re.compile(r"[a-z0-9_]+")
BLOCK_SCALES: Final = ("e8m0", "e4m3")
"""Formats of a microscaling format's scales, of 8 bits: powers of two, or fp8."""
TWIN: Final = "{N}twin"
"""The family of two ranges of inputs."""


def _described(default: Any) -> Any:
    # Journals of measurements hold a format's repr, and tables are keyed by formats: a format is
    # known by its first four fields, as before the others came.
    return field(default=default, repr=False, compare=False)


@final
@dataclass(frozen=True)
class NumberFormat:
    """How one number is stored and rounded.

    Integers have evenly spaced levels: every code of ``bits`` bits, signed around 0, or from 0 with
    a zero point; of 0 bits there is the number 0 alone. Floating-point numbers have a sign, an
    exponent of bias ``2**(E - 1) - 1`` with subnormals, a mantissa, and saturate at ``max_value``;
    or they are those of a table. Values are
    scaled first, except those of floating-point formats of 16 bits or more. A microscaling format
    says itself how many numbers share a scale, and how that is stored.

    Args:
        name: Such as ``int4`` or ``fp8_e4m3``: lower-case letters, digits, underscores.
        bits: Bits per number, without scales.
        is_float: Whether codes stand for other numbers than integers: it has an exponent, or a
            table.
        max_value: Largest magnitude of a floating-point format, which its bits do not tell: some
            spend codes on infinity, some do not. Of a table that of its last level. Unused for
            integers.
        exponent_bits: ``E`` of a floating-point format.
        mantissa_bits: Stored bits of a floating-point format's mantissa.
        spelled: How it is written after ``w`` and ``a``: the first is what mpq writes, all are
            read. Unset: its name.
        torch_dtype: Name of the torch dtype with the same numbers, whose cast rounds to them.
            Unset: rounded by exponent and mantissa.
        onnx_type: Element type that exports hold its codes or numbers in. Unset: no export has it.
        summary: A sentence for ``mpq formats``.
        block: Numbers that share a scale, of a microscaling format; else 0.
        block_scale: What its scales are stored in, one of ``BLOCK_SCALES``.
        has_codebook: Whether every output channel has levels of its own, ``2**bits`` in fp16, which
            are found for its weights. For weights only.
        table: The numbers of all codes in units of the scale, ascending; empty: those of integers
            or of an exponent and a mantissa.
        is_for_inputs: Whether a format with a table is of inputs only; else of weights only.
        family: The one of ``FAMILIES`` that it is a member of, if any.
        table_digits: Bits by which levels of a table are multiplied; 0: they are looked up as fp16.

    Raises:
        InputError: If the fields contradict each other.
    """

    name: str
    bits: int
    is_float: bool = False
    max_value: float = 0.0
    exponent_bits: int = _described(0)
    mantissa_bits: int = _described(0)
    spelled: tuple[str, ...] = _described(())
    torch_dtype: str | None = _described(None)
    onnx_type: str | None = _described(None)
    summary: str = _described("")
    block: int = _described(0)
    block_scale: str = _described("")
    table: tuple[float, ...] = _described(())
    is_for_inputs: bool = _described(False)
    family: str = _described("")
    has_codebook: bool = _described(False)
    table_digits: int = _described(0)

    def __post_init__(self) -> None:
        # ``Precision.parse`` lower-cases what it reads: a capital letter would never be found.
        if not all(_SPELLING.fullmatch(text) for text in (self.name, *self.spellings)):
            raise InputError(
                f"number format {self.name!r}: names are lower-case letters, digits and "
                f"underscores; got {', '.join(self.spellings)}"
            )
        is_known = self.block_scale in (BLOCK_SCALES if self.block else ("",))
        if not is_known or self.block < 0:
            raise InputError(
                f"number format {self.name}: a block of numbers has a scale in "
                f"{' or '.join(BLOCK_SCALES)}; got {self.block} and {self.block_scale!r}"
            )
        if self.table:
            self._check_table()
        elif self.has_codebook:
            self._check_codebook()
        elif self.is_float:
            self._check_float()
        elif self.bits and not 2 <= self.bits <= 16:
            # One bit has no code above 0; codes are computed in float32, whose digits are used up
            # a few bits further.
            raise InputError(
                f"number format {self.name}: integers have 2 to 16 bits, or 0, which leave weights "
                "out"
            )

    def _check_float(self) -> None:
        if self.bits != 1 + self.exponent_bits + self.mantissa_bits or self.exponent_bits < 1:
            raise InputError(
                f"number format {self.name}: a sign, {self.exponent_bits} exponent and "
                f"{self.mantissa_bits} mantissa bits are not {self.bits} bits"
            )
        if self.max_value <= 0:
            raise InputError(f"number format {self.name}: max_value is positive")

    def _check_codebook(self) -> None:
        if not self.is_float or not 1 <= self.bits <= 8:
            raise InputError(
                f"number format {self.name}: a codebook is of a float of 1 to 8 bits; got "
                f"{self.bits}"
            )

    def _check_table(self) -> None:
        ascends = all(a < b for a, b in pairwise(self.table))
        begins_well = self.table[0] < 0 or (self.is_for_inputs and self.table[0] == 0)
        if not (ascends and begins_well and 0 < self.table[-1] == self.max_value):
            raise InputError(
                f"number format {self.name}: a table ascends from a number below 0 to max_value, "
                "of inputs from 0 at most"
            )
        if not self.is_float or self.bits > 8 or len(self.table) > 2**self.bits:
            raise InputError(
                f"number format {self.name}: a table is of a float of up to 8 bits and has a level "
                f"for each code at most; got {len(self.table)}"
            )

    @property
    def spellings(self) -> tuple[str, ...]:
        """Every way of writing it, the one that mpq writes first."""
        return self.spelled or (self.name,)

    @property
    def needs_scale(self) -> bool:
        """Whether values must be scaled into its range: integers, and floats below 16 bits.

        >>> from mpq.quantization.formats import NUMBER_FORMATS
        >>> NUMBER_FORMATS["int16"].needs_scale, NUMBER_FORMATS["fp16"].needs_scale
        (True, False)
        """
        return not self.is_float or self.bits < 16

    @property
    def has_codes(self) -> bool:
        """Whether there are codes with scales: not where all weights are 0, of 0 bits."""
        return self.needs_scale and self.bits > 0

    @property
    def is_microscaling(self) -> bool:
        """Whether its blocks and their scales belong to the format."""
        return self.block > 0

    @property
    def is_for_weights(self) -> bool:
        """Whether inputs are never in it: microscaling, codebooks, tables of weights, 0 bits."""
        is_tabulated = bool(self.table) and not self.is_for_inputs
        return self.is_microscaling or is_tabulated or self.has_codebook or not self.bits

    @property
    def is_twin(self) -> bool:
        """Whether there are two ranges, whose scales are calibrated."""
        return self.family == TWIN

    def with_octaves(self, octaves: int, is_signed: bool) -> "NumberFormat":
        """A twin format with the levels of calibrated scales, see ``twin_levels``."""
        table = twin_levels(self.bits, octaves, is_signed)
        return replace(self, table=table, max_value=table[-1])

    @property
    def has_zero(self) -> bool:
        """Whether 0 is one of its numbers."""
        return not self.table or 0.0 in self.table

    @property
    def has_tensor_scale(self) -> bool:
        """Whether a whole weight has one more scale, which brings the blocks' into their range.

        fp8 has 18 octaves, and the scales of small weights lie below them; powers of two have 254.
        """
        return self.block_scale == "e4m3"

    @property
    def multiplied_bits(self) -> int:
        """Bits of what a multiplier is given: of an integer all, of a float its significand.

        The significand is the mantissa with the leading 1 that is not stored; exponents are added.
        Levels of a table that are no integers, and those of a codebook, are looked up in fp16.
        Codes of inputs alone are exponents, or integers of one of two ranges: all bits.

        >>> from mpq.quantization.formats import NUMBER_FORMATS
        >>> [NUMBER_FORMATS[name].multiplied_bits for name in ("int8", "fp8_e4m3", "fp16", "nf4")]
        [8, 4, 11, 11]
        """
        if self.is_for_inputs:
            return self.bits
        if self.table or self.has_codebook:
            return self.table_digits or _LOOKED_UP
        return self.mantissa_bits + 1 if self.is_float else self.bits

    @property
    def min_exponent(self) -> int:
        """Of the smallest normal number of a floating-point format; subnormals share it.

        >>> from mpq.quantization.formats import NUMBER_FORMATS
        >>> NUMBER_FORMATS["fp8_e4m3"].min_exponent
        -6
        """
        # The exponent's code 0 is for subnormals: normal numbers begin at 1 - bias.
        return int(2 - 2 ** (self.exponent_bits - 1))

    @cached_property
    def levels(self) -> tuple[float, ...]:
        """Every number of a format with a scale that is no integer, in its units, ascending.

        Not of one with a codebook, which every channel has for itself.

        >>> from mpq.quantization.formats import NUMBER_FORMATS
        >>> NUMBER_FORMATS["e2m0"].levels
        (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
        """
        if self.table:
            return self.table
        steps = 2**self.mantissa_bits
        exponents = range(self.min_exponent, self.min_exponent + 2**self.exponent_bits - 1)
        subnormal = [2.0**self.min_exponent * m / steps for m in range(1, steps)]
        normal = [2.0**e * (1 + m / steps) for e in exponents for m in range(steps)]
        positive = [x for x in subnormal + normal if x <= self.max_value]
        return (*(-x for x in reversed(positive)), 0.0, *positive)
