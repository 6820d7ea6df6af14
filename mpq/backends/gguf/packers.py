"""Our codes as the bytes of ggml's blocks: a packer for every type.

A K-quant has a scale ``d`` in fp16 and small integer scales for its parts. All of these are 1 here,
so that ``d`` is our scale as it stands, the smallest subnormal too: nothing is divided or rounded.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mpq.backends.gguf.types import BlockType
from mpq.quantization.codes import Codes
from mpq.quantization.microscaling import block_scale_bits, element_bits

Bytes = NDArray[np.uint8]


def packed_blocks(codes: Codes, block_type: BlockType) -> Bytes:
    """The rows of a weight as a tensor of a type.

    Args:
        codes: Symmetric, with scales that fp16 holds; whole blocks share a scale. Or of a
            microscaling format, whose scales have the type's own dtype.
        block_type: Whose codes have at least as many bits.

    Returns:
        ``[O, K / block * block_bytes]``.
    """
    if codes.tensor_format.number.is_microscaling:
        return _microscaling(codes, block_type)
    signed = codes.integers().numpy()
    num_rows, num_inputs = signed.shape
    per_group = num_inputs // codes.num_groups // block_type.block
    scale = np.repeat(codes.scale.numpy().astype(np.float16), per_group, axis=1).reshape(-1, 1)
    blocks = signed.reshape(-1, block_type.block)
    parts = _PACKERS[block_type.name](blocks, scale)
    return np.concatenate(parts, axis=1).reshape(num_rows, -1)


def _microscaling(codes: Codes, block_type: BlockType) -> Bytes:
    """Scales of a type's block before its elements; of each scale's, lower halves of bytes first.

    Elements of ggml's blocks are twice ours and its scales half: the bytes are the same.
    """
    size = codes.tensor_format.number.block
    elements = _planes(element_bits(codes).reshape(-1, size).numpy(), 2, size // 2)
    count = block_type.block // size
    scales = block_scale_bits(codes).reshape(-1, count).numpy()
    parts = [scales, elements.reshape(len(scales), -1)]
    return np.concatenate(parts, axis=1).reshape(len(codes.codes), -1)


def _planes(values: NDArray[Any], count: int, width: int) -> Bytes:
    """``[B, n]`` as ``[B, n / count]``: each byte holds ``count`` numbers, ``width`` apart."""
    planes = values.astype(np.uint8).reshape(len(values), -1, count, width)
    shifts = (np.arange(count) * (8 // count)).astype(np.uint8)
    both: Bytes = np.bitwise_or.reduce(planes << shifts[:, None], axis=2)
    return both.reshape(len(values), -1)


def _scale(scale: NDArray[np.float16]) -> Bytes:
    return np.ascontiguousarray(scale).view(np.uint8)


def _same(blocks: NDArray[Any], *values: int) -> Bytes:
    """The same bytes in every block."""
    return np.tile(np.array(values, np.uint8), (len(blocks), 1))


def _q4_0(signed: NDArray[Any], scale: NDArray[np.float16]) -> list[Bytes]:
    return [_scale(scale), _planes(signed + 8, 2, 16)]


def _q5_0(signed: NDArray[Any], scale: NDArray[np.float16]) -> list[Bytes]:
    codes = (signed + 16).astype(np.uint8)
    highest = np.packbits(codes >> 4, axis=-1, bitorder="little")
    return [_scale(scale), highest, _planes(codes & 15, 2, 16)]


def _q8_0(signed: NDArray[Any], scale: NDArray[np.float16]) -> list[Bytes]:
    return [_scale(scale), signed.astype(np.int8).view(np.uint8)]


def _tq2_0(signed: NDArray[Any], scale: NDArray[np.float16]) -> list[Bytes]:
    # It stands for d * (q - 1), q from 0 to 3: with a negative d these are our -2 to 1.
    return [_planes(1 - signed, 4, 32), _scale(-scale)]


def _q2_k(signed: NDArray[Any], scale: NDArray[np.float16]) -> list[Bytes]:
    # 16 times scale 1 in the lower half of a byte, minimum 2 in the upper one.
    return [_same(signed, *[0x21] * 16), _planes(signed + 2, 4, 32), _scale(scale), _scale(scale)]


def _q3_k(signed: NDArray[Any], scale: NDArray[np.float16]) -> list[Bytes]:
    codes = signed + 4
    # 16 scales of 6 bits, from -32 on: 33 stands for 1. Four bits of each, then the other two.
    ones = _same(signed, *[0x11] * 8, *[0xAA] * 4)
    return [_planes(codes >> 2, 8, 32), _planes(codes & 3, 4, 32), ones, _scale(scale)]


def _q4_k(signed: NDArray[Any], scale: NDArray[np.float16]) -> list[Bytes]:
    # 8 scales of 1 and 8 minima of 8, of 6 bits each.
    ones = _same(signed, *[0x01] * 4, *[0x08] * 4, *[0x81] * 4)
    return [_scale(scale), _scale(scale), ones, _planes(signed + 8, 2, 32)]


def _q5_k(signed: NDArray[Any], scale: NDArray[np.float16]) -> list[Bytes]:
    codes = signed + 16
    # As in Q4_K, with minima of 16, whose fifth bit lies elsewhere in the second half of them.
    ones = _same(signed, *[0x01] * 4, *[0x50] * 4, *[0x01] * 4)
    highest, lower = _planes(codes >> 4, 8, 32), _planes(codes & 15, 2, 32)
    return [_scale(scale), _scale(scale), ones, highest, lower]


def _q6_k(signed: NDArray[Any], scale: NDArray[np.float16]) -> list[Bytes]:
    codes = signed + 32
    ones = _same(signed, *[1] * 16)
    return [_planes(codes & 15, 2, 64), _planes(codes >> 4, 4, 32), ones, _scale(scale)]


_PACKERS: Final[Mapping[str, Callable[[NDArray[Any], NDArray[np.float16]], list[Bytes]]]] = {
    "Q4_0": _q4_0,
    "Q5_0": _q5_0,
    "Q8_0": _q8_0,
    "TQ2_0": _tq2_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
