"""Microscaling weights against the OCP MX specification's rule, numpy, and mlx's own quantizer."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from mpq.errors import PrecisionError
from mpq.quantization.codes import Codes, packed
from mpq.quantization.formats import NUMBER_FORMATS
from mpq.quantization.microscaling import (
    block_scale_bits,
    block_scales_bits,
    element_bits,
    fits_tensor_scale,
    float_bits,
    no_whole_blocks,
    tensor_scale,
)
from mpq.quantization.numerics import OWN, Numerics
from mpq.quantization.precision import Precision
from mpq.quantization.ranges import RANGE_METHODS
from mpq.quantization.rounding import quantize_rows, weight_grid
from mpq.quantization.tensor_format import Granularity, TensorFormat

MX = ("mxfp4", "mxfp6_e3m2", "mxfp6_e2m3", "mxfp8", "mxfp8_e5m2", "mxint8")
"""Of the specification."""
MICRO = (*MX, "nvfp4")
MLX = ("mxfp4", "mxfp8", "nvfp4")
"""Those that mlx has."""
MAGNITUDES = [1e-30, 1e-6, 0.02, 1.0, 1e4, 1e30]
ALONE = Numerics(tensor_scale="none")
LARGEST_EXPONENT = {
    "mxfp4": 2, "mxfp6_e3m2": 4, "mxfp6_e2m3": 2, "mxfp8": 8, "mxfp8_e5m2": 15, "mxint8": 0,
}  # fmt: skip
"""``emax_elem`` of the specification."""

Array = npt.NDArray[np.float64]


def weight(magnitude: float = 1.0, num_inputs: int = 128) -> Tensor:
    """Normal numbers with one row of zeros and one with outliers."""
    rows = torch.randn(16, num_inputs, generator=torch.Generator().manual_seed(0))
    rows[3] = 0
    rows[5, ::17] *= 30
    return rows * magnitude


def codes_of(name: str, rows: Tensor, method: str = "mse", numerics: Numerics = OWN) -> Codes:
    """A weight's codes."""
    told = Precision.parse(name).weight
    return Codes.of(rows, told, weight_grid(rows, told, RANGE_METHODS.build(method), numerics))


def elements(name: str) -> Array:
    """Every number of an element's format, ascending, by its definition; one zero."""
    if name == "mxint8":  # two's complement, with 6 bits behind the point
        return np.sort(np.arange(256, dtype=np.uint8).view(np.int8)).astype(np.float64) * 2.0**-6
    exponents, mantissas, top = {
        "mxfp8": (16, 8, 448.0),
        "mxfp8_e5m2": (32, 4, 57344.0),
        "mxfp6_e3m2": (8, 4, 28.0),
        "mxfp6_e2m3": (4, 8, 7.5),
    }.get(name, (4, 2, 6.0))
    bias = exponents // 2 - 1
    small = [m / mantissas * 2.0 ** (1 - bias) for m in range(1, mantissas)]
    normal = [
        (1 + m / mantissas) * 2.0 ** (e - bias)
        for e in range(1, exponents)
        for m in range(mantissas)
    ]
    positive = [x for x in small + normal if x <= top]
    return np.array([*(-x for x in reversed(positive)), 0.0, *positive])


def rounded(blocks: Array, scale: Array, name: str) -> Array:
    """Nearest numbers, of two equally near ones the even code; larger ones saturate."""
    values = elements(name)
    wanted = (blocks / scale[:, None]).clip(values[0], values[-1])
    above = np.searchsorted(values, wanted).clip(1, len(values) - 1)
    pairs = np.stack([above - 1, above], axis=-1)
    distance = np.abs(wanted[..., None] - values[pairs])
    nearest = distance == distance.min(-1, keepdims=True)
    zero = int(np.argmin(np.abs(values)))  # codes count from here
    is_even = (pairs - zero) % 2 == 0
    chosen = np.argmax(nearest * (1 + is_even), axis=-1)
    code = np.take_along_axis(pairs, chosen[..., None], axis=-1)[..., 0]
    found: Array = values[code] * scale[:, None]
    return found


def errors(blocks: Array, numbers: Array) -> Array:
    """Squared, of every block."""
    found: Array = ((blocks - numbers) ** 2).sum(-1)
    return found


