"""Number formats, in one table: the door that a new one comes in by.

The spellings that ``Precision.parse`` reads, the names that files may state, the rounding, the
element type in ONNX and ``mpq formats`` all follow from ``NUMBER_FORMATS``. No torch here: a
problem's file names its formats and is read without it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import pairwise, product
from typing import Any, Final, final

from mpq._support.registry import ValueRegistry
from mpq.errors import InputError
from mpq.quantization.input_codes import log2_levels, twin_levels
from mpq.quantization.level_tables import BINARY, MXINT8, NF4, TERNARY, normal_levels

_LOOKED_UP: Final = 11
"""Bits of the significand of fp16."""
_SPELLING = re.compile(r"[a-z0-9_]+")
BLOCK_SCALES: Final = ("e8m0", "e4m3")
"""Formats of a microscaling format's scales, of 8 bits: powers of two, or fp8."""
INTEGERS: Final = "int{N}"
"""The family of integers that are written by their bits."""
MINIFLOATS: Final = "e{E}m{M}"
"""The family of floating-point formats of any exponent and mantissa."""
LOG2: Final = "{N}log2"
"""The family of powers of two of inputs."""
TWIN: Final = "{N}twin"
"""The family of two ranges of inputs."""
FAMILIES: Final = {
    INTEGERS: "integers of N bits, 2^N levels: w8 is wint8, and w16 is fp16",
    MINIFLOATS: "floating point of E exponent and M mantissa bits, 3 to 8 with the sign: all codes "
    "are numbers; of M = 0 they are 0 and powers of two",
    LOG2: "0 and powers of two, of 3 to 5 bits, for inputs that are not below 0: w4a4log2 (FQ-ViT)",
    TWIN: "two ranges of half of the codes each, of 3 to 8 bits, for inputs: w4a4twin (PTQ4ViT)",
}
"""Formats that ``mpq formats`` and messages name together, and a sentence about all of them."""


def _described(default: Any) -> Any:
    # Journals of measurements hold a format's repr, and tables are keyed by formats: a format is
    # known by its first four fields, as before the others came.
    return field(default=default, repr=False, compare=False)


@final
@dataclass(frozen=True)
class NumberFormat:
    """How one number is stored and rounded.

    Integers have evenly spaced levels: every code of ``bits`` bits, signed around 0, or from 0 with
    a zero point. Floating-point numbers have a sign, an exponent of bias ``2**(E - 1) - 1`` with
    subnormals, a mantissa, and saturate at ``max_value``; or they are those of a table. Values are
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
        elif not 2 <= self.bits <= 16:
            # One bit has no code above 0; codes are computed in float32, whose digits are used up
            # a few bits further.
            raise InputError(f"number format {self.name}: integers have 2 to 16 bits")

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

        >>> NUMBER_FORMATS["int16"].needs_scale, NUMBER_FORMATS["fp16"].needs_scale
        (True, False)
        """
        return not self.is_float or self.bits < 16

    @property
    def is_microscaling(self) -> bool:
        """Whether its blocks and their scales belong to the format."""
        return self.block > 0

    @property
    def is_for_weights(self) -> bool:
        """Whether inputs are never in it: microscaling, codebooks, and tables of weights."""
        is_tabulated = bool(self.table) and not self.is_for_inputs
        return self.is_microscaling or is_tabulated or self.has_codebook

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

        >>> [NUMBER_FORMATS[name].multiplied_bits for name in ("int8", "fp8_e4m3", "fp16", "nf4")]
        [8, 4, 11, 11]
        """
        if self.table or self.has_codebook:
            return self.table_digits or _LOOKED_UP
        return self.mantissa_bits + 1 if self.is_float else self.bits

    @property
    def min_exponent(self) -> int:
        """Of the smallest normal number of a floating-point format; subnormals share it.

        >>> NUMBER_FORMATS["fp8_e4m3"].min_exponent
        -6
        """
        # The exponent's code 0 is for subnormals: normal numbers begin at 1 - bias.
        return int(2 - 2 ** (self.exponent_bits - 1))

    @cached_property
    def levels(self) -> tuple[float, ...]:
        """Every number of a format with a scale that is no integer, in its units, ascending.

        Not of one with a codebook, which every channel has for itself.

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


