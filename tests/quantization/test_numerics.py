"""Numerics: what a target computes otherwise, against formulas that share no code with ours."""

from typing import Any

import numpy as np
import pytest
import torch

from mpq.errors import InputError
from mpq.quantization.blocks import block_of, round_blocks
from mpq.quantization.numerics import InputRounding, Numerics, ScaleType
from mpq.quantization.precision import Precision
from mpq.quantization.range_method import ActivationRange
from mpq.quantization.ranges import RANGE_METHODS
from mpq.quantization.rounding import quantize_activation, weight_grid
from mpq.quantization.scale_formats import SCALE_FORMATS


def tokens() -> torch.Tensor:
    """Tokens of unlike size, one of them 0."""
    x = (
        torch.randn(5, 7, 64, generator=torch.Generator().manual_seed(0))
        * torch.logspace(-3, 2, 7)[:, None]
    )
    x[1, 2] = 0
    return x


def test_symmetric_dynamic_by_127_and_a_half() -> None:
    """As torchao and compressed-tensors: the largest number lies half a code beyond the last."""
    x, told = tokens(), Precision.parse("w8a8sd").activation
    numerics = Numerics(symmetric_dynamic="amax/127.5", input_rounding="quotient")

    found = quantize_activation(x, told, None, 1, numerics)

    scale = (x.abs().amax(-1, keepdim=True) / 127.5).clamp_min(1.1920929e-07)
    assert torch.equal(found, torch.clamp(x / scale, -128, 127).round() * scale)


@pytest.mark.parametrize("spelling", ["w8a8", "w8a8s", "w8a4"])
def test_quotients_are_divided_shifted_cut_and_rounded(spelling: str) -> None:
    """In this order, on signed codes, as compressed-tensors' fake quantization."""
    x, told = tokens(), Precision.parse(spelling).activation
    ends, levels = ActivationRange(-1.5, 4.0), 2**told.number.bits

    found = quantize_activation(x, told, ends, 1, Numerics(input_rounding="quotient"))

    half = levels // 2
    if told.symmetric:
        scale, point = torch.tensor(max(1.5 / half, 4.0 / (half - 1))), torch.tensor(0.0)
    else:
        scale = torch.tensor(5.5) / (levels - 1)
        point = torch.round(torch.tensor(1.5) / scale) - half
    codes = torch.clamp(x / scale + point, -half, half - 1).round()
    assert torch.equal(found, (codes - point) * scale)


@pytest.mark.parametrize("spelling", ["w8a8", "w8a8s", "w8a4"])
def test_rounded_quotients_are_shifted_afterwards(spelling: str) -> None:
    """As ONNX defines QuantizeLinear; the difference shows at ties, with an odd zero point."""
    told = Precision.parse(spelling).activation
    ends, levels = ActivationRange(-3 / 8, (2**told.number.bits - 4) / 8), 2**told.number.bits
    x = torch.arange(-40, 40)[None] / 16

    found = quantize_activation(x, told, ends, 1, Numerics(input_rounding="rounded-quotient"))

    half = levels // 2
    if told.symmetric:
        scale, point, low = torch.tensor((levels - 4) / 8 / (half - 1)), 0, -half
    else:
        scale, point, low = torch.tensor(1 / 8), 3, 0
    codes = ((x / scale).round() + point).clamp(low, low + levels - 1)
    assert torch.equal(found, (codes - point) * scale)
    if not told.symmetric:
        other = quantize_activation(x, told, ends, 1, Numerics(input_rounding="quotient"))
        assert not torch.equal(found, other)


@pytest.mark.parametrize("block", [32, 256])
def test_blocks_are_int8_with_a_scale_of_their_own(block: int) -> None:
    """No number is further from its code than half a step of its block; zeros stay zeros."""
    x = torch.randn(3, 512, generator=torch.Generator().manual_seed(1))
    x[0, :256] = 0

    found = round_blocks(x, block)

    step = x.reshape(-1, block).abs().amax(1, keepdim=True) / 127
    error = (found - x).reshape(-1, block).abs()
    # fp16 rounds a scale by up to 2^-11 of itself, which counts 127 times.
    assert bool((error <= step * (0.5 + 127 * 2.0**-11 + 1e-3)).all())
    assert bool((found[0, :256] == 0).all())


@pytest.mark.parametrize(
    ("spelling", "num_inputs", "block"),
    [
        ("w4a32", 512, 256), ("w4a32", 96, 32), ("w8a32", 512, 32), ("w4g32a32", 512, 32),
        ("w4a32", 40, None),
    ],
)  # fmt: skip
def test_blocks_are_those_of_the_types_in_the_file(
    spelling: str, num_inputs: int, block: int | None
) -> None:
    """Super-blocks where whole rows of them are, of up to 6 bits without groups."""
    assert block_of(Precision.parse(spelling).weight, num_inputs) == block


def test_unknown_numerics_are_refused() -> None:
    """With what there is."""
    with pytest.raises(InputError, match="scale is one of fp32, fp16, bf16; got 'fp64'"):
        Numerics(scale="fp64")  # type: ignore[arg-type]


DTYPES: dict[ScaleType, torch.dtype] = {
    "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16
}  # fmt: skip


