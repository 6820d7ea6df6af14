"""Microscaling weights as files hold them: the bits of their elements and of their scales.

Elements of mxfp4 and nvfp4 are E2M1, those of mxfp8 E4M3, others say theirs in their name; scales
of blocks are E8M0, and E4M3 in nvfp4, with one more scale for the whole weight. OCP Microscaling
Formats (MX) 1.0, 2023.
"""

import torch
from torch import Tensor

from mpq.quantization.codes import Codes
from mpq.quantization.number_format import NumberFormat
from mpq.quantization.numerics import Numerics
from mpq.quantization.tensor_format import BLOCK_SCALE_BITS, SCALE_BITS, TensorFormat


def element_bits(codes: Codes) -> Tensor:
    """``[O, K]`` int32: sign, exponent and mantissa of every element, from 0 to ``2^bits - 1``.

    Args:
        codes: Of a floating-point format of up to 8 bits, with an exponent.
    """
    return float_bits(codes.codes[:, : codes.num_inputs], codes.tensor_format.number)


def float_bits(numbers: Tensor, number: NumberFormat) -> Tensor:
    """Bits of numbers that a floating-point format holds; 0 is positive.

    >>> from mpq.quantization.formats import NUMBER_FORMATS
    >>> float_bits(torch.tensor([0.5, 6.0, -1.0]), NUMBER_FORMATS["mxfp4"]).tolist()
    [1, 7, 10]
    """
    magnitude, steps = numbers.abs(), 2**number.mantissa_bits
    # Subnormal numbers share the step of the smallest normal ones, and have the exponent's code 0.
    exponent = torch.frexp(magnitude.clamp_min(2.0**number.min_exponent))[1] - 1  # 0.5 <= m < 1
    mantissa = torch.ldexp(magnitude, number.mantissa_bits - exponent).to(torch.int32)
    # A normal number's leading 1 is not stored: it counts the exponent's code up by one.
    bits = (exponent - number.min_exponent).to(torch.int32) * steps + mantissa
    found: Tensor = bits + (numbers < 0).to(torch.int32) * 2 ** (number.bits - 1)
    return found


def tensor_scale(codes: Codes) -> float:
    """What the scales of all blocks were divided by: the power of two that keeps them within fp8.

    Args:
        codes: Of nvfp4, with ``Numerics.tensor_scale`` at ``power-of-two``.
    """
    # Larger by some octaves than what they were divided by, where no block needs all of its range:
    # a number of fp8 times a power of two is one as long as it is not above 448.
    mantissa, exponent = torch.frexp(codes.scale.amax())
    return 2.0 ** (8 + (float(mantissa) <= 0.875) - int(exponent))


def fits_tensor_scale(codes: Codes, whole: float) -> bool:
    """Whether the scales of all blocks times another weight's ``tensor_scale`` are fp8 as well."""
    scaled = codes.scale * whole
    within = bool((scaled <= 448.0).all())
    return within and torch.equal(scaled.to(torch.float8_e4m3fn).float(), scaled)


def block_scale_bits(codes: Codes, divided_by: float = 1.0) -> Tensor:
    """``[O, G]`` uint8: the bits of every block's scale.

    Args:
        codes: Of a microscaling format.
        divided_by: Their ``tensor_scale``, where the file has one.
    """
    if codes.tensor_format.number.block_scale == "e8m0":
        return (codes.scale.view(torch.int32) >> 23).to(torch.uint8)  # the exponent of a float32
    return (codes.scale * divided_by).to(torch.float8_e4m3fn).view(torch.uint8)


def block_scales_bits(tensor_format: TensorFormat, num_scales: int, numerics: Numerics) -> int:
    """Bits of all scales of a weight in a microscaling format, as a file has them.

    Args:
        tensor_format: Of the weight.
        num_scales: Blocks that it has.
        numerics: Whether it has a scale for all of them as well.
    """
    has_one_more = tensor_format.number.has_tensor_scale and numerics.tensor_scale != "none"
    return num_scales * BLOCK_SCALE_BITS + (SCALE_BITS if has_one_more else 0)


def no_whole_blocks(tensor_format: TensorFormat, num_inputs: int) -> str:
    """Why files that fill no block up cannot hold rows of so many numbers; empty where they can."""
    block = tensor_format.number.block
    return f"{num_inputs} inputs are no whole groups of {block}" if num_inputs % block else ""