@pytest.mark.parametrize("name", MX)
def test_least_squares_finds_the_best_power_of_two(name: str) -> None:
    """Of all of them, so that no block is further off than by the specification's own rule."""
    rows = weight()
    blocks = rows.double().numpy().reshape(-1, 32)
    largest = np.abs(blocks).max(-1)
    middle = np.floor(np.log2(np.where(largest > 0, largest, 1.0))) - LARGEST_EXPONENT[name]

    tried = [errors(blocks, rounded(blocks, 2.0 ** (middle + step), name)) for step in range(-6, 7)]
    found = errors(blocks, codes_of(name, rows).numbers().double().numpy().reshape(-1, 32))

    np.testing.assert_allclose(found, np.min(tried, axis=0), rtol=1e-6, atol=1e-12)
    assert found.sum() <= tried[6].sum()


@pytest.mark.parametrize("name", MICRO)
@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("numerics", [Numerics(), ALONE], ids=["tensor-scale", "alone"])
def test_elements_are_the_nearest_at_the_stored_scale(
    name: str, magnitude: float, numerics: Numerics
) -> None:
    """By numpy in float64, with the scales that the codes state; nothing else is rounded."""
    rows = weight(magnitude)

    codes = codes_of(name, rows, "minmax", numerics)

    size = NUMBER_FORMATS[name].block
    blocks, scale = rows.double().numpy().reshape(-1, size), codes.scale.double().numpy()
    expected = rounded(blocks, scale.reshape(-1), name).reshape(len(rows), -1)
    np.testing.assert_array_equal(codes.numbers().double().numpy(), expected)
    told = Precision.parse(name).weight
    grid = weight_grid(rows, told, RANGE_METHODS.build("minmax"), numerics)
    assert torch.equal(quantize_rows(rows, told, grid), codes.numbers())


@pytest.mark.parametrize("method", ["minmax", "mse"])
@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("name", MLX)
def test_mlx_decodes_the_numbers_of_the_simulation(
    name: str, magnitude: float, method: str
) -> None:
    """Bit for bit; with scales by the extremes they are those of its own quantizer."""
    mx = pytest.importorskip("mlx.core")
    number, rows = NUMBER_FORMATS[name], weight(magnitude)
    codes = codes_of(name, rows, method, ALONE)
    kind: dict[str, Any] = {"group_size": number.block, "bits": number.bits, "mode": name}

    stored = packed(element_bits(codes), number.bits).view(torch.uint32)
    decoded = mx.dequantize(
        mx.array(stored.numpy()), mx.array(block_scale_bits(codes).numpy()),
        dtype=mx.float32, **kind,
    )  # fmt: skip
    own, scales = mx.quantize(mx.array(rows.numpy()), mode=name)

    np.testing.assert_array_equal(np.array(decoded), codes.numbers().numpy())
    if method == "minmax" and 1e-7 < magnitude < 1e20:
        theirs = np.array(mx.dequantize(own, scales, dtype=mx.float32, **kind))
        np.testing.assert_array_equal(theirs, codes.numbers().numpy())


@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_a_scale_of_the_whole_weight_is_a_power_of_two(magnitude: float) -> None:
    """Scales of blocks times it are numbers of fp8, the largest in its uppermost octave."""
    codes = codes_of("nvfp4", weight(magnitude))

    whole = tensor_scale(codes)
    stored = block_scale_bits(codes, whole).view(torch.float8_e4m3fn).float()

    assert np.log2(whole) % 1 == 0
    assert torch.equal(stored / whole, codes.scale)
    assert 224 < float(stored.max()) <= 448


def test_another_scale_of_the_whole_weight_may_fit() -> None:
    """Some octaves less do; more leave fp8 above, and many less below."""
    codes = codes_of("nvfp4", weight(0.02))
    whole = tensor_scale(codes)

    fits = [fits_tensor_scale(codes, whole * 2.0**step) for step in (-30, -3, 0, 1)]

    assert fits == [False, True, True, False]


def test_a_scale_of_the_whole_weight_makes_magnitudes_alike() -> None:
    """Small weights lose as much as large ones; without it they fall below fp8's numbers."""

    def loss(magnitude: float, numerics: Numerics) -> float:
        rows = weight(magnitude)
        found = codes_of("nvfp4", rows, "mse", numerics).numbers()
        return float(((found - rows) / magnitude).square().sum())

    assert loss(2.0**-40, Numerics()) == loss(1.0, Numerics())
    assert loss(2.0**-40, ALONE) > 10 * loss(1.0, ALONE)


