"""Number formats, in one table: the door that a new one comes in by.

The spellings that ``Precision.parse`` reads, the names that files may state, the rounding, the
element type in ONNX and ``mpq formats`` all follow from ``NUMBER_FORMATS``. No torch here: a
problem's file names its formats and is read without it.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Final

from mpq._support.registry import ValueRegistry
from mpq.errors import InputError
from mpq.quantization.input_codes import log2_levels, twin_levels
from mpq.quantization.level_tables import BINARY, MXINT8, NF4, TERNARY, normal_levels
from mpq.quantization.number_format import TWIN, NumberFormat

INTEGERS: Final = "int{N}"
"""The family of integers that are written by their bits."""
MINIFLOATS: Final = "e{E}m{M}"
"""The family of floating-point formats of any exponent and mantissa."""
LOG2: Final = "{N}log2"
"""The family of powers of two of inputs."""
FAMILIES: Final = {
    INTEGERS: "integers of N bits, 2^N levels: w8 is wint8, and w16 is fp16",
    MINIFLOATS: "floating point of E exponent and M mantissa bits, 3 to 8 with the sign: all codes "
    "are numbers; of M = 0 they are 0 and powers of two",
    LOG2: "0 and powers of two, of 3 to 5 bits, for inputs that are not below 0: w4a4log2 (FQ-ViT)",
    TWIN: "two ranges of half of the codes each, of 3 to 8 bits, for inputs: w4a4twin (PTQ4ViT)",
}
"""Formats that ``mpq formats`` and messages name together, and a sentence about all of them."""


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
    NumberFormat(
        "zero", 0, spelled=("0", "zero"), summary="0 alone, for weights that are left out: w0a16"
    ),
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
