"""The interface of every rounding of weights."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import torch
from torch import Tensor

from mpq._support.bounds import Bounded
from mpq._support.pages import is_streaming
from mpq.quantization.codes import Codes
from mpq.quantization.grid import Grid
from mpq.quantization.numerics import Numerics
from mpq.quantization.rounding import codebook_grid
from mpq.quantization.second_scales import SecondScales
from mpq.quantization.tensor_format import TensorFormat
from mpq.rounding.diagonal_blocks import diagonal
from mpq.rounding.mixed_inputs import MixedInputs
from mpq.rounding.stack import Stack, layout

NUMBERS_AT_ONCE: Final = 1 << 24
"""Weights (64 MiB in float32) of a stack; a rounding keeps a handful of copies."""


class WeightRounding(Bounded, ABC):
    """Makes codes of a weight, with regard to the inputs that it meets."""

    name: ClassVar[str]
    summary: ClassVar[str]
    reads_inputs: ClassVar[bool] = True
    weighs_numbers: ClassVar[bool] = False
    """Whether moments are diagonal and each row's own: the Fisher information of its numbers."""

    def codes(
        self,
        rows: Tensor,
        moment: Tensor,
        formats: Sequence[TensorFormat],
        grids: Sequence[Grid],
        numerics: Numerics,
    ) -> list[Codes]:
        """A weight in several formats.

        Args:
            rows: ``[O, K]`` floating point, on the CPU.
            moment: ``[G, K, k]`` float32, symmetric and positive semidefinite: the second moment
                of the inputs that rows read, in ``G`` consecutive groups of ``O / G`` rows. ``k``
                is ``K``; of very long rows the size of the blocks along the diagonal, between
                which it is taken for 0 (``mpq.rounding.diagonal_blocks``).
            formats: That need a scale.
            grids: Where the scales of each start: ``weight_grid`` of these rows. Codebooks are made
                anew, weighted by the diagonal of the moment.
            numerics: How scales are stored.

        Returns:
            Codes of each format, with scales as they are stored.
        """
        (found,) = self.codes_together([rows], [moment], formats, [grids], numerics)
        return found

    def codes_together(
        self,
        rows: Sequence[Tensor],
        moments: Sequence[Tensor],
        formats: Sequence[TensorFormat],
        grids: Sequence[Sequence[Grid]],
        numerics: Numerics,
    ) -> list[list[Codes]]:
        """Weights of one shape, as if they were groups of one: small ones take as long as one.

        Args:
            rows: Of each, ``[O, K]``; ``O / G`` and ``K`` are the same.
            moments: Of each, ``[G, K, k]``; ``k`` is the same.
            formats: As in ``codes``, of all weights.
            grids: Of each, as in ``codes``.
            numerics: How scales are stored.

        Returns:
            Of each, as ``codes`` has them.
        """
        by_weight = [
            [
                Codes.of(weight, f, self._grid(weight, moment, f, grid))
                for f, grid in zip(formats, own, strict=True)
            ]
            for weight, moment, own in zip(rows, moments, grids, strict=True)
        ]
        every = torch.cat(list(rows)) if len(rows) > 1 else rows[0]
        moment = torch.cat(list(moments)) if len(moments) > 1 else moments[0]
        starts = [_one_below_the_other(each) for each in zip(*by_weight, strict=True)]
        found = [replaceable(start) for start in starts]
        self._solve(every, moment, starts, found, numerics)
        sizes = [len(weight) for weight in rows]
        by_format = zip(*by_weight, strict=True)
        parts = [_apart(codes, sizes, own) for codes, own in zip(found, by_format, strict=True)]
        return [list(each) for each in zip(*parts, strict=True)]

    def codes_in_parts(
        self,
        rows: Tensor,
        moment: Tensor,
        formats: Sequence[TensorFormat],
        grids: Sequence[Grid],
        numerics: Numerics,
    ) -> Iterator[tuple[slice, list[Codes]]]:
        """As ``codes``, some rows after the other: of a large weight no copies are made as a whole.

        Args:
            rows: As in ``codes``.
            moment: ``[1, K, k]``: of all rows.
            formats: As in ``codes``.
            grids: As in ``codes``.
            numerics: As in ``codes``.

        Yields:
            Which rows, and their codes in each format.
        """
        solver = self.prepared(_one_or_more(moment))
        # A streamed network has little room beside one weight.
        held = rows.shape[1] * len(formats) * (4 if is_streaming() else 1)
        for some in _pieces(len(rows), held):
            part = rows[some]
            starts = [
                Codes.of(part, f, self._grid(part, moment, f, grid.part(some, len(rows))))
                for f, grid in zip(formats, grids, strict=True)
            ]
            found = [replaceable(start) for start in starts]
            for members in _stacks(formats):
                stack = _stack(part, _ALL_ROWS, [starts[i] for i in members], numerics)
                _fill(found, members, _ALL_ROWS, *solver.solve(stack))
            yield some, found

    def codes_of_inputs(
        self,
        rows: Tensor,
        moment: Tensor,
        tensor_format: TensorFormat,
        grids: Sequence[Grid],
        numerics: Numerics,
    ) -> Codes:
        """A weight in a format whose inputs, or groups, have bits of their own.

        Codes of one row make good each other's errors, so that they cannot be put together from
        those of whole weights.

        Args:
            rows: As in ``codes``.
            moment: As in ``codes``.
            tensor_format: One with parts of several widths (``is_coupled``).
            grids: ``[F]`` where the scales of each width start (``Quantizer.own_grids``).
            numerics: As in ``codes``.
        """
        mixed = MixedInputs.of(rows, tensor_format, grids, numerics)
        found, count = replaceable(mixed.start), len(moment)
        of_group, inputs = len(rows) // count, rows.shape[1]
        for groups in _pieces(count, inputs * max(moment.shape[-1], of_group)):
            solver = self.prepared(_one_or_more(moment[groups]))
            for part in _pieces(of_group, (groups.stop - groups.start) * inputs):
                cut = _Cut(count, groups, part)
                stack = mixed.stack(_stack(rows, cut, [mixed.start], numerics), cut.of)
                _fill([found], [0], cut, *solver.solve(stack))
        return mixed.stored(found)

    def _solve(
        self,
        rows: Tensor,
        moment: Tensor,
        starts: Sequence[Codes],
        found: Sequence[Codes],
        numerics: Numerics,
    ) -> None:
        """Writes what codes become into those that were found, in place."""
        formats = [start.tensor_format for start in starts]
        count, inputs = len(moment), rows.shape[1]
        of_group = len(rows) // count
        for groups in _pieces(count, inputs * max(moment.shape[-1], of_group * len(formats))):
            solver = self.prepared(_one_or_more(moment[groups]))
            held = (groups.stop - groups.start) * inputs
            for members in _stacks(formats):
                for part in _pieces(of_group, held * len(members)):
                    cut = _Cut(count, groups, part)
                    stack = _stack(rows, cut, [starts[i] for i in members], numerics)
                    _fill(found, members, cut, *solver.solve(stack))

    def _grid(self, rows: Tensor, moment: Tensor, tensor_format: TensorFormat, grid: Grid) -> Grid:
        if not (tensor_format.number.has_codebook and self.reads_inputs):
            return grid
        counted = input_weights(moment).repeat_interleave(len(rows) // len(moment), dim=0)
        return codebook_grid(rows, tensor_format.number, counted)

    @abstractmethod
    def prepared(self, moment: Tensor) -> "StackSolver":
        """What does the work for the rows of second moments ``[G, K, k]``, or of one ``[K, k]``.

        Args:
            moment: As in ``codes``: of one block of ``k = K`` inputs, or of several.
        """


def input_weights(moment: Tensor) -> Tensor:
    """``[G, K]`` what a squared error of each input counts, above 0: the moment's diagonal.

    Damped by a hundredth of its mean, as GPTQ's, so that an input that is always 0 counts, too.
    """
    found = diagonal(moment).double()
    mean = found.mean(dim=-1, keepdim=True)
    return torch.where(mean > 0, found / mean, 0.0) + 0.01


class StackSolver(ABC):
    """Rounds stacks of rows, each group of which has one second moment of its inputs."""

    @abstractmethod
    def solve(self, stack: Stack) -> tuple[Tensor, Stack]:
        """Codes ``[..., K, R]``, and the stack with the scales and zero points that they go by."""


def replaceable(start: Codes) -> Codes:
    """A copy whose tensors may be written to."""
    return Codes(
        start.tensor_format,
        start.codes.clone(),
        start.scale.clone(),
        start.zero_point.clone(),
        start.num_inputs,
        start.second,
        start.levels,
    )


def _one_below_the_other(parts: Sequence[Codes]) -> Codes:
    """Codes of the rows of several weights in one format."""
    first = parts[0]
    if len(parts) == 1:
        return first
    codes, scale, point = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ("codes", "scale", "zero_point")
    )
    seconds = [part.second for part in parts if part.second is not None]
    levels = [part.levels for part in parts if part.levels is not None]
    return Codes(
        first.tensor_format,
        codes,
        scale,
        point,
        first.num_inputs,
        SecondScales(
            *(torch.cat(each) for each in zip(*((x.step, x.mean) for x in seconds), strict=True))
        )
        if seconds
        else None,
        torch.cat(levels) if levels else None,
    )


