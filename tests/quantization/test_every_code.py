"""Every code of every number format and of every block's scale, against types of other packages."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mpq.quantization.codes import Codes, packed, unpacked
from mpq.quantization.formats import INTEGERS, MINIFLOATS, NUMBER_FORMATS
from mpq.quantization.grid import Grid, integer_range, round_float
from mpq.quantization.level_tables import MXINT8
from mpq.quantization.microscaling import block_scale_bits
from mpq.quantization.number_format import NumberFormat
from mpq.quantization.precision import Precision

ml_dtypes = pytest.importorskip("ml_dtypes")
TABLE = tuple(NUMBER_FORMATS.values())
BY_NAME: dict[str, Any] = {"ids": lambda number: number.name}
WIDE = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
"""Formats of 16 bits without a scale."""
TABLES = {"zero", "binary", "ternary", "nf3", "nf4", "mxint8"}
"""Formats of a table, or of 0, whose levels ``test_formats.py`` and ``test_signs.py`` have anew."""
EXPONENTS = {"fp4_e2m1", "fp8_e4m3", "fp8_e5m2", "mxfp4", "mxfp6_e3m2", "mxfp6_e2m3", "mxfp8",
             "mxfp8_e5m2", "nvfp4"}  # fmt: skip
"""Those with an exponent that are in no family; ``test_formats.py`` holds them to ml_dtypes."""


def test_every_format_has_a_reference() -> None:
    """A new one is compared with something, or this fails."""
    families = {n.name for n in TABLE if n.family in (INTEGERS, MINIFLOATS)}
    of_inputs = {n.name for n in TABLE if n.is_for_inputs}  # held to theirs in test_inputs.py
    codebooks = {n.name for n in TABLE if n.has_codebook}

    assert set(NUMBER_FORMATS) - {"fp6_toy"} == (
        families | codebooks | of_inputs | TABLES | EXPONENTS | {*WIDE, "int16", "fp32"}
    )


@pytest.mark.parametrize("name", WIDE)
def test_every_code_of_16_bits_and_every_half_between_two(name: str) -> None:
    """All finite patterns stay; what lies halfway goes where numpy and ml_dtypes put it."""
    number, kind = NUMBER_FORMATS[name], WIDE[name]
    every = np.arange(2**16, dtype=np.uint16).view(kind).astype(np.float32)
    every = np.sort(every[np.isfinite(every)])
    # Exact: float32 has more than the one digit that this takes, but for the smallest of bfloat16.
    halves = ((every[1:].astype(np.float64) + every[:-1]) / 2).astype(np.float32)

    assert len(every) > 60_000
    assert every[-1] == np.float32(number.max_value).astype(kind).astype(np.float32)
    for x in (every, halves):
        found = round_float(torch.from_numpy(x), number)
        np.testing.assert_array_equal(found.numpy(), x.astype(kind).astype(np.float32))
    np.testing.assert_array_equal(round_float(torch.from_numpy(every), number).numpy(), every)


def test_fp32_keeps_every_number() -> None:
    """All exponents and signs, with random mantissas."""
    generator = np.random.default_rng(0)
    signs_and_exponents = np.arange(2**9, dtype=np.uint32).repeat(64) << 23
    patterns = signs_and_exponents | generator.integers(0, 2**23, len(signs_and_exponents))
    every = patterns.astype(np.uint32).view(np.float32)
    every = every[np.isfinite(every) & (np.abs(every) < 3.4028e38)]

    found = round_float(torch.from_numpy(every), NUMBER_FORMATS["fp32"])

    np.testing.assert_array_equal(found.numpy(), every)


@pytest.mark.parametrize(
    ("name", "signed", "unsigned"),
    [
        ("int2", ml_dtypes.int2, ml_dtypes.uint2), ("int4", ml_dtypes.int4, ml_dtypes.uint4),
        ("int8", np.int8, np.uint8), ("int16", np.int16, np.uint16),
    ],
)  # fmt: skip
def test_ends_of_integers_are_those_of_the_types(name: str, signed: Any, unsigned: Any) -> None:
    for kind, symmetric in ((signed, True), (unsigned, False)):
        told = ml_dtypes.iinfo(kind)

        assert integer_range(NUMBER_FORMATS[name], symmetric) == (told.min, told.max)


def every_code(number: NumberFormat, symmetric: bool) -> Tensor:
    """In the units of the scale."""
    if number.is_float:
        return torch.tensor(number.levels)
    low, high = integer_range(number, symmetric)
    return torch.arange(low, high + 1).float()


CASES = [
    (n, symmetric)
    for n in TABLE
    if n.needs_scale and not n.has_codebook and not n.is_for_inputs
    for symmetric in (True, False)
    if symmetric or not n.is_float
]


@pytest.mark.parametrize(("number", "symmetric"), CASES, ids=lambda x: getattr(x, "name", x))
def test_every_code_is_stored_and_comes_back(number: NumberFormat, symmetric: bool) -> None:
    """As codes of a grid, in the type of the file, and in a dense stream of bits."""
    codes = every_code(number, symmetric)
    told = replace(Precision.parse(f"w{number.name}").weight, symmetric=symmetric)
    group = told.group_size or len(codes)
    count = -(-len(codes) // group)
    scale = torch.full((1, count), 0.5)
    point = torch.full((1, count), 0 if symmetric else 2 ** (number.bits - 1), dtype=torch.int32)
    filled = torch.nn.functional.pad(codes, (0, count * group - len(codes)))
    whole = Codes(told, filled[None], scale, point, len(codes))

    numbers = whole.numbers()

    expected = (codes.double() - point[0, 0]) * 0.5
    np.testing.assert_array_equal(numbers[0].double().numpy(), expected.numpy())
    grid = Grid(number, scale[0, :1], point[0, :1], symmetric)
    assert torch.equal(grid.codes(numbers)[0], codes)
    stored = whole.stored(numbers)
    assert stored.why_not(told, (1, len(codes))) == ""
    assert torch.equal(Codes.of_stored(stored, told).numbers(), numbers)
    if not number.is_float and number.bits <= 8:
        assert sorted(whole.unsigned()[0].tolist()) == list(range(2**number.bits))
        again = unpacked(packed(whole.unsigned(), number.bits), number.bits, len(codes))
        assert torch.equal(again, whole.unsigned())


POWERS = [n for n in TABLE if n.family == MINIFLOATS and not n.mantissa_bits]


@pytest.mark.parametrize("number", POWERS, **BY_NAME)
def test_without_a_mantissa_codes_are_powers_of_two(number: NumberFormat) -> None:
    """Logarithmic codes: 0, and every power from ``2^(1 - bias)`` to ``2^(2^E - 1 - bias)``."""
    bias = 2 ** (number.exponent_bits - 1) - 1
    powers = [2.0 ** (code - bias) for code in range(1, 2**number.exponent_bits)]

    assert number.levels == (*(-x for x in reversed(powers)), 0.0, *powers)


def test_mxint8_is_a_byte_in_units_of_a_64th() -> None:
    every = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float64) / 64

    assert sorted(every.tolist()) == list(MXINT8)


SCALES = [
    ("mxfp4", ml_dtypes.float8_e8m0fnu, torch.float8_e8m0fnu, range(1, 255)),
    ("nvfp4", ml_dtypes.float8_e4m3fn, torch.float8_e4m3fn, range(1, 127)),
]
"""A format, the types of its blocks' scales, and all codes that are positive normal float32."""


@pytest.mark.parametrize(("name", "kind", "dtype", "patterns"), SCALES, ids=["e8m0", "e4m3"])
def test_every_scale_of_a_block(name: str, kind: Any, dtype: torch.dtype, patterns: range) -> None:
    """Its bits are those of ml_dtypes and of torch."""
    bits = np.array(patterns, dtype=np.uint8)
    values = torch.from_numpy(bits.view(kind).astype(np.float32))
    told = Precision.parse(f"w{name}").weight
    block = told.number.block
    codes = Codes(
        told, torch.zeros(1, len(bits) * block), values[None], torch.zeros(1, len(bits)).int(),
        len(bits) * block,
    )  # fmt: skip

    found = block_scale_bits(codes)

    np.testing.assert_array_equal(found[0].numpy(), bits)
    assert torch.equal(found[0].view(dtype).float(), values)
