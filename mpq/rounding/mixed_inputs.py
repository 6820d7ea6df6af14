"""A weight whose inputs, or groups, have bits of their own, as the rows of a stack."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor

from mpq.quantization.codes import Codes
from mpq.quantization.grid import Grid, integer_range
from mpq.quantization.numerics import Numerics
from mpq.quantization.tensor_format import TensorFormat
from mpq.quantization.tied_scales import channel_scales
from mpq.rounding.stack import Stack


@final
@dataclass(frozen=True, eq=False)
class MixedInputs:
    """What is known of such a weight ``[O, K]`` before it is rounded.

    Args:
        start: Codes to nearest. Where a channel has one scale for all widths, with that alone:
            ``[O, 1]``.
        low: ``[O, K]`` float32, the smallest code of each weight.
        high: ``[O, K]`` float32, the largest.
        factor: ``[O, K]`` what the channel's scale is multiplied by; unset: 1.
        signs: ``[O, K]`` whether a weight's codes are -1 and 1; unset: none is.
    """

    start: Codes
    low: Tensor
    high: Tensor
    factor: Tensor | None
    signs: Tensor | None

    @classmethod
    def of(
        cls,
        rows: Tensor,
        tensor_format: TensorFormat,
        grids: Sequence[Grid],
        numerics: Numerics,
    ) -> Self:
        """Arguments are those of ``WeightRounding.codes_of_inputs``."""
        assert tensor_format.channels is not None
        cells = torch.from_numpy(tensor_format.channels.cells).expand(rows.shape)
        own = tensor_format.by_channel
        ends = torch.tensor([_ends(x) for x in own])
        low, high = (ends[:, i].float()[cells] for i in range(2))
        # Of one bit there are signs alone.
        of_signs = [place for place, x in enumerate(own) if x.number.is_float]
        signs = cells == of_signs[0] if of_signs else None
        pairs = zip(own, grids, strict=True)
        start = Codes.of_channels([Codes.of(rows, *each) for each in pairs], tensor_format)
        if not tensor_format.has_tied_scales:
            return cls(start, low, high, None, signs)
        row, factors = channel_scales(tensor_format, grids, numerics)
        codes, point = start.codes[:, : rows.shape[1]], start.zero_point[:, :1]
        start = replace(start, codes=codes, scale=row[:, None], zero_point=point)
        return cls(start, low, high, factors[cells[0]].mT, signs)

    def stack(self, stack: Stack, cut: Callable[[Tensor], Tensor]) -> Stack:
        """Some rows, with what is known of each of their weights.

        Args:
            stack: Of them, as if all weights had the most bits.
            cut: Those rows of ``[O, K]``.
        """
        low, high = (cut(ends).mT for ends in (self.low, self.high))
        factor, signs = (None if x is None else cut(x).mT for x in (self.factor, self.signs))
        return replace(stack, low=low, high=high, factor=factor, signs=signs)

    def stored(self, found: Codes) -> Codes:
        """Codes with a scale for every block of inputs, as such weights are kept."""
        if self.factor is None:
            return found
        num_inputs = found.num_inputs
        size = found.tensor_format.numbers_per_scale(num_inputs)
        scale = found.scale * self.factor[:, ::size]
        missing = size * scale.shape[1] - num_inputs
        codes = torch.nn.functional.pad(found.codes[:, :num_inputs], (0, missing))
        point = found.zero_point.expand_as(scale).clone()
        return replace(found, codes=codes, scale=scale, zero_point=point)


def _ends(tensor_format: TensorFormat) -> tuple[int, int]:
    """Smallest and largest code of integers, or of signs."""
    number = tensor_format.number
    return (-1, 1) if number.is_float else integer_range(number, tensor_format.symmetric)