def _apart(found: Codes, sizes: Sequence[int], starts: Sequence[Codes]) -> list[Codes]:
    """The codes of each weight, of so many rows each."""
    parts = (t.split(list(sizes)) for t in (found.codes, found.scale, found.zero_point))
    return [
        replace(start, codes=codes, scale=scale, zero_point=point)
        for start, codes, scale, point in zip(starts, *parts, strict=True)
    ]


@dataclass(frozen=True)
class _Cut:
    """Some of a weight's rows: of some of ``num_groups`` groups, some rows of each."""

    num_groups: int
    groups: slice
    rows: slice

    def of(self, rows: Tensor) -> Tensor:
        """``[g, r, ...]`` of ``[O, ...]``, or ``[r, ...]`` of one: a part of the same memory."""
        of_groups: Tensor = rows.unflatten(0, (self.num_groups, -1))
        return _one_or_more(of_groups[self.groups, self.rows])


_ALL_ROWS: Final = _Cut(1, slice(None), slice(None))


def _one_or_more(groups: Tensor) -> Tensor:
    """Without the axis of groups where there is one: BLAS has faster products of matrices."""
    return groups[0] if len(groups) == 1 else groups


def _stacks(formats: Sequence[TensorFormat]) -> list[list[int]]:
    """Indices of the formats whose rows can be rounded together."""
    found: dict[object, list[int]] = {}
    for index, tensor_format in enumerate(formats):
        found.setdefault(layout(tensor_format), []).append(index)
    return list(found.values())


