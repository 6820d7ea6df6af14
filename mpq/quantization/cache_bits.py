"""Bits of a key-value cache. No torch here, as prices are listed without."""

from typing import Final

from mpq.quantization.precision import Precision
from mpq.quantization.scale_formats import SCALE_FORMATS
from mpq.quantization.tensor_format import Granularity, TensorFormat

TOKEN_SCALE: Final = "fp16"
"""What scales of tokens are stored in, as KIVI stores them (Liu et al. 2024, arXiv:2402.02750)."""
_SCALE_BYTES: Final = 160
"""Of a single number in a file: dtype, shape and place, and names of the tools' around it."""


def token_bits(tensor_format: TensorFormat, num_heads: int, head_size: int) -> int:
    """Bits of one token's keys, or values, with the scales that are its own."""
    number = tensor_format.number
    codes = num_heads * head_size * number.bits
    if tensor_format.granularity is not Granularity.TOKEN:
        return codes
    point = 0 if tensor_format.symmetric else number.bits
    return codes + num_heads * (SCALE_FORMATS[TOKEN_SCALE].bits + point)


def shared_bits(tensor_format: TensorFormat, num_channels: int) -> int:
    """Bits of the scales that all tokens share, as they are computed with: in fp32."""
    counts = {Granularity.TENSOR: 1, Granularity.INPUT_CHANNEL: num_channels}
    count = counts.get(tensor_format.granularity, 0)
    point = 0 if tensor_format.symmetric else tensor_format.number.bits
    return count * (SCALE_FORMATS["fp32"].bits + point)


def cache_file_bytes(name: str, precision: Precision) -> int:
    """Of a layer's scale in a file, with what a header says of it, at most; keys are in no file."""
    return 0 if precision.activation.is_exact else len(name) + _SCALE_BYTES
