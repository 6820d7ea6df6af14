"""Blocks of input channels, each with a scale in every token: which numbers share one."""

from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from mpq.errors import PrecisionError
from mpq.quantization.tensor_format import TensorFormat


def to_blocks(x: Tensor, size: int, token_axes: int, channel_axis: int = -1) -> Tensor:
    """``[T, G, n]``: of ``T`` tokens ``G`` blocks of ``n`` numbers, which share a scale.

    The last block is filled up with zeros, which every range holds.

    Args:
        x: What a layer reads, any shape, the batch first.
        size: Consecutive input channels in a block.
        token_axes: How many trailing axes make up one token: of a linear layer one.
        channel_axis: Where input channels are; a convolution's positions are in every block.
    """
    moved = x.movedim(channel_axis, -1)
    channels, lead = moved.shape[-1], moved.shape[: x.ndim - token_axes]
    tokens = moved.reshape(prod(lead), -1, channels)  # [T, positions, C]
    tokens = F.pad(tokens, (0, -channels % size))
    return tokens.reshape(*tokens.shape[:2], -1, size).transpose(1, 2).flatten(2)


def from_blocks(blocks: Tensor, like: Tensor, size: int, channel_axis: int = -1) -> Tensor:
    """Inverse of ``to_blocks``.

    Args:
        blocks: ``[T, G, n]``.
        like: What they were made of.
        size: As in ``to_blocks``.
        channel_axis: As in ``to_blocks``.
    """
    moved = like.movedim(channel_axis, -1)
    # [T, positions, C'], with what the last block was filled up with
    tokens = blocks.reshape(*blocks.shape[:2], -1, size).transpose(1, 2).flatten(2)
    return tokens[..., : moved.shape[-1]].reshape(moved.shape).movedim(-1, channel_axis)


def widths_of(tensor_format: TensorFormat, num_channels: int) -> list[Tensor]:
    """``[F]`` of every width, which blocks are in it.

    Args:
        tensor_format: One with blocks; its ``by_channel`` are the widths.
        num_channels: That a layer reads.

    Raises:
        PrecisionError: If the format is of another number of channels.
    """
    size, channels = tensor_format.group_size, tensor_format.channels
    assert size is not None
    if channels is None:
        return [torch.arange(-(-num_channels // size))]
    if channels.num_channels != num_channels:
        raise PrecisionError(
            f"blocks of inputs are of {channels.num_channels} channels, and a layer reads "
            f"{num_channels}: search again with this network"
        )
    of_blocks = torch.from_numpy(channels.columns[::size].copy())
    return [torch.nonzero(of_blocks == width).flatten() for width in range(len(channels.numbers))]