def _integer(bits: int) -> NumberFormat:
    # Exports store integers in 8 bits: fewer make ONNX runtimes no faster, more they do not hold.
    return NumberFormat(
        f"int{bits}",
        bits,
        spelled=(str(bits), f"int{bits}"),
        onnx_type="INT8" if bits <= 8 else None,
        summary=f"integers of {bits} bits, {2**bits} levels",
        family=INTEGERS,
    )


def _minifloat(exponent_bits: int, mantissa_bits: int) -> NumberFormat:
    """As OCP MX 1.0 defines its elements of 4 and 6 bits: no code is infinite or not a number."""
    bits, name = 1 + exponent_bits + mantissa_bits, f"e{exponent_bits}m{mantissa_bits}"
    largest = (2.0 - 2.0**-mantissa_bits) * 2.0**2 ** (exponent_bits - 1)
    return NumberFormat(
        name, bits, True, largest, exponent_bits, mantissa_bits, (name, f"fp{bits}_{name}"),
        summary=f"floating point of {bits} bits up to {largest:g}, every code a number",
        family=MINIFLOATS,
    )  # fmt: skip


def _minifloats() -> Iterator[NumberFormat]:
    """Those of 3 to 8 bits, but for those that have a row of their own."""
    own_rows = {(2, 1), (4, 3), (5, 2)}
    for bits, exponent_bits in product(range(3, 9), range(1, 7)):
        shape = (exponent_bits, bits - 1 - exponent_bits)
        if shape[1] >= 0 and shape not in own_rows:
            yield _minifloat(*shape)


def _of_inputs(bits: int, family: str, table: tuple[float, ...], summary: str) -> NumberFormat:
    name = family.format(N=bits)
    return NumberFormat(
        name, bits, True, table[-1], table=table, is_for_inputs=True, summary=summary, family=family
    )


def _tabulated(
    name: str, bits: int, table: tuple[float, ...], summary: str = "", digits: int = 0
) -> NumberFormat:
    return NumberFormat(
        name, bits, True, table[-1], table=table, summary=summary, table_digits=digits
    )


def _codebook(bits: int) -> NumberFormat:
    summary = (
        f"{2**bits} levels in fp16 for every output channel, by weighted k-means (SqueezeLLM), for "
        "weights"
    )
    # What fp16 holds: codes are numbers of the codebook.
    return NumberFormat(f"cb{bits}", bits, True, 65504.0, summary=summary, has_codebook=True)


def _ocp_mx(element: str, number: NumberFormat) -> NumberFormat:
    summary = (
        f"{element} in blocks of 32 with a power of two as scale, for weights: "
        f"{number.bits + 8 / 32} bits (OCP MX)"
    )
    return replace(number, block=32, block_scale="e8m0", summary=summary)


