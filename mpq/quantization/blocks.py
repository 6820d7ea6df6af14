"""Inputs as llama.cpp rounds them while running: int8, in blocks of its weights' types."""

import torch
from torch import Tensor

from mpq.quantization.tensor_format import TensorFormat

SMALL_BLOCK = 32
"""Numbers of a block of Q4_0, Q5_0 and Q8_0."""
SUPER_BLOCK = 256
"""Numbers of a block of the K-quants and TQ2_0."""


def block_of(tensor_format: TensorFormat, num_inputs: int) -> int | None:
    """Size of the blocks that a weight's type has in GGUF; ``None``: its rows do not divide.

    Weights of up to 6 bits are K-quants where their rows are whole super-blocks and their groups,
    if they have some, too; all others read inputs in blocks of 32, those of mxfp4 and nvfp4 too.

    Args:
        tensor_format: The weight's, an integer format or a microscaling one.
        num_inputs: ``K`` of the weight ``[O, K]``.
    """
    # Without groups a whole row shares a scale.
    shared = tensor_format.group_size or num_inputs
    is_whole = shared % SUPER_BLOCK == 0 and num_inputs % SUPER_BLOCK == 0
    if is_whole and tensor_format.number.bits <= 6:
        return SUPER_BLOCK
    return SMALL_BLOCK if num_inputs % SMALL_BLOCK == 0 else None


def round_blocks(x: Tensor, block: int) -> Tensor:
    """``[..., K]`` rounded to int8, one scale for every block of the last axis.

    The scale of a block of 32 is stored in fp16 after the codes were computed with its float32
    value; that of a block of 256 stays in float32 (ggml's ``quantize_row_q8_0``, ``_q8_K``).
    """
    rows = x.float().reshape(-1, block)
    largest = rows.abs().amax(dim=1, keepdim=True)
    # A block of zeros has the codes 0, whatever its scale.
    steps = torch.where(largest > 0, 127.0 / largest, torch.zeros_like(largest))
    scale = largest / 127.0
    if block == SMALL_BLOCK:
        scale = scale.half().float()
    return ((rows * steps).round() * scale).reshape(x.shape).to(x.dtype)
