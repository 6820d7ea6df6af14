"""The interface of every rounding of weights."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar, Final

from torch import Tensor

from mpq._support.bounds import Bounded
from mpq.quantization.codes import Codes
from mpq.quantization.grid import Grid
from mpq.quantization.numerics import Numerics
from mpq.quantization.precision import TensorFormat
from mpq.rounding.stack import Stack, layout

NUMBERS_AT_ONCE: Final = 1 << 24
"""Weights (64 MiB in float32) of a stack; a rounding keeps a handful of copies."""


class WeightRounding(Bounded, ABC):
    """Makes codes of a weight, with regard to the inputs that it meets."""

    name: ClassVar[str]
    summary: ClassVar[str]

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
            moment: ``[G, K, K]`` float32, symmetric and positive semidefinite: the second moment
                of the inputs that rows read, in ``G`` consecutive groups of ``O / G`` rows.
            formats: That need a scale.
            grids: Where the scales of each start: ``weight_grid`` of these rows.
            numerics: How scales are stored.

        Returns:
            Codes of each format, with scales as they are stored.
        """
        starts = [Codes.of(rows, f, grid) for f, grid in zip(formats, grids, strict=True)]
        found = [replaceable(start) for start in starts]
        for matrix, part in zip(moment, _parts(len(rows), len(moment)), strict=True):
            solver = self.prepared(matrix)
            for members in _stacks(formats):
                for some in _pieces(part, len(members) * rows.shape[1]):
                    stack = _stack(rows, some, [starts[i] for i in members], numerics)
                    codes, scale = solver.solve(stack)
                    _fill(found, members, some, codes, scale)
        return found

    @abstractmethod
    def prepared(self, moment: Tensor) -> "StackSolver":
        """What does the work for all rows that share a second moment ``[K, K]``."""


class StackSolver(ABC):
    """Rounds stacks of rows whose inputs have one second moment."""

    @abstractmethod
    def solve(self, stack: Stack) -> tuple[Tensor, Tensor]:
        """Codes ``[K, R]`` and scales ``[S, R]``, as they are stored."""


def replaceable(start: Codes) -> Codes:
    """A copy whose tensors may be written to."""
    return Codes(
        start.tensor_format,
        start.codes.clone(),
        start.scale.clone(),
        start.zero_point,
        start.num_inputs,
    )


def _parts(num_rows: int, num_groups: int) -> list[range]:
    size = num_rows // num_groups
    return [range(group * size, (group + 1) * size) for group in range(num_groups)]


def _stacks(formats: Sequence[TensorFormat]) -> list[list[int]]:
    """Indices of the formats whose rows can be rounded together."""
    found: dict[object, list[int]] = {}
    for index, tensor_format in enumerate(formats):
        found.setdefault(layout(tensor_format), []).append(index)
    return list(found.values())


def _pieces(part: range, numbers_per_row: int) -> Iterable[slice]:
    step = max(1, NUMBERS_AT_ONCE // max(numbers_per_row, 1))
    return (slice(i, min(i + step, part.stop)) for i in range(part.start, part.stop, step))


def _stack(rows: Tensor, some: slice, starts: Sequence[Codes], numerics: Numerics) -> Stack:
    formats = [start.tensor_format for start in starts]
    grids = [(start.scale[some], start.zero_point[some]) for start in starts]
    return Stack.of(rows[some], formats, grids, numerics)


def _fill(
    found: Sequence[Codes], members: Sequence[int], some: slice, codes: Tensor, scale: Tensor
) -> None:
    """Writes what a stack became into the codes of its formats, in place."""
    count = some.stop - some.start
    for place, index in enumerate(members):
        columns = slice(place * count, (place + 1) * count)
        into = found[index]
        into.codes[some, : into.num_inputs] = codes[:, columns].t()
        into.scale[some] = scale[:, columns].t()