_OWN = (
    *map(_integer, range(2, 16)),
    # Written by its name alone: 16 is fp16, as it was before there was this one.
    NumberFormat(
        "int16", 16, onnx_type="INT16",
        summary="integers of 16 bits, 65536 levels: w8aint16, w8aint16s",
    ),
    # torch's 4-bit dtype packs two numbers into a byte and cannot be cast to.
    NumberFormat(
        "fp4_e2m1", 4, True, 6.0, 2, 1, ("fp4_e2m1", "fp4", "e2m1"),
        summary="0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives (OCP MX)",
    ),
    # e4m3 has no infinity and one NaN per sign, hence 448; e5m2 has both, as IEEE's formats do.
    NumberFormat(
        "fp8_e4m3", 8, True, 448.0, 4, 3, ("fp8_e4m3", "fp8", "e4m3"), "float8_e4m3fn",
        summary="floating point of 8 bits with more digits than range (OCP OFP8)",
    ),
    NumberFormat(
        "fp8_e5m2", 8, True, 57344.0, 5, 2, ("fp8_e5m2", "e5m2"), "float8_e5m2",
        summary="floating point of 8 bits with more range than digits (OCP OFP8)",
    ),
    *_minifloats(),
    _tabulated(
        "binary", 1, BINARY, "-1 and 1, for weights: at best their mean magnitude (XNOR-Net)",
        digits=1,
    ),
    _tabulated(
        "ternary", 2, TERNARY, "-1, 0 and 1 in two bits, for weights (Ternary Weight Networks)",
        digits=2,
    ),
    _tabulated(
        "nf3", 3, normal_levels(3),
        "8 quantiles of the normal distribution, for weights: wnf3g64 (QLoRA's formula)",
    ),
    _tabulated(
        "nf4", 4, NF4,
        "16 quantiles of the normal distribution, for weights: wnf4g64 (QLoRA)",
    ),
    *map(_codebook, (2, 3, 4)),
    *(
        _of_inputs(n, LOG2, log2_levels(n), f"0 and {2**n - 1} powers of two, for inputs (FQ-ViT)")
        for n in range(3, 6)
    ),
    *(
        # Until it is calibrated both scales are the same.
        _of_inputs(n, TWIN, twin_levels(n, 0, True), f"two ranges of {n - 1} bits, for inputs")
        for n in range(3, 9)
    ),
    # Elements and blocks as in OCP MX 1.0; NVFP4 is NVIDIA's, as Blackwell multiplies it.
    _ocp_mx("fp4", NumberFormat("mxfp4", 4, True, 6.0, 2, 1)),
    _ocp_mx("e3m2", NumberFormat("mxfp6_e3m2", 6, True, 28.0, 3, 2)),
    _ocp_mx("e2m3", NumberFormat("mxfp6_e2m3", 6, True, 7.5, 2, 3)),
    _ocp_mx("fp8", NumberFormat("mxfp8", 8, True, 448.0, 4, 3, torch_dtype="float8_e4m3fn")),
    _ocp_mx("e5m2", NumberFormat("mxfp8_e5m2", 8, True, 57344.0, 5, 2, torch_dtype="float8_e5m2")),
    _ocp_mx("int8", _tabulated("mxint8", 8, MXINT8, digits=8)),
    NumberFormat(
        "nvfp4", 4, True, 6.0, 2, 1, block=16, block_scale="e4m3",
        summary="fp4 in blocks of 16 with a scale in fp8, for weights: 4.5 bits (NVIDIA)",
    ),
    # Five digits will do for the largest number: the cast rounds them to it.
    NumberFormat(
        "bf16", 16, True, 3.3895e38, 8, 7, (), "bfloat16",
        summary="the upper half of a float32",
    ),
    NumberFormat(
        "fp16", 16, True, 65504.0, 5, 10, ("16", "fp16"), "float16",
        summary="half precision (IEEE 754 binary16)",
    ),
    NumberFormat(
        "fp32", 32, True, 3.4028e38, 8, 23, ("32", "fp32"), "float32", "FLOAT",
        summary="the original numbers, whatever their type",
    ),
)  # fmt: skip

NUMBER_FORMATS: ValueRegistry[NumberFormat] = ValueRegistry(
    "number format",
    _OWN,
    group="mpq.formats",
    # Spellings as well as names: another package's format called "fp8" would take ours over.
    reserved={text for number in _OWN for text in number.spellings},
)
"""Every number format, by name; other packages add theirs by the entry points ``mpq.formats``."""


@cache
def spellings() -> dict[str, str]:
    """Everything that may stand after ``w`` and ``a``, to the name of the format.

    Formats of other packages are written by their name, so that none is imported to read others.
    """
    own = {text: number.name for number in NUMBER_FORMATS.own for text in number.spellings}
    return {name: name for name in NUMBER_FORMATS} | own


@cache
def shown_names() -> tuple[str, ...]:
    """Names of all formats for a message, which names a family and not its members."""
    family = {number.name: number.family for number in NUMBER_FORMATS.own}
    return tuple(dict.fromkeys(family.get(name) or name for name in NUMBER_FORMATS))


def spelled_format(text: str) -> NumberFormat:
    """The number format that is written so.

    Args:
        text: One of the keys of ``spellings()``, without the ``w`` or ``a`` before it.

    Raises:
        InputError: If it is another package's and cannot be used.
    """
    number = NUMBER_FORMATS[spellings()[text]]
    if spellings().get(number.spellings[0]) != number.name:  # or it would not read back
        raise InputError(
            f"the number format {number.name!r} of another package is written "
            f"{number.spellings[0]!r}; only its name is read: leave `spelled` out"
        )
    return number
