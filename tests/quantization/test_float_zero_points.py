"""Zero points that are fractions, by their definition and beside those that are codes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mpq.errors import PrecisionError
from mpq.quantization.codes import Codes
from mpq.quantization.precision import Precision
from mpq.quantization.ranges import RANGE_METHODS
from mpq.quantization.rounding import weight_grid
from mpq.rounding.coordinate_descent import refitted
from mpq.rounding.objective import Objective, largest
from tests.rounding.cases import layer, stack_of


def codes_of(spelling: str, rows: Tensor, method: str = "minmax") -> Codes:
    """A weight, rounded to nearest."""
    told = Precision.parse(spelling).weight
    return Codes.of(rows, told, weight_grid(rows, told, RANGE_METHODS.build(method)))


def some_rows(offset: float = 0.0) -> Tensor:
    """Six rows of 40 numbers."""
    return torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) + offset


@pytest.mark.parametrize("offset", [0.0, 5.0, -5.0])
@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_equal_numpy(bits: int, offset: float) -> None:
    """``s (q - z)`` between the ends of every row, of which 0 need not be one."""
    rows, levels = some_rows(offset), 2**bits - 1

    found = codes_of(f"w{bits}zf", rows)

    x = rows.double().numpy()
    low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
    scale = (high - low) / levels
    codes = np.clip(np.round((x - low) / scale), 0, levels)
    np.testing.assert_allclose(found.numbers().numpy(), low + codes * scale, atol=2e-6)
    np.testing.assert_allclose(found.zero_point.numpy(), -low / scale, rtol=1e-4)


@pytest.mark.parametrize("scale", ["", "sfp8", "sbf16"])
@pytest.mark.parametrize("method", ["minmax", "mse"])
@pytest.mark.parametrize("spread", [1e-2, 1e-4, 1e-6, 0.0])
def test_groups_of_nearly_equal_numbers_far_from_0(spread: float, method: str, scale: str) -> None:
    """At the scale of their spread zero points would be beyond fp16: they keep their mean."""
    rows = some_rows() * spread + 300.0

    found = codes_of(f"w4zfg8{scale}", rows, method).numbers()

    assert ((found - rows).abs() / rows).max() < 1e-3


def test_numbers_whose_squares_overflow() -> None:
    """Least squares through codes leaves the ends where its sums are infinite."""
    rows = some_rows() * 1e37

    found = codes_of("w8zf", rows, "mse").numbers()

    assert ((found - rows).abs().amax(dim=1) / rows.abs().amax(dim=1)).max() < 0.01


def test_of_groups_they_are_stored_in_half_precision() -> None:
    """As their scales are; codes are computed with what is stored."""
    rows = some_rows(0.3)

    found = codes_of("w4zfg16", rows)

    assert torch.equal(found.zero_point, found.zero_point.half().float())
    assert not torch.equal(found.zero_point, found.zero_point.round())
    grouped = torch.nn.functional.pad(rows, (0, 8)).view(6, 3, 16)
    units = grouped / found.scale[..., None] + found.zero_point[..., None]
    codes = units.round().clamp(0, 15).view(6, -1)[:, :40]
    assert ((found.codes[:, :40] - codes).abs() > 0).float().mean() < 0.01  # ties


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize("spelling", ["w3{}", "w4{}g8", "w4t{}"])
def test_where_no_number_is_near_0_fractions_err_less(spelling: str, method: str) -> None:
    """A zero point that is a code has 0 within its range."""
    rows = some_rows(8.0)

    fraction, whole = (codes_of(spelling.format(z), rows, method).numbers() for z in ("zf", "z"))

    assert (fraction - rows).square().mean() < 0.5 * (whole - rows).square().mean()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_range_of_least_squares_is_a_line_through_its_codes(bits: int) -> None:
    """Of `mse`: by numpy's fit, of scale and zero point at once; and better than codes as zeros."""
    rows = torch.randn(6, 400, generator=torch.Generator().manual_seed(4)).exp()

    found = codes_of(f"w{bits}zf", rows, "mse")

    for row in range(6):
        if bits < 8:  # where turns have come to their end
            codes, numbers = found.codes[row].double().numpy(), rows[row].double().numpy()
            slope, offset = np.polyfit(codes, numbers, 1)
            scale, point = float(found.scale[row, 0]), float(found.zero_point[row, 0])
            assert scale == pytest.approx(slope, rel=0.02)
            assert -point * scale == pytest.approx(offset, abs=0.2 * scale)
    finest = "mse:num_shrinks=40,num_halvings=0"
    fraction, whole = (codes_of(f"w{bits}{z}", rows, finest).numbers() for z in ("zf", "z"))
    assert (fraction - rows).square().mean() < (whole - rows).square().mean()


