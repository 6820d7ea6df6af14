"""What scales are stored in: every code of every type, against references of its own."""

from fractions import Fraction
from math import frexp, inf

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mpq.errors import PrecisionError
from mpq.quantization.codes import Codes
from mpq.quantization.precision import Precision
from mpq.quantization.ranges import RANGE_METHODS
from mpq.quantization.rounding import weight_grid
from mpq.quantization.scale_formats import SCALE_FORMATS
from mpq.quantization.second_scales import SecondScales, stored_scale

ml_dtypes = pytest.importorskip("ml_dtypes")
CASTS = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
"""Types that are a dtype of numpy's, or of ml_dtypes."""
DYADIC = {"dyadic8": 8, "dyadic16": 16, "dyadic": 32}
"""Bits of the multiplier, its sign included."""
ALONE = [*CASTS, *DYADIC]
"""Types in which a scale is stored without regard to others."""


def numbers(*values: float) -> Tensor:
    """Float32."""
    return torch.tensor(values, dtype=torch.float32)


def codes_of(spelling: str, rows: Tensor, method: str = "minmax") -> Codes:
    """A weight, rounded to nearest."""
    told = Precision.parse(spelling).weight
    return Codes.of(rows, told, weight_grid(rows, told, RANGE_METHODS.build(method)))


def test_every_type_is_in_these_tests() -> None:
    """A new one needs a reference."""
    assert set(SCALE_FORMATS) == {*ALONE, "fp8", "dq"}


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_every_number_of_16_bits_is_a_scale_that_stays(name: str) -> None:
    """All positive finite ones, but for those of bfloat16 that are subnormal in float32."""
    every = np.arange(2**15, dtype=np.uint16).view(CASTS[name]).astype(np.float32)
    every = every[np.isfinite(every) & (every >= SCALE_FORMATS[name].smallest)]

    found = stored_scale(torch.from_numpy(every), name)

    assert len(every) > 30_000
    assert np.array_equal(found.numpy(), every)
    assert float(every.min()) == SCALE_FORMATS[name].smallest
    assert float(every.max()) == SCALE_FORMATS[name].largest


@pytest.mark.parametrize("name", CASTS)
@given(scale=st.floats(2.0**-20, 60_000, width=32), sign=st.sampled_from([-1.0, 1.0]))
def test_what_is_no_code_goes_to_the_nearest_as_numpy_casts(
    name: str, scale: float, sign: float
) -> None:
    expected = float(np.float32(sign * scale).astype(CASTS[name]))

    assert float(stored_scale(numbers(sign * scale), name)) == expected


@pytest.mark.parametrize("name", DYADIC)
@given(scale=st.floats(2.0**-90, 100, width=32), sign=st.sampled_from([-1.0, 1.0]))
def test_a_dyadic_scale_is_the_nearest_integer_over_a_power_of_two(
    name: str, scale: float, sign: float
) -> None:
    """By fractions: of all ``m / 2^e`` with so many bits none is nearer."""
    digits = DYADIC[name] - 1
    _, exponent = frexp(scale)
    expected = Fraction(round(Fraction(scale) * Fraction(2) ** (digits - exponent))) / (
        Fraction(2) ** (digits - exponent)
    )

    found = float(stored_scale(numbers(sign * scale), name))

    assert Fraction(found) == Fraction(sign) * expected
    multiplier = Fraction(found)
    while multiplier.denominator > 1:
        multiplier *= 2
    assert abs(multiplier) < 2**digits


def test_every_multiplier_of_8_bits_is_a_scale_that_stays() -> None:
    """``m`` from 1 to 127, ``e`` over all of float32's octaves from 2^-100 on."""
    every = numbers(*(m * 2.0**-e for m in range(1, 128) for e in range(100)))

    assert torch.equal(stored_scale(every, "dyadic8"), every)
    assert torch.equal(stored_scale(-every, "dyadic8"), -every)


def test_a_multiplier_of_32_bits_holds_every_float32() -> None:
    """Whose digits are 24: HAWQ-V3's dyadic scales lose nothing, and take 8 bits more."""
    scales = torch.rand(1000, generator=torch.Generator().manual_seed(0)) + 2.0**-20

    assert torch.equal(stored_scale(scales, "dyadic"), scales)


