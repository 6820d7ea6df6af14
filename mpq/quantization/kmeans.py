"""Weighted k-means of numbers on a line, of many rows at once, by dynamic programming."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Self, final

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
Places = np.ndarray[Any, np.dtype[np.int64]]
MOST_PLACES: Final = 2048
"""Numbers of a row up to which every partition is considered."""
AT_ONCE: Final = 1 << 15
"""Numbers of rows that are worked on together, which stays in a processor's cache."""
MOST_STEPS: Final = 100
"""Of Lloyd's iteration, which ends by itself long before."""


def kmeans_levels(rows: Array, weights: Array, count: int) -> Array:
    r"""The levels that are nearest to the numbers of each row, by weighted squared error.

    .. math:: \min_{c_1 \le \dots \le c_n} \sum_k h_k \min_i (w_k - c_i)^2

    On a line clusters are intervals, so that dynamic programming finds the optimum: with :math:`n`
    clusters for the first :math:`j` numbers, the last one begins no earlier than with :math:`n` for
    fewer numbers, and each layer of the program takes :math:`O(K \log K)` by divide and conquer
    (Wang and Song 2011, Ckmeans.1d.dp; Gronlund et al. 2017, arXiv:1701.07204). The codebooks are
    SqueezeLLM's (Kim et al. 2023, arXiv:2306.07629), which runs Lloyd's iteration from a random
    start.

    Exact for rows of up to ``MOST_PLACES`` numbers. In longer rows a cluster of the program begins
    at one of so many places, spaced evenly both by rank and by distance, so that tails have theirs;
    Lloyd's iteration on all numbers, which never makes it worse, then moves levels and borders.

    Args:
        rows: ``[R, K]``, finite.
        weights: ``[R, K]`` above 0.
        count: Levels, at least 1.

    Returns:
        ``[R, count]`` ascending; where a row has fewer numbers, some levels are there twice.
    """
    some = max(1, AT_ONCE // max(rows.shape[1], 1))
    pieces = (slice(first, first + some) for first in range(0, len(rows), some))
    return np.concatenate([_levels(rows[piece], weights[piece], count) for piece in pieces])


def _levels(rows: Array, weights: Array, count: int) -> Array:
    # Around 0, where no digits are lost in differences of sums.
    middle = (rows * weights).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
    order = np.argsort(rows, axis=1, kind="stable")
    numbers = np.take_along_axis(rows - middle, order, axis=1)
    sums = _Sums.of(numbers, np.take_along_axis(weights, order, axis=1))
    length = rows.shape[1]
    if length <= MOST_PLACES:
        borders = best_borders(sums, count)
    else:
        places = _spread(numbers)
        found = best_borders(sums.at(places), count)
        borders = _lloyd(sums, numbers, np.take_along_axis(places, found, axis=1))
    # Means of equal numbers may differ in their last digit.
    return np.sort(sums.means(borders) + middle, axis=1)


def _spread(numbers: Array) -> Places:
    """``[R, MOST_PLACES + 1]`` ranks of sorted rows ``[R, K]``, 0 and ``K`` at their ends."""
    length = numbers.shape[1]
    reach = numbers[:, -1:] - numbers[:, :1]
    distance = (numbers - numbers[:, :1]) / np.where(reach > 0, reach, 1.0)
    travelled = (distance + np.arange(length) / length) / 2
    evenly = np.arange(1, MOST_PLACES) / MOST_PLACES
    inner = [np.searchsorted(row, evenly) for row in travelled]
    return np.array([[0, *row, length] for row in inner])


@final
@dataclass(frozen=True, eq=False)
class _Sums:
    """Of the first numbers of each row, in order: ``[R, K + 1]``.

    Args:
        weight: Their weights.
        product: Weights times numbers.
    """

    weight: Array
    product: Array

    @classmethod
    def of(cls, numbers: Array, weights: Array) -> Self:
        """Of sorted rows ``[R, K]``."""
        zero = np.zeros((len(numbers), 1))
        weight, product = (
            np.concatenate([zero, part.cumsum(axis=1)], axis=1)
            for part in (weights, weights * numbers)
        )
        return cls(weight, product)

    def at(self, ranks: Places) -> Self:
        """Of some first numbers alone, ``[R, n]`` ranks."""
        weight, product = (
            np.take_along_axis(part, ranks, axis=1) for part in (self.weight, self.product)
        )
        return type(self)(weight, product)

    def means(self, borders: Places) -> Array:
        """``[R, n]`` of the numbers between borders ``[R, n + 1]``; of empty ones a neighbour's."""
        weight, product = (
            np.diff(np.take_along_axis(part, borders, axis=1))
            for part in (self.weight, self.product)
        )
        is_empty = np.diff(borders) == 0
        found = product / np.where(is_empty, 1.0, weight)
        places = np.where(is_empty, -1, np.arange(found.shape[1]))
        before = np.maximum.accumulate(places, axis=1)
        first = np.argmax(~is_empty, axis=1)[:, None]
        return np.take_along_axis(found, np.where(before < 0, first, before), axis=1)


def _lloyd(sums: _Sums, numbers: Array, borders: Places) -> Places:
    """Borders between numbers that are nearest to the means between borders."""
    for _ in range(MOST_STEPS):
        means = sums.means(borders)
        middle = (means[:, 1:] + means[:, :-1]) / 2
        moved = borders.copy()
        for row, (ordered, ends) in enumerate(zip(numbers, middle, strict=True)):
            moved[row, 1:-1] = np.searchsorted(ordered, ends, side="right")
        if np.array_equal(moved, borders):
            break
        borders = moved
    return borders


def best_borders(sums: _Sums, count: int) -> Places:
    """``[R, count + 1]`` ranks at which the clusters of each row begin, 0 and ``K`` at its ends."""
    num_rows, places = sums.weight.shape
    last = np.full(num_rows, places - 1)
    gains = _gain(sums, np.zeros(1, dtype=np.int64), np.arange(places))  # of one cluster
    begins: list[Places] = []
    for _ in range(count - 2):
        gains, begin = _with_one_more(sums, gains)
        begins.append(begin)
    borders = [last]
    if count > 1:
        # Of all numbers alone: nothing is built on the last layer.
        every = gains + _gain(sums, np.arange(places), last[:1])
        borders.append(every.argmax(axis=1))
    for begin in reversed(begins):
        borders.append(begin[np.arange(num_rows), borders[-1]])
    borders.append(np.zeros(num_rows, dtype=np.int64))
    return np.stack(borders[::-1], axis=1)


def _gain(sums: _Sums, begin: Places, end: Places) -> Array:
    """``[R, n]`` by how much means instead of zeros lower the squared error between ranks."""
    weight = sums.weight[:, end] - sums.weight[:, begin]
    product = sums.product[:, end] - sums.product[:, begin]
    return product * product / np.where(weight > 0, weight, 1.0)


def _with_one_more(sums: _Sums, gains: Array) -> tuple[Array, Places]:
    """The best with one cluster more, of every first numbers, and where the last one begins.

    Args:
        sums: Of all rows.
        gains: ``[R, K + 1]`` the best without it.
    """
    num_rows, places = gains.shape
    best, begin = np.zeros_like(gains), np.zeros(gains.shape, dtype=np.int64)
    for ends, low, high in _halves(begin):
        counts = high - low + 1
        starts = np.concatenate([[0], counts.ravel().cumsum()[:-1]])
        cell = np.repeat(np.arange(counts.size), counts.ravel())
        tried = np.arange(len(cell)) + (low.ravel() - starts)[cell]
        row = cell // len(ends) * places
        end = row + ends[cell % len(ends)]
        tried_at = row + tried
        weight = sums.weight.ravel()[end] - sums.weight.ravel()[tried_at]
        product = sums.product.ravel()[end] - sums.product.ravel()[tried_at]
        values = gains.ravel()[tried_at] + product * product / np.where(weight > 0, weight, 1.0)
        most = np.maximum.reduceat(values, starts)
        is_best = np.flatnonzero(values == most[cell])[::-1]
        found = np.empty(counts.size, dtype=np.int64)
        found[cell[is_best]] = tried[is_best]  # the first of equals, which is written last
        best[:, ends] = most.reshape(num_rows, -1)
        begin[:, ends] = found.reshape(num_rows, -1)
    return best, begin


def _halves(begin: Places) -> Iterator[tuple[Places, Places, Places]]:
    """Ends halfway between those that are known, and within what theirs lie; 0 is known.

    Args:
        begin: ``[R, K + 1]``, filled in between two steps.
    """
    most = begin.shape[1] - 1
    half = 1 << most.bit_length() >> 1
    while half:
        ends = np.arange(half, most + 1, 2 * half)
        after = np.minimum(ends + half, most)
        # Beyond the last one nothing is known.
        is_known = (ends + half <= most)[None]
        high = np.where(is_known, np.minimum(begin[:, after], ends), ends)
        low = begin[:, ends - half]
        yield ends, low, np.maximum(high, low)
        half >>= 1