@pytest.mark.parametrize("norm", [1.0, 2.4])
def test_other_norms_are_not_fitted_by_squares(norm: float) -> None:
    """The shrunken range around the middle, which adds up as the norm says."""
    rows = some_rows(3.0)

    found = codes_of("w4zf", rows, f"mse:norm={norm}")

    low, high = -found.scale * found.zero_point, found.scale * (15 - found.zero_point)
    middle = (rows.amax(dim=1) + rows.amin(dim=1)) / 2
    torch.testing.assert_close((low + high)[:, 0] / 2, middle, rtol=0, atol=0.05)


@pytest.mark.parametrize("spelling", ["w2zf", "w4zfg8", "w8tzf"])
def test_rows_of_one_number_are_kept(spelling: str) -> None:
    """There is no line through them."""
    rows = torch.tensor([0.0, 1.0, -7.0])[:, None].expand(3, 16).contiguous()
    rows = rows[:1] * 0 + 2.5 if "t" in spelling else rows

    found = codes_of(spelling, rows, "mse").numbers()

    torch.testing.assert_close(found, rows, rtol=1e-3, atol=1e-30)


def test_refitted_scales_and_zero_points_are_the_least_squares_solution() -> None:
    """Both in turn, of groups in turn, reach what solving for all of them at once gives."""
    rows, moment = layer(3, 12)
    stack, start = stack_of(rows + 0.4, "w3zf")
    objective = Objective.of(moment[0], 0.01)
    codes = start.codes.mT

    found = stack
    for _ in range(2000):
        found = refitted(objective, found, codes)

    form = objective.form.double().numpy()
    for row in range(3):
        parts = np.stack([start.codes[row].double().numpy(), np.ones(12)], axis=1)
        target = (rows + 0.4)[row].double().numpy()
        scale, offset = np.linalg.solve(parts.T @ form @ parts, parts.T @ form @ target)
        assert float(found.scale[0, row]) == pytest.approx(scale, rel=1e-2)
        assert float(found.zero_point[0, row]) == pytest.approx(-offset / scale, rel=1e-2)
    after, before = (objective.of_codes(x, codes, largest(stack)) for x in (found, stack))
    assert (after <= before * 1.0001).all()


def test_zero_points_that_are_codes_stay_in_a_refit() -> None:
    rows, moment = layer(3, 12)
    stack, start = stack_of(rows, "w3z")

    found = refitted(Objective.of(moment[0], 0.01), stack, start.codes.mT)

    assert torch.equal(found.zero_point, stack.zero_point)
    assert not torch.equal(found.scale, stack.scale)


@pytest.mark.parametrize(
    ("text", "bits"),
    [("w4zf", 4 * (32 + 32)), ("w4tzf", 64), ("w4zfg64", 8 * (16 + 16)),
     ("w4zfg64sfp8", 8 * (8 + 16) + 32), ("w4zg64", 8 * (16 + 4))],
)  # fmt: skip
def test_a_fraction_has_the_bits_of_a_usual_scale(text: str, bits: int) -> None:
    """Of 512 weights in 4 channels."""
    assert Precision.parse(text).weight.stored_bits(512, 4) == 4 * 512 + bits


@pytest.mark.parametrize("text", ["w4zfg64a16", "w8tzfa8", "w2zfg32sdqa32", "w3zfa32"])
def test_they_are_written_and_read(text: str) -> None:
    """And are no other spelling's."""
    precision = Precision.parse(text)

    assert str(precision) == text
    assert precision.weight.float_zero
    assert precision != Precision.parse(text.replace("zf", "z"))
    assert repr(precision.weight).endswith(", float_zero=True)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("w9zf", "affine integers of up to 8 bits; got int9"),
        ("wfp8zf", "fp8_e4m3 is symmetric: it has no zero point"),
        ("w16zf", "fp16 has no scale, so no 'zero'"),
        ("mxfp4zf", "is not a precision"),
        ("w4fz", "is not a precision"),
    ],
)
def test_fractions_that_make_no_sense_are_refused(text: str, message: str) -> None:
    with pytest.raises(PrecisionError, match=message):
        Precision.parse(text)


def test_a_symmetric_format_has_none() -> None:
    with pytest.raises(PrecisionError, match="zero points that are fractions"):
        replace(Precision.parse("w4").weight, float_zero=True)


def test_whole_ones_are_no_fractions_in_a_file() -> None:
    """Their dtype says which they are."""
    rows = torch.randn(10, 8)
    kept = codes_of("w4z", rows).stored(rows)
    others = codes_of("w4zf", rows).stored(rows)

    assert "have zero points of int32" in kept.why_not(Precision.parse("w4zf").weight, (10, 8))
    assert "have zero points of float32" in others.why_not(Precision.parse("w4z").weight, (10, 8))
    assert others.why_not(Precision.parse("w4zf").weight, (10, 8)) == ""