@pytest.mark.parametrize("name", ALONE)
def test_no_scale_becomes_0_or_infinite(name: str) -> None:
    """What is beyond the ends becomes an end."""
    told = SCALE_FORMATS[name]

    found = stored_scale(numbers(2.0**-126, 3e38), name)

    assert found[0] == max(told.smallest, 2.0**-126)
    assert 0 < float(found[1]) <= told.largest < inf


E4M3 = np.arange(1, 127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
"""Every positive number of fp8."""


def test_every_code_of_fp8_is_a_scale_that_stays() -> None:
    """Times one power of two, at which the largest of the first scales is 128 to 224."""
    told, first = SCALE_FORMATS["fp8"], numbers(0.1, 0.3, 1.7)
    second = SecondScales.of(first, told)
    step = float(second.step[0])
    assert step == 2.0**-7
    assert torch.equal(second.step, second.step[:1].expand(3))
    every = torch.from_numpy(E4M3) * step
    wide = SecondScales.expanded(second.step[:1], torch.zeros(0), told, every)

    assert torch.equal(stored_scale(every, "fp8", wide), every)
    assert torch.equal(stored_scale(-every, "fp8", wide), -every)
    assert len(every) == 126


@given(st.lists(st.floats(2.0**-60, 2.0**60, width=32), min_size=1, max_size=9))
def test_scales_in_fp8_are_the_nearest_ones_of_ml_dtypes(scales: list[float]) -> None:
    """Relative to the largest: small ones are multiples of fp8's smallest, and never 0."""
    told, first = SCALE_FORMATS["fp8"], numbers(*scales)
    second = SecondScales.of(first, told)

    found = stored_scale(first, "fp8", second).numpy()

    step = second.step.numpy()
    assert 112 < first.numpy().max() / step[0] <= 224
    within = np.clip(first.numpy() / step, E4M3[0], E4M3[-1])
    assert np.array_equal(found, within.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * step)


def test_every_code_of_double_quantization_is_a_scale_that_stays() -> None:
    """``mean + q * step`` of every positive one of the 255."""
    told = SCALE_FORMATS["dq"]
    every = 0.75 + torch.arange(-127, 128) * 0.00390625
    second = SecondScales(torch.full((255,), 0.00390625), torch.full((255,), 0.75))

    assert torch.equal(stored_scale(every, "dq", second), every)
    assert torch.equal(stored_scale(every + 0.0018, "dq", second), every)
    assert float(stored_scale(numbers(9.0), "dq", second.mapped(lambda x: x[:1]))) == every[-1]
    assert told.stored_bits(255) == 255 * 8 + 64


def test_double_quantized_scales_by_the_definition() -> None:
    """In double precision, block by block of 256; the last one is short."""
    scales = torch.rand(600, generator=torch.Generator().manual_seed(1)) + 0.1
    told = SCALE_FORMATS["dq"]
    second = SecondScales.of(scales, told)

    found = stored_scale(scales, "dq", second).double().numpy()

    x = scales.double().numpy()
    mean = x.mean()
    for start in (0, 256, 512):
        block = slice(start, start + 256)
        step = (np.abs(x[block] - mean).max() + mean / 4) / 127
        codes = np.round((x[block] - mean) / step)
        np.testing.assert_allclose(found[block], mean + codes * step, rtol=1e-5)
    steps, means = second.stored_parts(told)
    assert (steps.shape, means.shape) == ((3,), (1,))
    again = SecondScales.expanded(steps, means, told, scales)
    assert torch.equal(again.step, second.step)
    assert torch.equal(again.mean, second.mean)


@given(st.lists(st.floats(2.0**-40, 2.0**20, width=32), min_size=1, max_size=300))
def test_double_quantized_scales_are_positive_and_at_most_a_step_away(scales: list[float]) -> None:
    """Also where one is so large that the others lie within a step of 0."""
    told, first = SCALE_FORMATS["dq"], numbers(*scales)
    second = SecondScales.of(first, told)

    found = stored_scale(first, "dq", second)

    assert bool((found > 0).all())
    assert bool(((found - first).abs() <= second.step * 1.001).all())
    again = stored_scale(found, "dq", second)
    torch.testing.assert_close(again, found, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", SCALE_FORMATS)
@pytest.mark.parametrize("format_and_group", ["w4", "w4g16", "w3zg16", "wnf4g16", "wfp4g16"])
def test_codes_are_computed_with_the_scale_that_is_stored(format_and_group: str, name: str) -> None:
    """The nearest numbers on the grid of the stored scales, whatever the exact ones were."""
    rows = torch.randn(6, 64, generator=torch.Generator().manual_seed(2))
    rows *= torch.logspace(-1, 1, 6)[:, None]

    found = codes_of(f"{format_and_group}s{name}", rows)

    exact = codes_of(f"{format_and_group}sfp32", rows)
    stored = stored_scale(exact.scale, name, found.second)
    assert torch.equal(found.scale, stored)
    assert torch.equal(exact.zero_point, found.zero_point)
    grouped = rows.view(6, found.num_groups, -1)
    units = grouped / stored[..., None]
    number = found.tensor_format.number
    if number.is_float:
        levels = torch.tensor(number.levels)
        expected = levels[(units[..., None] - levels).abs().argmin(dim=-1)]
        assert (found.codes.view_as(units) - expected).abs().max() <= 1e-4
    else:
        low, high = (-8, 7) if found.tensor_format.symmetric else (0, 7)
        codes = (units.round() + found.zero_point[..., None]).clamp(low, high)
        assert ((found.codes.view_as(units) - codes).abs() > 0).float().mean() < 0.01  # ties
    error = (found.numbers() - rows).square().mean()
    assert error <= 1.5 * (exact.numbers() - rows).square().mean()


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("w4g64sfp32", 32 * 8), ("w4g64sfp16", 16 * 8), ("w4g64sbf16", 16 * 8),
        ("w4g64sfp8", 8 * 8 + 32), ("w4g64sdq", 8 * 8 + 32 + 32), ("w4g64sdyadic", 40 * 8),
        ("w4g64sdyadic16", 24 * 8), ("w4g64sdyadic8", 16 * 8), ("w4sfp16", 4 * 16),
        ("w4tsbf16", 16), ("w4zg64sfp8", 8 * (8 + 4) + 32), ("wnf4g64sdq", 8 * 8 + 32 + 32),
        ("w4g1sdq", 512 * 8 + 2 * 32 + 32), ("w4g64", 16 * 8), ("w4", 4 * 32),
    ],
)  # fmt: skip
def test_bits_count_every_scale_and_what_they_share(text: str, bits: int) -> None:
    """Of 512 weights in 4 channels: a second scale for 256 of the first, one mean."""
    assert Precision.parse(text).weight.stored_bits(512, 4) == 4 * 512 + bits


