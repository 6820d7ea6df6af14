"""What every number format of the table promises, and formats that other packages may add."""

import itertools
from dataclasses import replace
from fractions import Fraction
from math import floor, inf
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from mpq.backends.onnx.formats import kernel_of
from mpq.errors import InputError, PrecisionError
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization import formats
from mpq.quantization.formats import MINIFLOATS, NUMBER_FORMATS
from mpq.quantization.grid import Grid, integer_range, make_grid, places, round_float
from mpq.quantization.level_tables import normal_levels
from mpq.quantization.microscaling import float_bits
from mpq.quantization.number_format import NumberFormat
from mpq.quantization.numerics import InputRounding
from mpq.quantization.precision import Precision
from mpq.quantization.range_method import ActivationRange
from mpq.quantization.tensor_format import Granularity, TensorFormat

TABLE = tuple(NUMBER_FORMATS.values())
OTHERS = (
    NumberFormat("toy_e3m2", 6, True, 24.0, 3, 2),
    NumberFormat("toy_e7m2", 10, True, 7.0, 7, 2),
    NumberFormat("toy_int12", 12),
    NumberFormat("toy_table", 3, True, 2.0, table=(-3.0, -1.0, 0.0, 0.5, 2.0)),
)
EVERY = (*TABLE, *OTHERS)
OF_WEIGHTS = tuple(number for number in TABLE if not number.is_for_inputs)
SCALED = tuple(x for x in EVERY if x.needs_scale and not x.has_codebook)
CAST = tuple(number for number in EVERY if number.torch_dtype is not None)
SCHEMES = [
    pytest.param(number, symmetric, id=f"{number.name}-{'symmetric' if symmetric else 'affine'}")
    for number in SCALED
    for symmetric in (True, False)
    if symmetric or not number.is_float
]
"""Formats with a scale, and with a zero point where they may have one."""
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]  # fmt: skip
"""Appendix E of arXiv:2305.14314."""
TABLES: dict[str, Any] = {
    "zero": [0],
    "binary": [-1, 1],
    "ternary": [-1, 0, 1],
    "mxint8": np.arange(-128, 128) / 64,
    "nf4": NF4,
    "toy_table": [-3, -1, 0, 0.5, 2],
    "nf3": normal_levels(3),  # against their definition below
    **{f"{n}log2": [0, *(0.5**q for q in reversed(range(2**n - 1)))] for n in (3, 4, 5)},
    **{f"{n}twin": range(-(2 ** (n - 1)), 2 ** (n - 1)) for n in range(3, 9)},  # both scales alike
}
"""Formats to their definition: the numbers of all codes."""
BY_NAME: dict[str, Any] = {"ids": lambda number: number.name}


def rounded(x: Tensor, number: NumberFormat, symmetric: bool = True) -> Tensor:
    """Numbers in a format, with a scale of 1."""
    if not number.needs_scale:
        return round_float(x, number)
    one, zero = torch.ones(1), torch.zeros(1, dtype=torch.int32)
    return Grid(number, one, zero, symmetric).round(x[None])[0]


def values_of(number: NumberFormat, symmetric: bool = True) -> npt.NDArray[np.float64]:
    """Every number of a format, ascending, from the definition of its codes."""
    if number.name in TABLES:
        return np.array(TABLES[number.name], dtype=np.float64)
    if not number.is_float:
        low = -(2 ** (number.bits - 1)) if symmetric else 0
        return np.arange(low, low + 2**number.bits, dtype=np.float64)
    bias = 2 ** (number.exponent_bits - 1) - 1
    steps = 2**number.mantissa_bits
    positive = {m / steps * 2.0 ** (1 - bias) for m in range(steps)} | {
        (1 + m / steps) * 2.0 ** (e - bias)
        for e, m in itertools.product(range(1, 2**number.exponent_bits), range(steps))
    }
    kept = {value for value in positive if value <= number.max_value}
    return np.array(sorted(kept | {-value for value in kept}))


