"""Stretches of an axis, and which stretch of its input an operation reads for one of its output."""

from dataclasses import dataclass
from itertools import pairwise, product
from typing import final


@final
@dataclass(frozen=True)
class Span:
    """Positions ``start`` to ``stop`` of one axis; ``stop`` is not in it.

    May begin below 0 and end past the axis, where an operation reads what it is padded with.
    """

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def slice(self) -> slice:
        """The same stretch as an index."""
        return slice(self.start, self.stop)

    def within(self, size: int) -> "Span":
        """What of it lies on an axis of so many positions; one position where nothing does."""
        # A patch may lie in the padding altogether. An empty tensor would be an exception to every
        # kernel; padding by a negative number takes the one position off again.
        start = min(max(self.start, 0), size - 1)
        return Span(start, max(min(self.stop, size), start + 1))

    def hull(self, other: "Span | None") -> "Span":
        """The least stretch that has both."""
        if other is None:
            return self
        return Span(min(self.start, other.start), max(self.stop, other.stop))

    def seen_from(self, other: "Span") -> "Span":
        """The same positions, counted from the start of another stretch."""
        return Span(self.start - other.start, self.stop - other.start)


@final
@dataclass(frozen=True)
class Reading:
    """Where an operation reads along one axis: output ``i`` at ``i stride - before + k dilation``.

    Args:
        kernel: Positions that one output reads, ``k < kernel``.
        stride: Step between outputs.
        before: Positions that the input is padded with at its start.
        dilation: Step between positions of one output.
    """

    kernel: int = 1
    stride: int = 1
    before: int = 0
    dilation: int = 1

    def needed(self, outputs: Span) -> Span:
        """What a stretch of outputs reads, padding included."""
        first = outputs.start * self.stride - self.before
        last = (outputs.stop - 1) * self.stride - self.before + self.dilation * (self.kernel - 1)
        return Span(first, last + 1)


def whole_channels(window: tuple[Span, Span]) -> tuple[slice, slice, slice, slice]:
    """A window of rows and columns as an index of all examples and channels: ``[N, C, h, w]``."""
    return slice(None), slice(None), window[0].slice, window[1].slice


def patches_of(plane: tuple[int, int], count: int) -> list[tuple[Span, Span]]:
    """A plane in ``count`` times ``count`` patches, row by row."""
    rows, columns = (_parts(size, count) for size in plane)
    return list(product(rows, columns))


def _parts(size: int, count: int) -> tuple[Span, ...]:
    """An axis in so many stretches whose lengths differ by one at most."""
    borders = [index * size // count for index in range(count + 1)]
    return tuple(Span(a, b) for a, b in pairwise(borders))
