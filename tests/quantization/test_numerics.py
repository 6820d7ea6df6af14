"""Numerics: what a target computes otherwise, against formulas that share no code with ours."""

import pytest
import torch

from mpq.errors import InputError
from mpq.quantization.blocks import block_of, round_blocks
from mpq.quantization.numerics import Numerics
from mpq.quantization.precision import Precision
from mpq.quantization.ranges import ActivationRange
from mpq.quantization.rounding import quantize_activation


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