def some_numbers(number: NumberFormat) -> Tensor:
    """All over the format's range and a little beyond, with exact halves between codes."""
    top = min(number.max_value, 1e38) if number.is_float else 2.0 ** (number.bits - 1)
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(2000, generator=generator) * top / 2
    small = spread * 2.0 ** -torch.arange(2000).remainder(30)
    return torch.cat([spread, small, torch.arange(-16, 16) / 2])


@pytest.mark.parametrize("octaves", [0, 1, 3, 15])
@pytest.mark.parametrize("bits", range(3, 9))
@pytest.mark.parametrize("is_signed", [True, False])
def test_every_code_of_two_ranges(bits: int, octaves: int, is_signed: bool) -> None:
    """The first bit says which range, the others count in its steps; below 0 from -1 on."""
    values = set()
    for code in range(2**bits):
        is_coarse, steps = code >> (bits - 1), code & (2 ** (bits - 1) - 1)
        if is_coarse:
            values.add(float(steps))
        else:
            values.add((-(steps + 1) if is_signed else steps) / 2**octaves)
    number = NUMBER_FORMATS[f"{bits}twin"].with_octaves(octaves, is_signed)
    assert number.is_twin
    assert number.levels == tuple(sorted(values))
    assert number.max_value == max(values)
    assert rounded(torch.tensor(sorted(values)), number).tolist() == sorted(values)


def test_negative_numbers_saturate_at_0_where_there_are_no_codes_for_them() -> None:
    """A power of two of inputs has no sign."""
    x = torch.tensor([-3.0, -0.1, 0.0, 0.3, 0.4, 0.9, 5.0])
    assert rounded(x, NUMBER_FORMATS["3log2"]).tolist() == [0, 0, 0, 0.25, 0.5, 1, 1]


@pytest.mark.parametrize("number", EVERY, **BY_NAME)
def test_rounding_twice_is_rounding_once(number: NumberFormat) -> None:
    """What a format holds, it keeps."""
    once = rounded(some_numbers(number), number)

    assert torch.equal(rounded(once, number), once)


@pytest.mark.parametrize(
    # NormalFloat has one level more above 0 than below.
    "number",
    [n for n in EVERY if not n.name.startswith(("nf", "toy_table")) and not n.is_for_inputs],
    **BY_NAME,
)
def test_rounding_is_odd(number: NumberFormat) -> None:
    """A negative number becomes the negative; integers and mxint8 have one code more below zero."""
    x = some_numbers(number)
    if not number.has_zero:
        x = x[x != 0]  # which has to become one of both
    if not number.is_float:
        x = x[x.abs() < 2 ** (number.bits - 1) - 1]
    if number.name == "mxint8":
        x = x[x.abs() < number.max_value]

    assert torch.equal(rounded(-x, number), -rounded(x, number))


@pytest.mark.parametrize(("number", "symmetric"), SCHEMES)
def test_all_codes_are_reached_and_no_other_numbers(number: NumberFormat, symmetric: bool) -> None:
    """Every number of the definition is a fixed point, and everything else goes to one of them."""
    values = values_of(number, symmetric)
    # As float32 has them: of 65536 codes some lie within its last digit of a tie.
    spread = np.linspace(values[0] * 1.5 - 1, values[-1] * 1.5 + 1, 20_001)
    between = spread.astype(np.float32).astype(np.float64)
    x = torch.from_numpy(np.concatenate([values, between])).float()

    found = rounded(x, number, symmetric).double().numpy()

    np.testing.assert_array_equal(found[: len(values)], values)
    assert set(found.tolist()) == set(values.tolist())
    above = np.searchsorted(values, between).clip(0, len(values) - 1)
    distance = np.abs(between - values[[(above - 1).clip(0), above]]).min(axis=0)
    np.testing.assert_allclose(np.abs(found[len(values) :] - between), distance, atol=1e-4)


