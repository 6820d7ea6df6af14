"""k-means on a line, against every partition that there is."""

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpq.quantization import kmeans
from mpq.quantization.kmeans import kmeans_levels

Array = np.ndarray[Any, np.dtype[np.float64]]


def error(row: Array, weights: Array, levels: Array) -> float:
    """Of every number at its nearest level."""
    return float((weights * ((row[:, None] - levels) ** 2).min(axis=1)).sum())


def least_error(row: Array, weights: Array, count: int) -> float:
    """Of all partitions into intervals of the sorted numbers, each with its weighted mean."""
    order = np.argsort(row)
    x, w = row[order], weights[order]
    found = np.inf
    for inner in range(min(count, len(x))):
        for borders in combinations(range(1, len(x)), inner):
            ends = [0, *borders, len(x)]
            parts = [slice(a, b) for a, b in pairwise(ends)]
            means = [np.average(x[part], weights=w[part]) for part in parts]
            errors = [w[p] @ (x[p] - mean) ** 2 for p, mean in zip(parts, means, strict=True)]
            found = min(found, float(np.sum(errors)))
    return found


@settings(max_examples=200, deadline=None)
@given(
    numbers=st.lists(st.floats(-10, 10, width=16), min_size=1, max_size=9),
    count=st.integers(1, 8),
    seed=st.integers(0, 2**16),
)
def test_levels_are_the_best_of_all_partitions(numbers: list[float], count: int, seed: int) -> None:
    """Also of equal numbers, and where there are fewer of them than levels."""
    row = np.array(numbers)
    weights = np.random.default_rng(seed).random(len(row)) ** 3 + 1e-3

    (found,) = kmeans_levels(row[None], weights[None], count)

    assert len(found) == count
    assert (np.diff(found) >= 0).all()
    assert error(row, weights, found) == pytest.approx(
        least_error(row, weights, count), rel=1e-9, abs=1e-9
    )


def simple_program(row: Array, weights: Array, count: int) -> float:
    """The least error by the plain recursion over all beginnings of the last cluster."""
    order = np.argsort(row)
    x, w = row[order], weights[order]
    sums = np.array([np.concatenate([[0], part.cumsum()]) for part in (w, w * x, w * x * x)])
    best = np.where(np.arange(len(x) + 1) > 0, np.inf, 0.0)
    for _ in range(count):
        after = best.copy()
        for end in range(1, len(x) + 1):
            weight, product, square = sums[:, end, None] - sums[:, :end]
            after[end] = min(after[end], (best[:end] + square - product**2 / weight).min())
        best = after
    return float(best[-1])


@pytest.mark.parametrize("count", [2, 4, 8, 16])
@pytest.mark.parametrize("length", [33, 64, 257])
def test_long_rows_together_are_as_good_as_the_plain_program(length: int, count: int) -> None:
    """Several rows at once, of tails and of numbers that are there often."""
    generator = np.random.default_rng(length + count)
    rows = np.stack([generator.standard_t(2, length), generator.normal(size=length).round(1)])
    weights = generator.random((2, length)) ** 4 + 1e-6

    found = kmeans_levels(rows, weights, count)

    for row, counted, levels in zip(rows, weights, found, strict=True):
        assert error(row, counted, levels) == pytest.approx(
            simple_program(row, counted, count), rel=1e-7
        )


@pytest.mark.parametrize("count", [3, 8])
def test_rows_beyond_the_limit_are_near_the_best(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By ranks, and then Lloyd's iteration: within a thousandth here; never below the best."""
    generator = np.random.default_rng(0)
    rows, weights = generator.standard_t(4, (4, 1000)), generator.random((4, 1000)) + 0.01
    exact = kmeans_levels(rows, weights, count)
    monkeypatch.setattr(kmeans, "MOST_PLACES", 256)

    found = kmeans_levels(rows, weights, count)

    for row, counted, near, best in zip(rows, weights, found, exact, strict=True):
        least = error(row, counted, best)
        assert least * (1 - 1e-9) <= error(row, counted, near) <= least * 1.001


@pytest.mark.parametrize("length", [50, 300])
def test_rows_do_not_depend_on_each_other(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor on how many are worked on at once."""
    generator = np.random.default_rng(1)
    rows, weights = generator.normal(size=(7, length)), generator.random((7, length)) + 0.1
    monkeypatch.setattr(kmeans, "MOST_PLACES", 128)
    together = kmeans_levels(rows, weights, 4)

    alone = [kmeans_levels(rows[i : i + 1], weights[i : i + 1], 4) for i in range(7)]

    np.testing.assert_array_equal(together, np.concatenate(alone))
