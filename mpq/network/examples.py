"""Examples, which are read as often as needed, batch by batch."""

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any, final

from torch import Tensor

from mpq._support.ranks import Ranks
from mpq.errors import DataError
from mpq.network.batch import IGNORED_TARGET, Batch

__all__ = ["IGNORED_TARGET", "Batch", "Calibration"]


@final
class Calibration:
    """Examples that can be read again and again, batch by batch.

    Args:
        source: A function that yields batches (called anew for every pass), or an iterable of
            batches; a one-shot iterator is kept in memory. See ``Batch.of`` for what a batch is.
        start: First example that is used.
        stop: End of the examples that are used, or ``None``.

    Raises:
        DataError: If the source is neither.
    """

    def __init__(
        self,
        source: Callable[[], Iterable[Any]] | Iterable[Any],
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        if not callable(source):
            _check_iterable(source)
        # Estimators read the data several times; an iterator would be empty from the second on.
        one_shot = isinstance(source, Iterator)
        self._source = list(source) if one_shot and not callable(source) else source
        self._range = (start, stop)
        self.is_whole = False
        self._axes: tuple[int | None, ...] | None = None
        self._ranks: Ranks | None = None
        self._spread: tuple[float, ...] | None = None
        self.at_once: int | None = None
        """Examples of a batch that are yielded together at the most; ``None``: all."""
        self._size: int | None = None
        self._sums: list[float] = []
        self.num_batches: int | None = None
        """How many batches there are, uncut; known after the first pass."""

    @classmethod
    def of(cls, data: Any) -> "Calibration":
        """The data itself if it is a ``Calibration``, else one that reads it."""
        return data if isinstance(data, cls) else cls(data)

    def __iter__(self) -> Iterator[Batch]:
        start, stop = self._range
        source = self._source() if callable(self._source) else self._source
        # Again, as what a function returns is known only once it is called.
        _check_iterable(source)
        position, used, batches = 0, 0, 0
        for data in source:
            if stop is not None and position >= stop:
                break
            batch = Batch.of(data)
            batch = batch if self._axes is None else replace(batch, axes=self._axes)
            batch = replace(batch.whole() if self.is_whole else batch, start=position)
            first, last = max(start - position, 0), batch.size
            # A range may begin and end within a batch.
            last = last if stop is None else min(last, stop - position)
            position += batch.size
            if first < last:
                used += last - first
                self._check_same(batches, batch)
                batches += 1
                if self._ranks is not None and not self._ranks.has(batches - 1):
                    continue
                batch = batch if last - first == batch.size else batch.slice(first, last)
                yield from batch.pieces(self.at_once)
        # Only a pass that reaches the end knows the size; `first` breaks off before.
        self._check_size(used)
        self.num_batches = batches

    def _check_same(self, index: int, batch: Batch) -> None:
        """Shuffled or augmented data would be compared with other data's reference."""
        found = batch.checksum()
        if index == len(self._sums):
            self._sums.append(found)
        # Compared exactly: the same numbers in the same order add up to the same bits.
        elif found != self._sums[index]:
            raise DataError(
                f"batch {index} has other inputs than when it was first read; the data must be the "
                "same every time: no shuffling, no random augmentation"
            )

    def _check_size(self, used: int) -> None:
        if not used:
            raise DataError("there are no examples: the data yielded no batch")
        if self._size not in (None, used):
            raise DataError(
                f"the data gave {self._size} examples at first and {used} later; the function "
                "must yield the same examples every time it is called"
            )
        self._size = used

    @property
    def num_examples(self) -> int:
        """How many examples there are; reads them once."""
        if self._size is None:
            for _ in self:
                pass
        assert self._size is not None
        return self._size

    def first(self) -> Batch:
        """The first batch."""
        batch = next(iter(self), None)
        if batch is None:
            raise DataError("there are no examples: the data yielded no batch")
        return batch

    def first_of_several(self) -> Batch:
        """The first batch of more than one example; the first one of all where there is none."""
        return next((batch for batch in self if batch.size > 1), None) or self.first()

    def until(self, num_examples: int) -> "Calibration":
        """The first examples, at most so many."""
        return self.between(0, num_examples)

    def between(self, start: int, stop: int) -> "Calibration":
        """Examples ``start`` to ``stop`` of these, or as many as there are."""
        first, end = self._range
        last = first + stop if end is None else min(first + stop, end)
        found = self._afresh()
        found._range = (first + start, last)
        found._spread = None if self._spread is None else self._spread[start:stop]
        return found

    def picked(self, places: Collection[int]) -> "Calibration":
        """Some of these examples, as data of their own, in the order that they have here.

        Args:
            places: Of each, counted from 0; as often as it is there makes no difference.
        """
        wanted = sorted(set(places))
        found = Calibration(partial(_picked, self, wanted))
        found.is_whole = self.is_whole
        found._spread = None if self._spread is None else tuple(self._spread[i] for i in wanted)
        return found

    def spread_over(self, numbers: Sequence[float] | None) -> "Calibration":
        """The same data, both parts of whose splits are spread over these numbers.

        Args:
            numbers: One for every example, such as the step of a diffusion; ``None``: splits are by
                position.
        """
        found = copy(self)
        found._spread = None if numbers is None else tuple(numbers)
        return found

    def share(self, ranks: Ranks) -> "Calibration":
        """Every so-many-th batch: those that are one rank's own."""
        found = copy(self)
        found._ranks = ranks
        return found

    def along(self, axes: tuple[int | None, ...] | None) -> "Calibration":
        """The same data, whose examples lie along these axes: see ``Batch.axes``."""
        if not axes:
            return self
        found = self._afresh()
        found._axes = axes
        return found

    def whole(self) -> "Calibration":
        """The same data, every batch of which is one example."""
        found = self._afresh()
        found.is_whole = True
        return found

    def by(self, at_once: int | None) -> "Calibration":
        """The same data, so many examples of a batch at once at the most; ``None``: all."""
        found = copy(self)
        found.at_once = at_once
        return found

    @property
    def uncut(self) -> "Calibration":
        """The same data in whole batches."""
        return self if self.at_once is None else self.by(None)

    def _afresh(self) -> "Calibration":
        """The same source, of which nothing is known yet."""
        found = Calibration(self._source, *self._range)
        found.is_whole, found._axes, found.at_once = self.is_whole, self._axes, self.at_once
        found._ranks, found._spread = self._ranks, self._spread
        return found

    def split(self, held_out: float) -> tuple["Calibration", "Calibration"]:
        """The first examples, and the last ``held_out`` share of them.

        Of data that is ``spread_over`` numbers, both have examples all along them instead.

        Raises:
            DataError: If there are fewer than two examples.
        """
        count = self.num_examples
        if count < 2:
            what = (
                "a single batch, whose rows change each other's outputs so that it is one example,"
                if self.is_whole
                else f"{count} example"
            )
            raise DataError(f"{what} cannot be split; give more, or held-out data of its own")
        # At least one example on either side, whatever the share.
        border = count - min(count - 1, max(1, round(count * held_out)))
        if self._spread is not None:
            first, last = _spread_parts(self._spread, count - border)
            return self.picked(first), self.picked(last)
        return self.between(0, border), self.between(border, count)


def _picked(data: Calibration, wanted: Sequence[int]) -> Iterator[Batch]:
    """Batches of some examples; ``wanted`` rises."""
    position = 0
    for batch in data.uncut:
        stop = position + batch.size
        some = wanted[bisect_left(wanted, position) : bisect_left(wanted, stop)]
        if some:
            yield batch.take([place - position for place in some])
        position = stop


def _spread_parts(numbers: Sequence[float], num_last: int) -> tuple[list[int], list[int]]:
    """Places of examples in two parts, the last of so many, each spread over the numbers."""
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    # The middle of each of as many stretches of equal length.
    last = {order[(2 * k + 1) * len(order) // (2 * num_last)] for k in range(num_last)}
    return [i for i in range(len(order)) if i not in last], sorted(last)


def _check_iterable(source: Any) -> None:
    """A tensor, a dict or a text can be iterated over, too, but not in batches."""
    if isinstance(source, Tensor | Mapping | str) or not isinstance(source, Iterable):
        raise DataError(
            f"data is a function or a list that yields batches; got {type(source).__name__}"
        )