SIXTEEN = NUMBER_FORMATS["int16"]
ROUNDINGS: tuple[InputRounding, ...] = ("reciprocal", "quotient", "rounded-quotient")


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(("symmetric", "point"), [(True, 0), (False, 0), (False, 40_001)])
def test_every_code_of_16_bits_stands_for_a_number_of_its_own(
    symmetric: bool, point: int, rounding: InputRounding
) -> None:
    """All 65536 of them, at scales of any digits: the number of a code has that code again."""
    low = -(2**15) if symmetric else 0
    codes = torch.arange(low, low + 2**16)
    scales = torch.rand(20, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    scale = (10.0 ** (8 * scales)).float()
    points = torch.full_like(scale, point, dtype=torch.int32)
    grid = Grid(SIXTEEN, scale, points, symmetric, rounding)
    # One product of float32, of whole numbers that it holds exactly.
    numbers = (codes - point).float() * scale[:, None]

    assert torch.equal(grid.codes(numbers).long(), codes.expand(20, -1))
    assert torch.equal(grid.round(numbers), numbers)


def test_codes_of_16_bits_are_those_of_the_definition() -> None:
    """The nearest, by fractions; within float32's last digits of a tie it may be either."""
    x = torch.randn(3000, generator=torch.Generator().manual_seed(1)) * 4
    low, high = x.aminmax()
    grid = make_grid(SIXTEEN, False, low[None], high[None])
    scale, point = Fraction(float(grid.scale)), int(grid.zero_point)

    found = grid.codes(x[None])[0].tolist()

    exact = [Fraction(number) / scale + point for number in x.tolist()]
    assert all(abs(code - y) < 0.51 for code, y in zip(found, exact, strict=True))
    nearest = [min(max(floor(y + Fraction(1, 2)), 0), 65535) for y in exact]
    ties = [abs(y - floor(y) - Fraction(1, 2)) < 0.01 for y in exact]
    assert sum(ties) < 100
    assert [c for c, t in zip(found, ties, strict=True) if not t] == [
        n for n, t in zip(nearest, ties, strict=True) if not t
    ]
    assert (min(found), max(found)) == (0, 65535)


@pytest.mark.parametrize("number", CAST, **BY_NAME)
def test_exponent_and_mantissa_are_those_of_the_torch_dtype(number: NumberFormat) -> None:
    """Rounding by the table's bits gives what the cast gives."""
    x = some_numbers(number)

    by_bits = rounded(x, replace(number, torch_dtype=None))

    assert torch.equal(by_bits, rounded(x, number))


ML_DTYPES = {
    "fp4_e2m1": "float4_e2m1fn",
    "e2m3": "float6_e2m3fn",
    "e3m2": "float6_e3m2fn",
    "fp8_e4m3": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
    "mxfp4": "float4_e2m1fn",
    "mxfp6_e3m2": "float6_e3m2fn",
    "mxfp6_e2m3": "float6_e2m3fn",
    "mxfp8_e5m2": "float8_e5m2",
    "mxfp8": "float8_e4m3fn",
    "nvfp4": "float4_e2m1fn",
}
"""Number formats to the types of ml_dtypes that have their codes."""


@pytest.mark.parametrize("name", ML_DTYPES)
def test_codes_are_those_of_ml_dtypes(name: str) -> None:
    """Every bit pattern that is a number, and what numbers in between are rounded to."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    number, kind = NUMBER_FORMATS[name], getattr(ml_dtypes, ML_DTYPES[name])
    patterns = np.arange(2**number.bits, dtype=np.uint8)
    decoded = patterns.view(kind).astype(np.float32)
    is_number = np.isfinite(decoded)

    assert set(decoded[is_number].tolist()) == set(values_of(number).tolist())
    x = some_numbers(number).clamp(-number.max_value, number.max_value)
    ours = rounded(x, number)
    np.testing.assert_array_equal(ours.numpy(), x.numpy().astype(kind).astype(np.float32))
    bits = float_bits(torch.from_numpy(decoded[is_number]), number).numpy()
    # Two bit patterns are zeros; ours is the positive one.
    is_zero = decoded[is_number] == 0
    np.testing.assert_array_equal(bits, np.where(is_zero, 0, patterns[is_number]))


def test_a_format_of_eight_bits_spends_no_codes_on_infinity() -> None:
    """ml_dtypes has e3m4 as IEEE would: the same numbers, without those of the last exponent."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    patterns = np.arange(256, dtype=np.uint8)
    decoded = patterns.view(ml_dtypes.float8_e3m4).astype(np.float32)
    ours = values_of(NUMBER_FORMATS["e3m4"])

    assert len(ours) == 255  # two zeros
    assert set(ours[np.abs(ours) < 16]) == set(decoded[np.isfinite(decoded)].tolist())


FAMILY = [n for n in TABLE if n.family == MINIFLOATS]


def test_every_exponent_and_mantissa_of_3_to_8_bits_is_a_format() -> None:
    """Once, whether it came with a name of its own or not."""
    shapes = {(n.exponent_bits, n.mantissa_bits) for n in FAMILY}

    assert len(shapes) == len(FAMILY) == 23
    assert shapes | {(2, 1), (4, 3), (5, 2)} == {
        (e, m) for e in range(1, 7) for m in range(7) if 3 <= 1 + e + m <= 8
    }
    for e, m in shapes | {(2, 1), (4, 3), (5, 2)}:
        number = Precision.parse(f"we{e}m{m}a32").weight.number
        assert (number.exponent_bits, number.mantissa_bits) == (e, m)
        assert f"fp{1 + e + m}_e{e}m{m}" in number.spellings


@pytest.mark.parametrize("text", ["e0m3", "e1m0", "e7m0", "e5m3", "e2m6", "e6m2", "fp5_e2m1"])
def test_what_is_no_format_of_3_to_8_bits_is_refused(text: str) -> None:
    """With the family's name."""
    with pytest.raises(PrecisionError, match=r"is not a precision: .*e\{E\}m\{M\}"):
        Precision.parse(f"w{text}a32")


LEVELLED = tuple(number for number in SCALED if number.is_float)


@pytest.mark.parametrize("number", LEVELLED, **BY_NAME)
def test_levels_are_all_numbers_of_a_format(number: NumberFormat) -> None:
    """By the definition of its codes; every number between two is nearest to one of them."""
    values = values_of(number)

    assert list(number.levels) == values.tolist()
    x = torch.cat([some_numbers(number), torch.tensor(number.levels)])
    found = places(x, number)
    distance = (x.double()[:, None] - torch.from_numpy(values)).abs()
    at = distance.gather(1, found.long()[:, None])[:, 0]
    assert torch.equal(at, distance.amin(dim=1))
    assert found[-len(values) :].tolist() == list(range(len(values)))


def test_halves_go_to_the_even_place() -> None:
    """From everywhere between two levels, up to float32's last digit before the middle."""
    number = NUMBER_FORMATS["e2m0"]
    halves = torch.tensor([-3.0, -1.5, -0.5, 0.5, 1.5, 3.0])

    assert places(halves, number).tolist() == [0, 2, 2, 4, 4, 6]
    before = torch.nextafter(halves, torch.full_like(halves, -9.0))
    assert places(before, number).tolist() == list(range(6))
    after = torch.nextafter(halves, torch.full_like(halves, 9.0))
    assert places(after, number).tolist() == list(range(1, 7))


@pytest.mark.parametrize("number", FAMILY, **BY_NAME)
def test_every_code_is_a_number(number: NumberFormat) -> None:
    """But for a second zero; the largest is that of all bits set."""
    values = values_of(replace(number, max_value=inf))

    assert len(values) == 2**number.bits - 1
    assert values[-1] == number.max_value
    ranks = float_bits(torch.from_numpy(values[values >= 0]).float(), number)
    assert ranks.tolist() == list(range(2 ** (number.bits - 1)))


@pytest.mark.parametrize("number", [n for n in FAMILY if not n.mantissa_bits], **BY_NAME)
def test_without_a_mantissa_numbers_are_powers_of_two(number: NumberFormat) -> None:
    """And 0: the codes of a sign and an exponent, in base 2."""
    magnitudes = values_of(number)[2 ** (number.bits - 1) :]

    assert len(magnitudes) == 2**number.exponent_bits - 1
    assert (magnitudes[1:] == 2 * magnitudes[:-1]).all()
    assert np.log2(magnitudes[0]) % 1 == 0


@pytest.mark.parametrize("number", TABLE, **BY_NAME)
def test_every_spelling_reads_back(number: NumberFormat) -> None:
    """After ``w``, after ``a``, and the name alone for both; some formats are for one of both."""
    if number.is_for_weights:
        precision = Precision.parse(number.name)
        assert precision.weight.number == number
        assert precision.activation.is_exact
        assert precision == Precision.parse(f"w{number.name}a32") == Precision.parse(str(precision))
        return
    if number.is_for_inputs:
        precision = Precision.parse(number.name)
        assert precision.activation.number == number
        assert precision.weight.is_exact
        assert str(precision) == f"w32a{number.name}"
        assert precision == Precision.parse(str(precision))
        assert str(Precision.parse(f"w4a{number.name}")) == f"w4a{number.name}"
        return
    for text in (*number.spellings, number.name):
        precision = Precision.parse(f"w{text}a{text}")
        assert precision.weight.number == precision.activation.number == number
        assert str(Precision.parse(f"w{text}")).startswith(
            number.name if number.name == "fp32" else f"w{number.spellings[0]}a"
        )
    assert Precision.parse(number.name) == Precision.parse(f"w{number.name}a{number.name}")


@pytest.mark.parametrize("number", OF_WEIGHTS, **BY_NAME)
def test_stored_bits(number: NumberFormat) -> None:
    """The format's bits for every number, 32 for the scale of every channel; blocks have 8."""
    weight = Precision.parse(f"w{number.name}").weight

    if number.is_microscaling:  # rows of 100 are 4 blocks of 32, or 7 of 16
        scales = {32: 10 * 4 * 8, 16: 10 * 7 * 8 + 32}[number.block]
        assert weight.stored_bits(1000, 10) == 1000 * number.bits + scales
        return
    if number.has_codebook:
        assert weight.stored_bits(1000, 10) == 1000 * number.bits + 10 * 2**number.bits * 16
        return
    assert weight.stored_bits(1000, 10) == 1000 * number.bits + 320 * number.needs_scale


@pytest.mark.parametrize("number", TABLE, **BY_NAME)
def test_json_round_trip(number: NumberFormat) -> None:
    """A file may state every format of the table."""
    precision = Precision.parse(number.name)
    layer = AssignedLayer("fc", "linear", (3, 4), precision, ActivationRange(-1.0, 2.0))
    written = Assignment((layer,))

    assert Assignment.from_json(written.to_json()) == written


@pytest.mark.parametrize("number", TABLE, **BY_NAME)
def test_names_of_types_exist(number: NumberFormat) -> None:
    """In torch and in ONNX, with as many bits as the format or more; and there is a sentence."""
    onnx = pytest.importorskip("onnx")

    if number.torch_dtype is not None:
        assert getattr(torch, number.torch_dtype).itemsize * 8 == number.bits
    if number.onnx_type is not None:
        code = onnx.TensorProto.DataType.Value(number.onnx_type)
        size = onnx.helper.tensor_dtype_to_np_dtype(code).itemsize
        assert size * 8 >= number.bits
    assert number.summary


@pytest.mark.parametrize("number", OTHERS, **BY_NAME)
@pytest.mark.parametrize("kind", ["linear", "conv2d", "embedding"])
def test_onnx_refuses_a_format_that_it_does_not_know(number: NumberFormat, kind: str) -> None:
    """Also one of more than eight bits that claims to fit into eight."""
    for claimed in (number, replace(number, onnx_type="INT8" if number.bits > 8 else None)):
        weight = TensorFormat(claimed, Granularity.CHANNEL)
        precision = Precision(weight, Precision.parse("w8a8").activation)

        assert kernel_of(kind, precision) is None
    scales = [kernel_of(kind, Precision.parse(f"w8s{scale}a8")) for scale in ("fp16", "fp8")]
    assert scales == [None, None]
    assert kernel_of(kind, Precision.parse("w8sfp32a8")) is kernel_of(kind, Precision.parse("w8a8"))
    if kind != "embedding":  # which reads ids
        assert kernel_of(kind, Precision.parse("w8aint16")) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "Toy", "bits": 4}, "names are lower-case letters, digits and underscores"),
        ({"name": "", "bits": 4}, "names are lower-case"),
        ({"name": "toy", "bits": 4, "spelled": ("t-y",)}, "names are lower-case"),
        ({"name": "toy", "bits": 1}, "integers have 2 to 16 bits"),
        ({"name": "toy", "bits": 17}, "integers have 2 to 16 bits"),
        (
            {"name": "toy", "bits": 6, "is_float": True, "max_value": 28.0, "exponent_bits": 3},
            "a sign, 3 exponent and 0 mantissa bits are not 6 bits",
        ),
        (
            {
                "name": "toy",
                "bits": 6,
                "is_float": True,
                "exponent_bits": 3,
                "mantissa_bits": 2,
            },
            "max_value is positive",
        ),
        (
            {
                "name": "toy",
                "bits": 2,
                "is_float": True,
                "max_value": 1.0,
                "table": (-1.0, 1.0, 0.0),
            },
            "a table ascends from a number below 0 to max_value",
        ),
        (
            {"name": "toy", "bits": 2, "is_float": True, "max_value": 1.0, "table": (0.0, 1.0)},
            "a table ascends from a number below 0",
        ),
        (
            {"name": "toy", "bits": 2, "is_float": True, "max_value": 2.0, "table": (-1.0, 1.0)},
            "a table ascends from a number below 0 to max_value",
        ),
        (
            {
                "name": "toy",
                "bits": 1,
                "is_float": True,
                "max_value": 1.0,
                "table": (-1.0, 0.0, 1.0),
            },
            "a table .* has a level for each code at most; got 3",
        ),
        (
            {"name": "toy", "bits": 2, "max_value": 1.0, "table": (-1.0, 1.0)},
            "a table is of a float of up to 8 bits",
        ),
        ({"name": "toy", "bits": 4, "block": 32}, "has a scale in e8m0 or e4m3; got 32 and ''"),
        ({"name": "toy", "bits": 4, "block_scale": "e8m0"}, "got 0 and 'e8m0'"),
        ({"name": "toy", "bits": 4, "block": -1, "block_scale": "e8m0"}, "got -1 and 'e8m0'"),
        ({"name": "toy", "bits": 4, "block": 32, "block_scale": "fp16"}, "got 32 and 'fp16'"),
    ],
)
def test_a_format_that_contradicts_itself_is_refused(fields: Any, message: str) -> None:
    """The error names the format and what is wrong."""
    with pytest.raises(InputError, match=message):
        NumberFormat(**fields)


