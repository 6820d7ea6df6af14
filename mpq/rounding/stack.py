"""Rows of a weight that are rounded together: of one layer, at every precision of one layout."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Self, final

import torch
from torch import Tensor

from mpq.quantization.grid import integer_range, nearest_levels, round_float
from mpq.quantization.number_format import NumberFormat
from mpq.quantization.numerics import Numerics
from mpq.quantization.rounding import scale_type_of, stored_zero_point
from mpq.quantization.scale_formats import SCALE_FORMATS
from mpq.quantization.second_scales import SecondScales, stored_scale
from mpq.quantization.tensor_format import Granularity, TensorFormat


@final
@dataclass(frozen=True, eq=False)
class Stack:
    """``R`` rows of ``K`` weights, as columns, so that a step over inputs reads what lies together.

    Tensors may have an axis of groups before the others, each with rows and inputs of its own, as
    of a grouped convolution: they go through all steps together.

    Args:
        target: ``[..., K, R]`` float32: the weights.
        scale: ``[..., S, R]`` float32: one for every group of inputs.
        zero_point: ``[..., S, R]`` float32.
        low: ``[R]`` smallest code of an integer format; ``[..., K, R]`` where inputs of a row have
            bits of their own.
        high: Largest code, as ``low``.
        group_of: ``[K]`` which scale an input has.
        number: A floating-point format of all rows, or one with a table; ``None``: integers of any
            bits.
        stored_as: What scales are rounded to, one of ``SCALE_FORMATS``.
        can_rescale: Whether scales may take other values than those they start from: not where
            they are powers of two or shared by all rows.
        can_turn: Whether they may be negative as well, which only changes integers around 0.
        second: What scales are stored relative to, in their shape; unset: nothing.
        fractions_of: A format of the rows, where zero points are fractions.
        levels: ``[..., N, R]`` float32, ascending, where every row has a codebook.
        has_points: Whether zero points may be others than 0.
        factor: ``[..., K, R]`` what the scale of each weight is multiplied by; unset: 1.
        signs: ``[..., K, R]`` which weights have the codes -1 and 1 alone; unset: none beside
            integers.
    """

    target: Tensor
    scale: Tensor
    zero_point: Tensor
    low: Tensor
    high: Tensor
    group_of: Tensor
    number: NumberFormat | None
    stored_as: str
    can_rescale: bool
    can_turn: bool
    second: SecondScales | None = None
    fractions_of: TensorFormat | None = None
    levels: Tensor | None = None
    has_points: bool = True
    factor: Tensor | None = None
    signs: Tensor | None = None

    @classmethod
    def of(
        cls,
        rows: Tensor,
        formats: Sequence[TensorFormat],
        grids: Sequence[tuple[Tensor, Tensor]],
        numerics: Numerics,
        seconds: Sequence[SecondScales | None] = (),
        levels: Sequence[Tensor | None] = (),
    ) -> Self:
        """Some rows at several precisions, one behind the other.

        Args:
            rows: ``[..., O, K]``.
            formats: That have one ``layout``.
            grids: Scale and zero point of each, ``[..., O, S]``.
            numerics: How scales are stored.
            seconds: What the scales of each are stored relative to, ``[..., O, S]``.
            levels: Codebooks of the rows of each, ``[..., O, N]``.
        """
        first, (num_rows, num_inputs) = formats[0], rows.shape[-2:]
        # Beside other parts signs are integers (``signs``), even where they are the widest.
        number = first.number if first.number.is_float and first.channels is None else None
        ends = [(0, 0) if number else integer_range(f.number, f.symmetric) for f in formats]
        low, high = (
            torch.tensor([end[i] for end in ends], dtype=torch.float32).repeat_interleave(num_rows)
            for i in range(2)
        )
        size = first.group_size or num_inputs
        has_own = first.number.is_microscaling or first.number.has_codebook
        can_rescale = not (has_own or first.granularity is Granularity.TENSOR)
        is_around_0 = number is None and first.symmetric
        scale_type = scale_type_of(first, numerics)
        can_be_negative = numerics.scale_sign == "either" and (
            SCALE_FORMATS[scale_type].can_be_negative
        )
        return cls(
            torch.cat([rows.float().mT] * len(formats), dim=-1),
            torch.cat([scale.float().mT for scale, _ in grids], dim=-1),
            torch.cat([point.float().mT for _, point in grids], dim=-1),
            low,
            high,
            torch.arange(num_inputs) // size,
            number,
            scale_type,
            can_rescale,
            can_rescale and is_around_0 and can_be_negative,
            _joined([second.mapped(lambda part: part.mT) for second in seconds if second]),
            first if first.float_zero else None,
            _side_by_side([each.mT for each in levels if each is not None]),
            has_points=number is None and not first.symmetric,
        )

    @property
    def num_inputs(self) -> int:
        """``K``."""
        return self.target.shape[-2]

    def with_scale(self, scale: Tensor, zero_point: Tensor | None = None) -> Self:
        """The same rows with other scales ``[..., S, R]``, rounded to what stores them.

        Args:
            scale: As in the class.
            zero_point: Others, where they are fractions.
        """
        point = self.zero_point
        if zero_point is not None and self.fractions_of is not None:
            point = stored_zero_point(zero_point, self.fractions_of)
        return replace(
            self, scale=stored_scale(scale, self.stored_as, self.second), zero_point=point
        )

    @classmethod
    def side_by_side(cls, stacks: Sequence[Self]) -> Self:
        """Some stacks that differ in their scales alone, as one of all their columns."""
        first, count = stacks[0], len(stacks)
        return replace(
            first,
            target=torch.cat([first.target] * count, dim=-1),
            scale=torch.cat([stack.scale for stack in stacks], dim=-1),
            zero_point=torch.cat([stack.zero_point for stack in stacks], dim=-1),
            low=torch.cat([first.low] * count, dim=-1),
            high=torch.cat([first.high] * count, dim=-1),
            second=_joined([first.second] * count if first.second else []),
            factor=_side_by_side([] if first.factor is None else [first.factor] * count),
            signs=_side_by_side([] if first.signs is None else [first.signs] * count),
            levels=_side_by_side([] if first.levels is None else [first.levels] * count),
        )

    def of_inputs(self, part: slice) -> Self:
        """Some consecutive inputs of the same rows, with all scales."""
        low, high = (x if x.ndim == 1 else x[..., part, :] for x in (self.low, self.high))
        factor, signs = (None if x is None else x[..., part, :] for x in (self.factor, self.signs))
        target, group_of = self.target[..., part, :], self.group_of[part]
        return replace(
            self, target=target, low=low, high=high, group_of=group_of, factor=factor, signs=signs
        )

    def units(self, codes: Tensor) -> Tensor:
        """``[..., K, R]`` numbers of all codes, in units of their scales."""
        found = codes - self.zero_point[..., self.group_of, :]
        return found if self.factor is None else found.mul_(self.factor)

    def cells(self, inputs: Tensor) -> "Cells":
        """Where the numbers of some inputs may lie: ``[k]``, or ``[..., k]`` for each group."""
        every = (self.scale, self.scale.reciprocal(), self.zero_point)
        scale, inverse, point = (_at(t, self.group_of, inputs) for t in every)
        if self.factor is not None:
            scale = scale * _of_inputs(self.factor, inputs)
            inverse = scale.reciprocal()
        low, high = (_of_inputs(ends, inputs) for ends in (self.low, self.high))
        return Cells(
            scale,
            inverse,
            point if self.has_points else None,
            low,
            high,
            self.number,
            self.fractions_of is not None,
            self.levels,
            None if self.signs is None else _of_inputs(self.signs, inputs),
        )

    def all_numbers(self, codes: Tensor) -> Tensor:
        """``[..., K, R]`` what all codes stand for."""
        return self.cells(torch.arange(self.num_inputs)).numbers(codes)

    def nearest(self, values: Tensor | None = None) -> Tensor:
        """``[..., K, R]`` the nearest codes of the target, or of other values of all inputs."""
        wanted = self.target if values is None else values
        return self.cells(torch.arange(self.num_inputs)).codes(wanted)


@final
@dataclass(frozen=True, eq=False)
class Cells:
    """Where the numbers of ``k`` inputs may lie: looked up once, for a step over each of them.

    Args:
        scale: ``[..., k, R]``, or of one input ``[..., R]``, as those that follow.
        inverse: ``[..., k, R]`` its reciprocal.
        zero_point: ``[..., k, R]``; ``None``: all are 0.
        low: ``[R]`` smallest code of an integer format, or as ``scale``.
        high: Largest code, as ``low``.
        number: A floating-point format, or one with a table; ``None``: integers.
        has_fractions: Whether zero points may be fractions.
        levels: As in ``Stack``.
        signs: As ``scale``, see ``Stack``.
    """

    scale: Tensor
    inverse: Tensor
    zero_point: Tensor | None
    low: Tensor
    high: Tensor
    number: NumberFormat | None
    has_fractions: bool
    levels: Tensor | None
    signs: Tensor | None

    def one_by_one(self) -> "list[Cells]":
        """Those of each input."""
        scales, inverses = self.scale.unbind(-2), self.inverse.unbind(-2)
        points: Sequence[Tensor | None] = [None] * len(scales)
        if self.zero_point is not None:
            points = self.zero_point.unbind(-2)
        lows, highs = (
            [x] * len(scales) if x.ndim == 1 else x.unbind(-2) for x in (self.low, self.high)
        )
        signs: Sequence[Tensor | None] = [None] * len(scales)
        if self.signs is not None:
            signs = self.signs.unbind(-2)
        return [
            replace(self, scale=a, inverse=b, zero_point=c, low=d, high=e, signs=f)
            for a, b, c, d, e, f in zip(scales, inverses, points, lows, highs, signs, strict=True)
        ]

    def codes(self, values: Tensor) -> Tensor:
        """Nearest codes, in the shape of values of these inputs."""
        if self.levels is not None:
            return _nearest_levels(values, self.levels)
        if self.number is not None:
            return round_float(values / self.scale, self.number)
        found = values * self.inverse
        if self.signs is not None:
            # Of the two that 0 is as near to, the lower one, as places of a table go.
            found = torch.where(self.signs, torch.where(found > 0, 1.0, -1.0).to(found), found)
        if self.zero_point is None:
            found.round_()
        elif self.has_fractions:
            found.add_(self.zero_point).round_()
        else:
            found.round_().add_(self.zero_point)
        return found.clamp_(self.low, self.high)

    def numbers(self, codes: Tensor) -> Tensor:
        """What codes stand for, in the same shape."""
        if self.zero_point is None:
            return codes * self.scale
        return (codes - self.zero_point).mul_(self.scale)


def _at(values: Tensor, group_of: Tensor, inputs: Tensor) -> Tensor:
    """``[..., k, R]`` of ``[..., S, R]`` for inputs ``[k]``, or ``[..., k]`` of their own."""
    if values.shape[-2] == 1:
        # No copy is made of what all inputs share.
        return values.expand(*values.shape[:-2], inputs.shape[-1], values.shape[-1])
    groups = group_of[inputs]
    if groups.ndim == 1:
        return values[..., groups, :]
    return values.take_along_dim(groups[..., None], dim=-2)


def _of_inputs(ends: Tensor, inputs: Tensor) -> Tensor:
    """``[R]``, or of ``[..., K, R]`` those of some inputs, as in ``_at``."""
    if ends.ndim == 1:
        return ends
    if inputs.ndim == 1:
        return ends[..., inputs, :]
    return ends.take_along_dim(inputs[..., None], dim=-2)


def _nearest_levels(values: Tensor, levels: Tensor) -> Tensor:
    """Of levels ``[..., N, R]`` the nearest ones to ``[..., k, R]``, or to ``[..., R]``."""
    if values.ndim < levels.ndim:
        return _nearest_levels(values[..., None, :], levels)[..., 0, :]
    return nearest_levels(values.mT, levels.mT).mT


def _side_by_side(columns: Sequence[Tensor]) -> Tensor | None:
    return torch.cat(list(columns), dim=-1) if columns else None


def _joined(seconds: Sequence[SecondScales]) -> SecondScales | None:
    """Of columns side by side."""
    if not seconds:
        return None
    step, mean = (
        torch.cat([part(second) for second in seconds], dim=-1)
        for part in (attrgetter("step"), attrgetter("mean"))
    )
    return SecondScales(step, mean)


Layout = tuple[str, bool, Granularity, int | None, str | None, bool]


def layout(tensor_format: TensorFormat) -> Layout:
    """What formats must share so that their rows can be one stack."""
    number = tensor_format.number
    return (
        number.name if number.is_float else "integers",
        tensor_format.symmetric,
        tensor_format.granularity,
        tensor_format.group_size,
        tensor_format.scale,
        tensor_format.float_zero,
    )
