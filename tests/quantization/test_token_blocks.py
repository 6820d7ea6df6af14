"""Blocks of input channels with scales, and bits, of their own."""

import pytest
import torch
from torch import Tensor

from mpq.errors import PrecisionError
from mpq.quantization.precision import Precision
from mpq.quantization.rounding import quantize_activation
from mpq.quantization.tensor_format import TensorFormat
from mpq.quantization.token_blocks import from_blocks, to_blocks


def activation(text: str) -> TensorFormat:
    return Precision.parse(f"w8{text}").activation


def affine(x: Tensor, bits: int) -> Tensor:
    """All numbers with one scale and zero point."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = (high - low) / (2**bits - 1)
    zero = round(-low / scale)
    found: Tensor = (((x / scale).round() + zero).clamp(0, 2**bits - 1) - zero) * scale
    return found


def test_every_block_of_every_token_is_rounded_by_itself() -> None:
    """At its own bits; the last block is short."""
    x = torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(0))
    x[..., 4:8] *= 30

    found = quantize_activation(x, activation("a[4,8]dg4:10/4x010"), None, token_axes=1)

    for start, bits in ((0, 4), (4, 8), (8, 4)):
        for row, rounded in zip(x.view(-1, 10), found.view(-1, 10), strict=True):
            expected = affine(row[start : start + 4], bits)
            torch.testing.assert_close(rounded[start : start + 4], expected)


def test_a_block_of_a_convolution_has_all_positions() -> None:
    """Of each example; channels are the second axis."""
    x = torch.randn(2, 6, 3, 2, generator=torch.Generator().manual_seed(0))

    found = quantize_activation(x, activation("a4dg4"), None, token_axes=3, channel_axis=-3)

    for example, rounded in zip(x, found, strict=True):
        torch.testing.assert_close(rounded[:4], affine(example[:4], 4))
        torch.testing.assert_close(rounded[4:], affine(example[4:], 4))


@pytest.mark.parametrize(("shape", "axes", "axis"), [((2, 5, 7), 1, -1), ((3, 7, 2, 2), 3, -3)])
def test_blocks_go_back_to_where_they_were(shape: tuple[int, ...], axes: int, axis: int) -> None:
    """Filled up with zeros, which are cut off again."""
    x = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)

    blocks = to_blocks(x, 3, axes, axis)

    assert blocks.shape[1] == 3
    assert blocks.sum() == x.sum()
    assert torch.equal(from_blocks(blocks, x, 3, axis), x)


def test_blocks_of_blocks_share_bits() -> None:
    """Two scales in each block of eight; the same as eight scales with these bits."""
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))

    wide = quantize_activation(x, activation("a[4,8]dg4:16/8x01"), None, 1)
    narrow = quantize_activation(x, activation("a[4,8]dg4:16/4x0011"), None, 1)

    assert torch.equal(wide, narrow)


@pytest.mark.parametrize(
    "text", ["w4a4dg128", "w4a[4,8]sdg2:4/2x01", "w[2,4]g64:0110a[3,8]dg2:6/2x010", "w8a8dg64"]
)
def test_what_is_written_is_read(text: str) -> None:
    """Also beside a weight whose channels have bits of their own."""
    assert str(Precision.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("w4a[4,8]d:4/2x01", "scales of their own"),
        ("w4a[4,8]dg2", "a digit for each"),
        ("w4a4dg2:4/2x01", "a digit for each"),
        ("w4a[4,8]dg3:4/2x01", "no whole groups of 3"),
        ("w4a[4,8]dg2:4/2x00", "each width occurs"),
    ],
)
def test_what_contradicts_itself_is_refused(text: str, match: str) -> None:
    """With what is missing."""
    with pytest.raises(PrecisionError, match=match):
        Precision.parse(text)


def test_another_number_of_channels_is_refused() -> None:
    """Blocks are of what one layer reads."""
    with pytest.raises(PrecisionError, match="of 16 channels, and a layer reads 8"):
        quantize_activation(torch.randn(2, 8), activation("a[4,8]dg8:16/8x01"), None, 1)
