"""Large weights are worked on some rows at a time: the same numbers, in little memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mpq.quantization import range_search, rounding
from mpq.quantization.formats import NUMBER_FORMATS
from mpq.quantization.grid import Grid
from mpq.quantization.precision import Precision
from mpq.quantization.ranges import RANGE_METHODS, LeastSquares
from mpq.quantization.rounding import quantize_rows, row_tiles, weight_grid
from mpq.quantization.tensor_format import TensorFormat
from tests.largest import Largest

SPELLINGS = (
    "w2", "w4g64", "w3g50", "w8t", "w4z", "w4zf", "w5zfg64", "wfp8", "wfp4_e2m1", "wnf4",
    "wternary", "wbinary", "wmxfp4", "wnvfp4", "wmxfp8", "wcb2", "wbf16", "w4g64sfp8",
)  # fmt: skip


def weights(dtype: torch.dtype, channels: int = 37, inputs: int = 200) -> Tensor:
    """``[O, K]`` with some large numbers."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(channels, inputs, generator=generator)
    return (numbers * torch.rand(channels, 1, generator=generator)).pow(3).to(dtype)


def weight_format(text: str) -> TensorFormat:
    """Of a weight."""
    return Precision.parse(text).weight


def grids_and_numbers(
    rows: Tensor, wanted: TensorFormat, method: str
) -> tuple[Grid | None, Tensor]:
    """As a quantizer makes them."""
    made = None
    if wanted.number.needs_scale:
        made = weight_grid(rows, wanted, RANGE_METHODS.build(method))
    return made, quantize_rows(rows, wanted, made)


@pytest.mark.parametrize("method", ["mse", "percentile"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_tiles_give_what_the_whole_weight_gives(
    spelling: str, dtype: torch.dtype, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit: scales, zero points, levels and rounded numbers."""
    rows, wanted = weights(dtype), weight_format(spelling)
    whole, expected = grids_and_numbers(rows, wanted, method)

    monkeypatch.setattr(rounding, "NUMBERS_AT_ONCE", 7 * rows.shape[1])
    assert len(list(row_tiles(rows))) == 6
    tiled, found = grids_and_numbers(rows, wanted, method)

    assert torch.equal(found, expected)
    if whole is not None and tiled is not None:
        assert torch.equal(tiled.scale, whole.scale)
        assert torch.equal(tiled.zero_point, whole.zero_point)
        for a, b in ((tiled.levels, whole.levels), (tiled.scale, whole.scale)):
            assert (a is None) == (b is None)
            assert a is None or b is None or torch.equal(a, b)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group", [None, 64])
def test_scales_are_the_best_of_forty(bits: int, group: int | None) -> None:
    """Of a weight of several tiles, against all forty tried in numpy, double precision."""
    rows = weights(torch.float32, 300, 1024)
    wanted = weight_format(f"w{bits}" if group is None else f"w{bits}g{group}sfp32")
    assert rows.numel() > range_search.NUMBERS_AT_ONCE

    found = weight_grid(rows, wanted, LeastSquares(40, num_halvings=0))

    shared = rows.double().numpy().reshape(-1, group or 1024)
    low, high = 2.0 ** (bits - 1), 2.0 ** (bits - 1) - 1
    largest = np.maximum(-shared.min(1) / low, shared.max(1) / high)
    errors, scales = [], []
    for factor in torch.linspace(1.0, 0.2, 40).double().numpy():
        scale = (factor * largest)[:, None]
        rounded = np.clip(np.round(shared / scale), -low, high) * scale
        errors.append(np.square(rounded - shared).sum(1))
        scales.append(scale[:, 0])
    best = np.take_along_axis(np.array(scales), np.argmin(errors, 0)[None], 0)[0]
    # Two of the forty may be as good as each other up to float32's digits.
    same = np.isclose(found.scale.double().numpy(), best, rtol=1e-6)
    assert same.mean() > 0.999


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_long_row_is_summed_in_pieces(symmetric: bool, dtype: torch.dtype) -> None:
    """The best of all ranges by a sum in double precision over the whole row."""
    row = weights(dtype, 1, 5 * range_search.LONG_ROW // 2)
    number = NUMBER_FORMATS["int4"]

    ends = LeastSquares(40, num_halvings=0).ends(row, number, symmetric)

    def error(factor: float) -> float:
        low, high = (float(end.float()) * factor for end in (row.amin(), row.amax()))
        step, point = (max(-low / 8, high / 7), 0) if symmetric else ((high - low) / 15, 0)
        point = 0 if symmetric else round(-low / step)
        first, last = (-8, 7) if symmetric else (0, 15)
        x = row.double()
        rounded = ((x / step).round() + point).clamp(first, last).sub(point) * step
        return float((rounded - x).square().sum())

    factors = np.linspace(1, 0.2, 40)
    best = factors[np.argmin([error(factor) for factor in factors])]
    assert float(ends[0]) == pytest.approx(best * float(row.amin()), rel=1e-6)
    assert float(ends[1]) == pytest.approx(best * float(row.amax()), rel=1e-6)


@pytest.mark.parametrize(
    "spelling",
    ["w4", "w4g64", "w4t", "w4zg64", "w4zf", "w4zfg64", "wfp8", "wnvfp4", "wbf16", "wternary"],
)
def test_no_float32_copy_of_a_bf16_weight(spelling: str) -> None:
    """Neither by looking for ranges nor by rounding: tiles are all that is ever widened."""
    rows, wanted = weights(torch.bfloat16, 600, 4096), weight_format(spelling)

    with Largest() as largest:
        _, found = grids_and_numbers(rows, wanted, "mse")

    assert found.dtype is torch.bfloat16
    # Forty scales for each block of 16 are more numbers than the tile itself.
    assert largest.numel <= 3 * range_search.NUMBERS_AT_ONCE < rows.numel() // 3


def test_a_part_of_a_grid_has_the_scales_of_its_rows() -> None:
    """Of groups several each; one of the whole weight is that of every part."""
    rows = weights(torch.float32)
    for spelling, each in (("w4", 1), ("w4g50", 4), ("w4t", 0), ("wcb2", 1)):
        made = weight_grid(rows, weight_format(spelling), LeastSquares())
        part = made.part(slice(5, 9), len(rows))

        assert len(part.scale) == (4 * each or 1)
        whole = quantize_rows(rows, weight_format(spelling), made)
        some = quantize_rows(rows[5:9], weight_format(spelling), replace(part, second=None))
        assert torch.equal(some, whole[5:9])
