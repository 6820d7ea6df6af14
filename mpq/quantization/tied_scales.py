"""Scales of a weight whose inputs have bits of their own, where a channel has one scale.

A scale for every width of every channel would cost as much as the widths gain: of 144 weights in a
row, 32 bits are 0.2 of each. So a weight keeps one scale for every channel and one number for every
width, and the step of width ``f`` in channel ``o`` is their product :math:`r_f s_o`.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mpq.quantization.grid import Grid
from mpq.quantization.numerics import Numerics
from mpq.quantization.rounding import scale_type_of
from mpq.quantization.second_scales import stored_scale
from mpq.quantization.tensor_format import TensorFormat


def tied_grids(
    tensor_format: TensorFormat, grids: Sequence[Grid], numerics: Numerics
) -> list[Grid]:
    r"""The grid of each width, whose scales are those of channels times a number of the width.

    .. math:: r_f = \mathrm{median}_o \, s_{f o}, \quad s_o = \sum_f \pi_f \, s_{f o} / r_f

    with :math:`\pi_f` the share of the inputs that has the width: ranges grow alike with the number
    of codes in all channels but for what is far out in some.

    Args:
        tensor_format: One with ``has_tied_scales``.
        grids: ``[F]`` those that the whole weight has in each of ``tensor_format.by_channel``.
        numerics: How scales are stored.
    """
    row, widths = channel_scales(tensor_format, grids, numerics)
    return [replace(grid, scale=row * width) for grid, width in zip(grids, widths, strict=True)]


def channel_scales(
    tensor_format: TensorFormat, grids: Sequence[Grid], numerics: Numerics
) -> tuple[Tensor, Tensor]:
    """The scale ``[O]`` of every channel as it is stored, and the number ``[F]`` of every width.

    Arguments are those of ``tied_grids``.
    """
    assert tensor_format.channels is not None
    counts = tensor_format.channels.counts
    # In float64, by sums and quotients alone: the same on every machine.
    scales = torch.stack([grid.scale.double() for grid in grids])
    widths = scales.median(dim=1).values.float()
    row = torch.zeros_like(scales[0])
    for count, scale, width in zip(counts, scales, widths, strict=True):
        row += scale / width.double() * (count / sum(counts))
    return stored_scale(row.float(), scale_type_of(tensor_format, numerics), None), widths