def test_a_format_of_others_is_written_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spellings are known before a package is imported, so that further ones would not be read."""
    toy = NumberFormat("toy", 5, spelled=("t5", "toy"))
    monkeypatch.setattr(formats, "NUMBER_FORMATS", {"toy": toy})
    monkeypatch.setattr(formats, "spellings", lambda: {"toy": "toy"})

    with pytest.raises(InputError, match="'toy' of another package is written 't5'; only its name"):
        formats.spelled_format("toy")


@pytest.mark.parametrize(("bits", "published"), [(3, None), (4, NF4)])
def test_normal_levels_are_quantiles(bits: int, published: list[float] | None) -> None:
    """Evenly spaced probabilities, by torch's error function; QLoRA's 16 are these in float32."""
    levels = torch.tensor(normal_levels(bits), dtype=torch.float64)
    half = 2 ** (bits - 1)
    outermost = 1 - (1 / (2 * half - 1) + 1 / (2 * half)) / 4
    widest = torch.special.ndtri(torch.tensor(outermost, dtype=torch.float64))

    chances = torch.special.ndtr(levels * widest)

    zero = half - 1  # one level more above than below
    for side, count in ((chances[zero:], half), (chances[: zero + 1].flip(0), half - 1)):
        ends = (0.5, float(side[-1]))
        assert ends[1] == pytest.approx(outermost if count == half else 1 - outermost, abs=1e-12)
        torch.testing.assert_close(side, torch.linspace(*ends, count + 1, dtype=torch.float64))
    assert levels[zero] == 0
    if published is not None:
        np.testing.assert_allclose(levels, published, atol=2e-7)


def test_the_grid_of_a_table_just_covers_a_range() -> None:
    """By whichever end is further out in levels, for those that lie around 0 unevenly."""
    number = OTHERS[-1]
    low, high = torch.tensor([-6.0, -6.0, 0.0, 0.0]), torch.tensor([2.0, 8.0, 1.0, 0.0])

    grid = make_grid(number, True, low, high)

    assert grid.scale.tolist() == [2.0, 4.0, 0.5, 1.0]
    assert grid.round(low[:, None])[:2, 0].tolist() == [-6.0, -4.0]


def test_integer_ranges_are_the_codes() -> None:
    """Smallest and largest code of the definition."""
    for number in SCALED:
        if not number.is_float:
            ends = values_of(number)[[0, -1]].tolist()
            assert list(integer_range(number, symmetric=True)) == ends


@pytest.mark.parametrize("number", CAST, **BY_NAME)
def test_the_largest_number_is_that_of_the_dtype(number: NumberFormat) -> None:
    """The cast makes it so; where five digits do not say it, to five digits."""
    assert number.torch_dtype is not None
    told = torch.finfo(getattr(torch, number.torch_dtype))

    assert float(round_float(torch.tensor([told.max]), number)) <= told.max
    assert 0 <= 1 - number.max_value / told.max < 2e-5
    if told.max < 1e6:
        assert number.max_value == told.max
    assert number.bits == told.bits
    assert 2.0**number.min_exponent == told.smallest_normal


@pytest.mark.parametrize(("bits", "is_one"), [(0, 1), (1, 0), (2, 1), (16, 1), (17, 0)])
def test_integers_have_2_to_16_bits(bits: int, is_one: int) -> None:
    """All of them have a scale: one bit has no code above 0, float32 no digits for many more."""
    if is_one:
        assert NumberFormat("int", bits).needs_scale
        return
    with pytest.raises(InputError, match="^number format int: integers have 2 to 16 bits, or 0"):
        NumberFormat("int", bits)


@pytest.mark.parametrize(
    ("bits", "exponent_bits", "mantissa_bits", "is_one"),
    [(3, 1, 1, True), (2, 1, 0, True), (6, 3, 2, True), (5, 3, 2, False), (7, 3, 2, False),
     (1, 0, 0, False), (2, 0, 1, False), (4, -1, 4, False)],
)  # fmt: skip
def test_bits_of_a_float_add_up(
    bits: int, exponent_bits: int, mantissa_bits: int, is_one: bool
) -> None:
    """A sign, at least one bit of exponent, the mantissa: no more and no fewer."""
    fields = ("f", bits, True, 1.0, exponent_bits, mantissa_bits)
    if is_one:
        assert NumberFormat(*fields).is_float
        return
    with pytest.raises(InputError, match="^number format f: a sign, .* are not"):
        NumberFormat(*fields)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_the_bits_of_a_float_have_to_be_said(bits: int) -> None:
    """There is no default that fits."""
    with pytest.raises(InputError, match="a sign, 0 exponent and 0 mantissa bits are not"):
        NumberFormat("f", bits, True, 1.0)


@pytest.mark.parametrize("largest", [0.0, -1.0])
def test_the_largest_number_is_positive(largest: float) -> None:
    """A smallest one that is, is let in."""
    assert NumberFormat("f", 3, True, 5e-324, 1, 1).max_value > 0
    with pytest.raises(InputError, match="^number format f: max_value is positive$"):
        NumberFormat("f", 3, True, largest, 1, 1)


@pytest.mark.parametrize("number", OF_WEIGHTS, **BY_NAME)
def test_only_integers_are_scaled_integers(number: NumberFormat) -> None:
    """No float, whether it is scaled or not."""
    weight = Precision.parse(f"w{number.name}").weight

    assert weight.is_scaled_integer == number.name.startswith("int")