@pytest.mark.parametrize("name", [name for name in MICRO if name != "mxint8"])
def test_bits_of_elements_are_their_rank(name: str) -> None:
    """Ascending from 0, the sign in the highest bit; a negative zero is a zero."""
    number, every = NUMBER_FORMATS[name], torch.from_numpy(elements(name)).float()
    values = every[every >= 0]

    found = float_bits(torch.cat([values, -values]), number).tolist()

    sign = 2 ** (number.bits - 1)
    expected = list(range(len(values)))
    assert found == [*expected, 0, *(code + sign for code in expected[1:])]
    if number.torch_dtype is not None:
        cast = values.to(getattr(torch, number.torch_dtype))
        assert found[: len(values)] == cast.view(torch.uint8).tolist()


@pytest.mark.parametrize("name", MX)
def test_every_power_of_two_is_a_scale(name: str) -> None:
    """A block's largest number is its format's times one: this one; the next, where it is above."""
    top = NUMBER_FORMATS[name].max_value
    exponents = torch.arange(-126, 100)
    powers = torch.tensor([2.0 ** int(e) for e in exponents], dtype=torch.float64)

    for slightly, more in ((1.0, 0), (1.0001, 1)):
        rows = (powers * top * slightly).float()[:, None].expand(-1, 32)
        found = codes_of(name, rows.clone(), "minmax")
        assert torch.equal(found.scale[:, 0].double(), powers * 2**more)
        assert block_scale_bits(found)[:, 0].tolist() == (exponents + 127 + more).tolist()


@pytest.mark.parametrize("name", MICRO)
def test_the_last_block_may_be_short(name: str) -> None:
    """It is filled up with zeros, which change nothing."""
    rows = weight(num_inputs=40)
    told = Precision.parse(name).weight
    padded = torch.nn.functional.pad(rows, (0, 24))

    short, whole = codes_of(name, rows), codes_of(name, padded)

    assert torch.equal(short.numbers(), whole.numbers()[:, :40])
    assert "40 inputs are no whole groups" in no_whole_blocks(told, 40)
    assert no_whole_blocks(told, 64) == ""


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("mxfp4", 4.25),
        ("mxfp6_e3m2", 6.25),
        ("mxfp6_e2m3", 6.25),
        ("mxfp8", 8.25),
        ("mxfp8_e5m2", 8.25),
        ("mxint8", 8.25),
        ("nvfp4", 4.5 + 32 / 4096),
    ],
)
def test_bits_of_a_weight(name: str, bits: float) -> None:
    """Scales of blocks have 8 bits; nvfp4 has one of 32 bits more, where the file does."""
    told = Precision.parse(name).weight

    assert told.stored_bits(64 * 64, 64) / 4096 == bits
    whole = 4096 * told.number.bits
    num_scales = told.num_scales(4096, 64)
    assert whole + block_scales_bits(told, num_scales, Numerics()) == bits * 4096
    assert (whole + block_scales_bits(told, num_scales, ALONE)) / 4096 == round(bits * 4) / 4


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("wmxfp4g32", "mxfp4 has groups of 32 by itself; write wmxfp4a32"),
        ("wnvfp4t", "nvfp4 has groups of 16 by itself"),
        ("wmxfp8z", "mxfp8 is symmetric: it has no zero point"),
        ("w4amxfp4", "mxfp4 is for weights; write wmxfp4a32"),
        ("wnvfp4anvfp4", "nvfp4 is for weights"),
    ],
)
def test_what_is_no_microscaling_precision_is_refused(spelling: str, message: str) -> None:
    """With what to write instead."""
    with pytest.raises(PrecisionError, match=message):
        Precision.parse(spelling)


@pytest.mark.parametrize("group", [None, 16, 64])
def test_blocks_have_one_size(group: int | None) -> None:
    """That of the format, also for a format that is put together by hand."""
    granularity = Granularity.CHANNEL if group is None else Granularity.GROUP
    with pytest.raises(PrecisionError, match="mxfp4 has groups of 32"):
        TensorFormat(NUMBER_FORMATS["mxfp4"], granularity, group_size=group)


@pytest.mark.parametrize("name", MICRO)
def test_a_weight_without_numbers_has_none(name: str) -> None:
    """No largest number is asked for."""
    told = Precision.parse(name).weight

    grid = weight_grid(torch.zeros(0, 32), told, RANGE_METHODS.build("minmax"))

    assert grid.scale.shape == (0,)