def _pieces(count: int, numbers: int) -> Iterable[slice]:
    """Of so many things that take so many numbers each, as many as are held at once."""
    step = max(1, NUMBERS_AT_ONCE // max(numbers, 1))
    return (slice(i, min(i + step, count)) for i in range(0, count, step))


def _stack(rows: Tensor, cut: _Cut, starts: Sequence[Codes], numerics: Numerics) -> Stack:
    formats = [start.tensor_format for start in starts]
    grids = [(cut.of(start.scale), cut.of(start.zero_point)) for start in starts]
    seconds = [start.second and start.second.mapped(cut.of) for start in starts]
    levels = [None if start.levels is None else cut.of(start.levels) for start in starts]
    return Stack.of(cut.of(rows), formats, grids, numerics, seconds, levels)


def _fill(
    found: Sequence[Codes], members: Sequence[int], cut: _Cut, codes: Tensor, stack: Stack
) -> None:
    """Writes what a stack became into the codes of its formats, in place."""
    for place, index in enumerate(members):
        into = found[index]
        count = codes.shape[-1] // len(members)
        columns = slice(place * count, (place + 1) * count)
        cut.of(into.codes)[..., : into.num_inputs] = codes[..., columns].mT
        cut.of(into.scale)[:] = stack.scale[..., columns].mT
        cut.of(into.zero_point)[:] = stack.zero_point[..., columns].mT