@pytest.mark.parametrize("scale_type", DTYPES)
def test_the_ends_of_scales_are_those_of_their_dtype(scale_type: ScaleType) -> None:
    """The largest number of each; the smallest normal one, or of fp16 the smallest of all."""
    told = torch.finfo(DTYPES[scale_type])

    smallest = told.smallest_normal * (told.eps if scale_type == "fp16" else 1)

    assert SCALE_FORMATS[scale_type].smallest == smallest
    assert SCALE_FORMATS[scale_type].largest == told.max


@pytest.mark.parametrize("spelling", ["w8", "w8g4", "w8t"])
@pytest.mark.parametrize("scale_type", DTYPES)
def test_scales_are_stored_in_their_dtype(spelling: str, scale_type: ScaleType) -> None:
    """Before the codes are computed, and never as 0 or as infinity, which are no scales."""
    told, is_group = Precision.parse(spelling).weight, "g" in spelling
    kept = Numerics(group_scale="fp32")
    numerics = (
        Numerics(group_scale=scale_type)
        if is_group
        else Numerics(scale=scale_type, group_scale="fp32")
    )
    method = RANGE_METHODS.build("minmax")
    for size in (1e-37, 1e-20, 1e-6, 0.3, 1e3, 1e8, 1e38):
        rows = torch.tensor([[size, -size / 3, 0.0, size / 7]])
        exact = weight_grid(rows, told, method, kept).scale

        found = weight_grid(rows, told, method, numerics).scale

        dtype = DTYPES[scale_type]
        smallest = {torch.float16: 2.0**-24}.get(dtype, torch.finfo(dtype).smallest_normal)
        cut = min(max(float(exact), smallest), torch.finfo(dtype).max)
        assert found.dtype == torch.float32
        assert float(found) == float(torch.tensor(cut).to(dtype)) > 0
        assert bool(found.isfinite())


@pytest.mark.parametrize("field", ["scale", "group_scale", "symmetric_dynamic", "input_rounding"])
def test_each_field_of_numerics_is_checked(field: str) -> None:
    """By its own values: what another field takes is none of them."""
    changed: dict[str, Any] = {field: "llama.cpp"}

    with pytest.raises(InputError, match=f"^numerics: {field} is one of .*; got 'llama.cpp'$"):
        Numerics(**changed)
    assert Numerics(float_inputs="llama.cpp").float_inputs == "llama.cpp"


@pytest.mark.parametrize(
    ("spelling", "num_inputs", "block"),
    [
        *[(f"w{bits}a32", 256, 256) for bits in range(2, 7)],
        *[(f"w{bits}a32", 256, 32) for bits in (7, 8)],
        ("w4a32", 255, None), ("w4a32", 257, None), ("w4a32", 32, 32), ("w4a32", 64, 32),
        ("w4a32", 31, None), ("w4a32", 33, None), ("w4a32", 288, 32), ("w4a32", 768, 256),
        ("w4g256a32", 512, 256), ("w4g512a32", 512, 256), ("w4g128a32", 512, 32),
        ("w4g256a32", 288, 32), ("w4g257a32", 512, 32), ("w4g32a32", 40, None),
    ],
)  # fmt: skip
def test_super_blocks_need_whole_rows_and_whole_groups(
    spelling: str, num_inputs: int, block: int | None
) -> None:
    """Of up to 6 bits; all others have blocks of 32, if their rows divide."""
    assert block_of(Precision.parse(spelling).weight, num_inputs) == block


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [32, 256])
def test_blocks_are_what_a_loop_rounds(block: int, dtype: torch.dtype) -> None:
    """To the nearest code, block by block in numpy; only a block of 32 has its scale in fp16."""
    x = torch.randn(2, 3, 256, generator=torch.Generator().manual_seed(2)).to(dtype)
    x[1, 1] = 0

    found = round_blocks(x, block)

    assert found.dtype == dtype
    assert found.shape == x.shape
    blocks = (t.float().numpy().reshape(-1, block) for t in (x, found))
    for some, rounded in zip(*blocks, strict=True):
        scale = np.abs(some).max() / np.float32(127)
        stored = np.float32(np.float16(scale)) if block == 32 else scale
        codes = np.round(rounded / (stored or 1))
        assert np.abs(some / (scale or 1) - codes).max() <= 0.5 + 1e-5
        assert torch.equal(torch.tensor(codes * stored).to(dtype).float(), torch.tensor(rounded))


@pytest.mark.parametrize("rounding", ["reciprocal", "rounded-quotient", "quotient"])
def test_ties_are_those_of_the_arithmetic(rounding: InputRounding) -> None:
    """In float32 a product with a reciprocal is no quotient: half a code away they part."""
    told, ends = Precision.parse("w8a8").activation, ActivationRange(0.0, 23.7)
    scale = np.float32(23.7) / np.float32(255)
    x = ((np.arange(255, dtype=np.float32) + np.float32(0.5)) * scale).astype(np.float32)

    found = quantize_activation(
        torch.tensor(x)[None], told, ends, 1, Numerics(input_rounding=rounding)
    )[0]

    quotients, products = x / scale, x * (np.float32(1) / scale)
    assert (np.round(quotients) != np.round(products)).any()
    if rounding == "quotient":  # the zero point is added before rounding
        codes = np.round(np.clip(quotients - np.float32(128), -128, 127)) + 128
    else:
        codes = np.clip(np.round(products if rounding == "reciprocal" else quotients), 0, 255)
    assert torch.equal((found / torch.tensor(scale)).round(), torch.tensor(codes))