def test_qlora_s_figure() -> None:
    """0.127 bits per parameter (section 3), which has no room for the mean."""
    bits = Precision.parse("wnf4g64sdq").weight.stored_bits(2**24, 4096) / 2**24

    assert bits == pytest.approx(4.127, abs=1e-3)


@pytest.mark.parametrize("name", SCALE_FORMATS)
@pytest.mark.parametrize("text", ["w4{}a32", "w4zg32{}a8", "wnf4g64{}a16", "wternaryg8{}a32"])
def test_a_type_is_written_and_read(text: str, name: str) -> None:
    """Behind the group, in front of the activation; no other spelling is changed by it."""
    spelled = text.format(f"s{name}")

    precision = Precision.parse(spelled)

    assert str(precision) == spelled
    assert precision.weight.scale == name
    plain = Precision.parse(text.format(""))
    assert plain.weight.scale is None
    assert plain != precision
    assert "scale=" not in repr(plain.weight)
    assert repr(precision.weight) == repr(plain.weight)[:-1] + f", scale={name!r})"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("w16sfp8", "fp16 has no scale, so no 'scale'"),
        ("wmxfp4sfp8", "scales of mxfp4 are stored in e8m0"),
        ("wnvfp4sbf16", "scales of nvfp4 are stored in e4m3"),
        ("w4tsfp8", "have a second scale, and one of a whole weight needs none"),
        ("w4tsdq", "have a second scale"),
        ("w4sfp9", "is not a precision"),
        ("w4sfp8g64", "is not a precision"),
        ("w4g64a8sfp8", "is not a precision"),
    ],
)
def test_scales_that_make_no_sense_are_refused(text: str, message: str) -> None:
    with pytest.raises(PrecisionError, match=message):
        Precision.parse(text)
