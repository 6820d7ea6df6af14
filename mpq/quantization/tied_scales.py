"""Scales of a weight whose inputs have bits of their own, where a channel has one scale.

A further scale for every width of every channel would cost much of what the widths gain: of 144
weights in a row, 32 bits are 0.2 of each. So a channel keeps the scale of the widest, and for each
other width which of ``FACTORS`` its step is times that: steps of few bits are alike many times as
large as those of many, within a layer.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from mpq.quantization.grid import Grid
from mpq.quantization.numerics import Numerics
from mpq.quantization.rounding import scale_type_of
from mpq.quantization.second_scales import stored_scale
from mpq.quantization.tensor_format import FACTOR_BITS, TensorFormat

FACTORS: Final = tuple(2 ** ((place - 8) / 10) for place in range(2**FACTOR_BITS))
"""0.57 to 1.62 in steps of 7 %, by which a squared error rises by less than a hundredth."""


def tied_grids(
    tensor_format: TensorFormat, grids: Sequence[Grid], numerics: Numerics
) -> list[Grid]:
    """The grid of each width, whose scales are those of channels times a factor.

    Args:
        tensor_format: One with ``has_tied_scales``.
        grids: ``[F]`` those that the whole weight has in each of ``tensor_format.by_channel``.
        numerics: How scales are stored.
    """
    row, factors = channel_scales(tensor_format, grids, numerics)
    pairs = zip(grids, factors, strict=True)
    return [replace(grid, scale=row * factor) for grid, factor in pairs]


def channel_scales(
    tensor_format: TensorFormat, grids: Sequence[Grid], numerics: Numerics
) -> tuple[Tensor, Tensor]:
    r"""The scale ``[O]`` of every channel as it is stored, and the factors ``[F, O]`` of widths.

    .. math:: r_{f o} = m_f \, \phi_{q_{f o}}, \quad m_f = \mathrm{median}_o \, s_{f o} / s_o

    with the nearest :math:`\phi` of ``FACTORS``; of 0 bits with none. Arguments are those of
    ``tied_grids``.
    """
    scales = torch.stack([(x if x.number.has_codes else grids[-1]).scale for x in grids])
    row = stored_scale(scales[-1], scale_type_of(tensor_format, numerics), None)
    ratios = scales.double() / row.double()
    medians = ratios.median(dim=1, keepdim=True).values.float()
    table = torch.tensor(FACTORS, dtype=torch.float64, device=row.device)
    # Compared with their means: the same on every machine, as no logarithm is taken.
    place = torch.bucketize(ratios / medians.double(), (table[1:] + table[:-1]) / 2)
    factors = medians * table[place].float()
    factors[-1] = 1.0
    return row, factors
