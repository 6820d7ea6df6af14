"""A weight as it is stored: integer codes, scales and zero points, and dense streams of bits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor

from mpq.quantization.branch_numbers import BranchNumbers
from mpq.quantization.grid import Grid, integer_range, places, places_of_levels
from mpq.quantization.scale_formats import SCALE_FORMATS
from mpq.quantization.second_scales import SecondScales
from mpq.quantization.stored import StoredWeight, code_type, signature_of
from mpq.quantization.tensor_format import Granularity, TensorFormat


@final
@dataclass(frozen=True, eq=False)
class Codes:
    """One weight ``[O, K]`` in a format that needs a scale: what every exporter writes.

    Scales have been rounded to the dtype that they are stored in before the codes were computed, so
    that ``numbers()`` is what the simulation computes with, bit for bit. All tensors are on the
    CPU. Of ``G`` groups per channel (1 without groups) the last one may be short.

    Args:
        tensor_format: The format.
        codes: ``[O, G * group]`` float32; the last group of a channel is filled up with the code
            of 0, with the largest where there is none, and with 0 where the zero point is a
            fraction. Integers of an integer format, numbers in units of their scale of a float one.
        scale: ``[O, G]`` float32; one for the whole weight is repeated for every channel.
        zero_point: ``[O, G]`` int32, or float32 where it may be a fraction; 0 where the format is
            symmetric.
        num_inputs: ``K``: without what fills up the last group.
        second: What the scales are stored relative to, ``[O, G]``, where they have second scales.
        levels: ``[O, N]`` of every channel, where it has a codebook.
        branch: What is added to what the codes stand for.
    """

    tensor_format: TensorFormat
    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    num_inputs: int
    second: SecondScales | None = None
    levels: Tensor | None = None
    branch: BranchNumbers | None = None

    @classmethod
    def of(cls, rows: Tensor, tensor_format: TensorFormat, grid: Grid) -> "Codes":
        """The codes of a weight's rows on a grid that was made for it.

        Args:
            rows: ``[O, K]``, as ``mpq.network.weight_layout`` has them.
            tensor_format: One that needs a scale.
            grid: ``mpq.quantization.rounding.weight_grid`` of these rows.
        """
        from mpq.quantization.rounding import sharing_scale

        found = grid.codes(sharing_scale(rows, tensor_format)).reshape(len(rows), -1).cpu()
        if tensor_format.float_zero:
            found[:, rows.shape[1] :] = 0.0
        scale, point = (
            t.cpu().reshape(-1, 1).expand(len(rows), 1)
            if tensor_format.granularity is Granularity.TENSOR
            else t.cpu().reshape(len(rows), -1)
            for t in (grid.scale, grid.zero_point)
        )
        second = grid.second
        if second is not None:
            second = second.mapped(lambda part: part.cpu().reshape(len(rows), -1))
        levels = None if grid.levels is None else grid.levels.cpu()
        num_inputs = rows.shape[1]
        return cls(tensor_format, found, scale.clone(), point.clone(), num_inputs, second, levels)

    @classmethod
    def of_stored(cls, stored: StoredWeight, tensor_format: TensorFormat) -> "Codes":
        """The codes of a weight that was rounded before, in the format that they are in."""
        scale, point = torch.from_numpy(stored.scale), torch.from_numpy(stored.zero_point)
        number, codes = tensor_format.number, torch.from_numpy(stored.codes)
        levels = None if stored.levels is None else torch.from_numpy(stored.levels).float()
        if tensor_format.table:
            codes = torch.tensor(number.table, dtype=torch.float32)[codes.int()]
        elif levels is not None:
            codes = levels.gather(1, codes.long())
        num_inputs, group = codes.shape[1], tensor_format.numbers_per_scale(codes.shape[1])
        filled = _filled(codes, point[:, -1:], scale.shape[1] * group, tensor_format)
        second = _second_scales(stored, tensor_format, scale)
        return cls(tensor_format, filled, scale, point, num_inputs, second, levels, stored.branch)

    @classmethod
    def of_channels(cls, parts: "Sequence[Codes]", tensor_format: TensorFormat) -> "Codes":
        """The codes of a weight whose channels, inputs or groups have bits of their own.

        Args:
            parts: ``[F]`` codes of the whole weight in each of ``tensor_format.by_channel``.
            tensor_format: One with ``channels``.
        """
        assert tensor_format.channels is not None
        num_inputs = parts[0].num_inputs
        size = tensor_format.numbers_per_scale(num_inputs)
        cells = torch.from_numpy(tensor_format.channels.cells)
        of_scales = torch.from_numpy(tensor_format.channels.of_scales(size))
        codes = _chosen([part.codes[:, :num_inputs] for part in parts], cells)
        scale = _chosen([part.scale for part in parts], of_scales)
        point = _chosen([part.zero_point for part in parts], of_scales)
        filled = _filled(codes, point[:, -1:], size * scale.shape[1], tensor_format)
        return cls(tensor_format, filled, scale, point, num_inputs)

    def stored(self, rows: Tensor) -> StoredWeight:
        """The same, small enough to be kept for every layer and precision.

        Args:
            rows: ``[O, K]`` that the codes are of.
        """
        codes = self.codes[:, : self.num_inputs]
        if self.tensor_format.table:
            codes = places(codes, self.tensor_format.number)
        if self.levels is not None:
            codes = places_of_levels(codes, self.levels)
        original = rows.detach().float().cpu().numpy()
        step, mean = second_parts(self.tensor_format, self.second)
        return StoredWeight(
            codes.numpy().astype(code_type(self.tensor_format)),
            self.scale.numpy(),
            self.zero_point.numpy(),
            signature_of(original),
            step,
            mean,
            None if self.levels is None else self.levels.half().numpy(),
            self.branch,
        )

    def turned(self, bits: int) -> "Codes":
        """The same numbers, with positive scales wherever the codes fit with another sign.

        They do not where a negative scale reaches one code further above 0 than below it, and the
        file stores no more bits than that takes: such scales stay negative.

        Args:
            bits: Of a stored code, which goes from ``-2^(bits - 1)`` to ``2^(bits - 1) - 1``.
        """
        is_negative = self.scale < 0
        if not (self.tensor_format.symmetric and is_negative.any()):
            return self
        grouped = self.codes.reshape(*self.scale.shape, -1)
        turns = is_negative & (grouped.amin(dim=-1) > -(2 ** (bits - 1)))
        if self.tensor_format.granularity is Granularity.TENSOR:  # one scale, so that all do
            turns = turns.all().expand_as(turns)
        sign = torch.where(turns, -1.0, 1.0)
        codes = (grouped * sign[..., None]).reshape(self.codes.shape)
        return replace(self, codes=codes, scale=self.scale * sign)

    @property
    def num_groups(self) -> int:
        """Scales per output channel."""
        return self.scale.shape[1]

    def integers(self) -> Tensor:
        """``[O, K]`` int32 codes of an integer format: signed if symmetric, from 0 if affine."""
        return self.codes[:, : self.num_inputs].to(torch.int32)

    def unsigned(self) -> Tensor:
        """``[O, K]`` int32 codes from 0 on; of a symmetric format ``2^(bits - 1)`` stands for 0."""
        return self.integers() - self._lowest

    def unsigned_zero_points(self) -> Tensor:
        """``[O, G]`` int32: which of the ``unsigned`` codes stands for 0."""
        return self.zero_point - self._lowest

    @property
    def _lowest(self) -> int:
        return integer_range(self.tensor_format.number, self.tensor_format.symmetric)[0]

    def numbers(self) -> Tensor:
        """``[O, K]`` float32: the weight that the codes and the branch stand for."""
        grouped = self.codes.reshape(*self.scale.shape, -1)
        found = (grouped - self.zero_point[..., None]) * self.scale[..., None]
        found = found.flatten(1)[:, : self.num_inputs]
        if self.branch is None:
            return found
        return found + torch.from_numpy(self.branch.numbers(self.num_inputs))


def _chosen(parts: Sequence[Tensor], index: Tensor) -> Tensor:
    """Of several tensors, which are broadcast against ``index``, the one that it says."""
    found = parts[0]
    for place, part in enumerate(parts):
        found = torch.where(index == place, part, found)
    return found


def _filled(codes: Tensor, point: Tensor, length: int, tensor_format: TensorFormat) -> Tensor:
    """Codes ``[O, K]`` with what fills up the last group, see ``Codes``; ``point [O, 1]``."""
    number = tensor_format.number
    filling = (torch.zeros_like(point) if tensor_format.float_zero else point).float()
    if tensor_format.table and not number.has_zero:
        filling = torch.full_like(filling, number.max_value)
    last = filling.expand(len(codes), length - codes.shape[1])
    return torch.cat([codes.float(), last], dim=1)


def second_parts(
    tensor_format: TensorFormat, second: SecondScales | None
) -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | tuple[None, None]":
    """Step and mean of a weight as they are kept; ``None``: its scales are relative to nothing."""
    if second is None or tensor_format.scale is None:
        return None, None
    step, mean = second.stored_parts(SCALE_FORMATS[tensor_format.scale])
    return step.cpu().numpy(), mean.cpu().numpy()


def _second_scales(
    stored: StoredWeight, tensor_format: TensorFormat, scale: Tensor
) -> SecondScales | None:
    """What the scales of a kept weight are stored relative to, in their shape."""
    if tensor_format.scale is None or stored.scale_step is None or stored.scale_mean is None:
        return None
    step, mean = (torch.from_numpy(part) for part in (stored.scale_step, stored.scale_mean))
    return SecondScales.expanded(step, mean, SCALE_FORMATS[tensor_format.scale], scale)


BITS_AT_ONCE: Final = 1 << 24
"""That ``packed`` spreads out."""


def packed(codes: Tensor, bits: int) -> Tensor:
    """Codes as one dense stream of bits per row, the first code in the lowest bits.

    A code may lie in two bytes. Whole words are the same stream, on machines whose lowest byte
    comes first: ``packed(codes, bits).view(torch.int32)``.

    Args:
        codes: ``[R, K]`` whole numbers from 0 to ``2^bits - 1``.
        bits: Of one code, 1 to 8.

    Returns:
        ``[R, ceil(K * bits / 32) * 4]`` uint8: whole words of 32 bits, filled up with 0.

    >>> packed(torch.tensor([[1, 2, 3]]), 3).tolist()  # 011 010 001
    [[209, 0, 0, 0]]
    """
    length = codes.shape[1]
    # A bit takes a byte on the way: of a large embedding some rows at a time.
    some = max(1, BITS_AT_ONCE // max(length * bits, 1))
    return torch.cat([_packed(rows, bits) for rows in codes.split(some)])


def _packed(codes: Tensor, bits: int) -> Tensor:
    num_rows, length = codes.shape
    places = torch.arange(bits, dtype=torch.uint8)
    stream = (codes.to(torch.uint8)[..., None] >> places) & 1  # [R, K, bits]
    missing = -length * bits % 32
    filled = torch.nn.functional.pad(stream.reshape(num_rows, -1), (0, missing))
    weights = (1 << torch.arange(8)).to(torch.uint8)
    return (filled.reshape(num_rows, -1, 8) * weights).sum(-1, dtype=torch.uint8)


def unpacked(stream: Tensor, bits: int, length: int) -> Tensor:
    """The inverse of ``packed``: ``[R, length]`` int32 of ``[R, B]`` uint8."""
    places = torch.arange(8)
    single = ((stream[..., None] >> places) & 1).reshape(len(stream), -1)  # [R, B * 8]
    codes = single[:, : length * bits].reshape(len(stream), length, bits).to(torch.int32)
    return (codes << torch.arange(bits, dtype=torch.int32)).sum(-1, dtype=torch.int32)
