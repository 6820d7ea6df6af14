"""Weights with a codebook for every channel: levels, bytes, files and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mpq.errors import InputError, PrecisionError
from mpq.quantization.codes import Codes
from mpq.quantization.kmeans import kmeans_levels
from mpq.quantization.number_format import NumberFormat
from mpq.quantization.precision import Precision
from mpq.quantization.ranges import RANGE_METHODS
from mpq.quantization.rounding import quantize_rows, weight_grid
from mpq.quantization.stored import StoredWeights
from mpq.quantization.tensor_format import TensorFormat

NAMES = ["cb2", "cb3", "cb4"]
ROWS = torch.randn(6, 37, generator=torch.Generator().manual_seed(0))


def format_of(name: str) -> TensorFormat:
    """The weight's part of a precision."""
    return Precision.parse(f"w{name}").weight


def codes_of(name: str, rows: Tensor = ROWS) -> Codes:
    """To nearest."""
    return Codes.of(
        rows, format_of(name), weight_grid(rows, format_of(name), RANGE_METHODS.build("mse"))
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_is_the_nearest_level_of_its_channel(name: str) -> None:
    """By trying all; levels are those of k-means, in half precision."""
    bits = int(name[-1])
    expected = kmeans_levels(ROWS.double().numpy(), np.ones(ROWS.shape), 2**bits)
    levels = expected.astype(np.float16).astype(np.float64)

    found = codes_of(name).numbers()

    distance = np.abs(ROWS.double().numpy()[:, :, None] - levels[:, None])
    nearest = np.take_along_axis(levels, distance.argmin(axis=2), axis=1)
    np.testing.assert_array_equal(found.numpy(), nearest.astype(np.float32))
    grid = weight_grid(ROWS, format_of(name), RANGE_METHODS.build("minmax"))
    assert torch.equal(quantize_rows(ROWS, format_of(name), grid), found)


def test_more_levels_err_less_and_less_than_integers() -> None:
    errors = [float((codes_of(name).numbers() - ROWS).square().mean()) for name in NAMES]
    integers = [float((codes_of(bits).numbers() - ROWS).square().mean()) for bits in "234"]

    assert errors == sorted(errors, reverse=True)
    assert all(own < other for own, other in zip(errors, integers, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_every_code_comes_back(name: str) -> None:
    """From a file: codes in a byte, levels in half precision, all of them."""
    found = codes_of(name)
    kept = found.stored(ROWS)
    weights = StoredWeights("gptq", {"fc": kept})

    again = StoredWeights.from_content(weights.content, "gptq", weights.sha256)

    stored = again.by_layer["fc"]
    assert stored.why_not(format_of(name), ROWS.shape) == ""
    assert (str(stored.codes.dtype), stored.codes.max()) == ("uint8", 2 ** int(name[-1]) - 1)
    assert torch.equal(Codes.of_stored(stored, format_of(name)).numbers(), found.numbers())
    assert stored.levels is not None
    codes = np.tile(np.arange(37, dtype=np.uint8) % stored.levels.shape[1], (6, 1))
    numbers = Codes.of_stored(replace(stored, codes=codes), format_of(name)).numbers()
    np.testing.assert_array_equal(numbers, np.take_along_axis(stored.levels, codes, axis=1))


def test_files_that_contradict_the_format_are_refused() -> None:
    kept, shape = codes_of("cb3").stored(ROWS), ROWS.shape
    assert kept.levels is not None
    wrong = {
        "no codebooks of (6, 8)": replace(kept, levels=None),
        "no codebooks of (6, 8) in": replace(kept, levels=kept.levels[:, :4]),
        "not ascending": replace(kept, levels=kept.levels[:, ::-1].copy()),
        "or scaled": replace(kept, scale=kept.scale * 2),
        "reach from 8 to 8, not 0 to 7": replace(kept, codes=np.full_like(kept.codes, 8)),
    }

    for why, weight in wrong.items():
        assert why.split(" in")[0] in weight.why_not(format_of("cb3"), shape)
    assert "have codebooks" in replace(kept, codes=kept.codes.astype(np.int8)).why_not(
        Precision.parse("w4").weight, shape
    )


def test_rows_of_fewer_numbers_than_levels_are_kept_as_they_are() -> None:
    """In half precision; some levels are there twice."""
    rows = ROWS[:, :5].half().float()

    found = codes_of("cb4", rows)

    assert torch.equal(found.numbers(), rows)
    assert torch.equal(Codes.of_stored(found.stored(rows), format_of("cb4")).numbers(), rows)


@pytest.mark.parametrize(
    ("text", "bits"), [("wcb2", 4 * 4 * 16), ("wcb3a16", 4 * 8 * 16), ("cb4", 4 * 16 * 16)]
)
def test_bits_count_every_level(text: str, bits: int) -> None:
    """Of 512 weights in 4 channels."""
    precision = Precision.parse(text)

    assert precision.weight.stored_bits(512, 4) == 512 * precision.weight.number.bits + bits


@pytest.mark.parametrize("text", ["wcb3t", "wcb3g64", "wcb3sfp16"])
def test_scales_are_refused(text: str) -> None:
    with pytest.raises(PrecisionError, match="cb3 has levels for every output channel"):
        Precision.parse(text)


@pytest.mark.parametrize("text", ["wcb3z", "w8acb3"])
def test_zero_points_and_inputs_are_refused(text: str) -> None:
    with pytest.raises(PrecisionError, match="no zero point|cb3 is for weights"):
        Precision.parse(text)


@pytest.mark.parametrize(("bits", "is_float"), [(9, True), (0, True), (3, False)])
def test_a_codebook_is_of_a_float_of_up_to_8_bits(bits: int, is_float: bool) -> None:
    with pytest.raises(InputError, match="a codebook is of a float of 1 to 8 bits"):
        NumberFormat("toy", bits, is_float, 1.0, has_codebook=True)
