"""Where steps of a diffusion are parted into clusters, so that ranges within one are alike."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from mpq._support.arrays import Array, Columns
from mpq.errors import DataError

FEWEST: Final = 4
"""Examples of a cluster: of fewer, no range is known."""
MOST_BINS: Final = 256
"""Neighbouring steps are looked at together beyond so many different ones."""


def step_borders(steps: Sequence[float], logs: Array, count: int) -> tuple[float, ...]:
    r"""``[T - 1]`` borders between clusters of contiguous steps.

    They minimize, over all such clusters of ``FEWEST`` examples or more, by dynamic programming,

    .. math:: \sum_t \sum_{n \in t} \sum_\ell (r_{n \ell} - \bar r_{t \ell})^2

    the variance within clusters of the logarithms ``r`` of layers' ranges: a factor counts as much
    in a layer of small numbers as in one of large ones. Q-Diffusion (Li et al. 2023,
    arXiv:2302.04304) and TFMQ-DM (Huang et al. 2023, arXiv:2311.16503) have calibration or ranges
    by step at equal distances; here the data says where ranges change.

    Args:
        steps: ``[N]`` of every example.
        logs: ``[N, L]`` of layers' ranges, finite.
        count: ``T``, 2 or more.

    Raises:
        DataError: If there are too few steps, or examples, for as many clusters.
    """
    numbers = np.asarray(steps, dtype=np.float64)
    different = np.unique(numbers)
    if len(different) < count or len(numbers) < FEWEST * count:
        raise DataError(
            f"{count} clusters of steps need as many different steps, and {FEWEST} calibration "
            f"examples each; there are {len(different)} steps in {len(numbers)} examples: give "
            "more, or ask for fewer clusters (--step-clusters)"
        )
    bins = np.array_split(different, min(MOST_BINS, len(different)))
    ends = [float(each[-1]) for each in bins]
    of_bin = np.searchsorted(ends, numbers)
    cuts = _best_cuts(_sums(of_bin, logs, len(bins)), count)
    if cuts is None:
        raise DataError(
            f"steps of the {len(numbers)} calibration examples cannot be parted into {count} "
            f"clusters of {FEWEST} examples or more: spread the examples over steps, or ask for "
            "fewer clusters (--step-clusters)"
        )
    # Between two steps, so that one that was never seen goes with the nearer of them.
    return tuple((ends[cut - 1] + float(bins[cut][0])) / 2 for cut in cuts)


def _sums(of_bin: Columns, logs: Array, num_bins: int) -> tuple[Array, Array, Array]:
    """``[S + 1]`` examples, ``[S + 1, L]`` sums and ``[S + 1]`` sums of squares, of bins before."""
    counts, sums, squares = (
        np.zeros((num_bins, *shape)) for shape in ((), logs.shape[1:], ())
    )  # fmt: skip
    # From their mean on: squares of large numbers have no digits left for their differences.
    centred = logs - logs.mean(axis=0)
    np.add.at(counts, of_bin, 1.0)
    np.add.at(sums, of_bin, centred)
    np.add.at(squares, of_bin, (centred**2).sum(axis=1))
    counts, sums, squares = (
        np.concatenate([np.zeros_like(x[:1]), x.cumsum(axis=0)]) for x in (counts, sums, squares)
    )
    return counts, sums, squares


def _best_cuts(before: tuple[Array, Array, Array], count: int) -> list[int] | None:
    """Bins that clusters but the first begin with; ``None``: there are no such clusters."""
    counts, sums, squares = before
    num_bins = len(counts) - 1
    apart = np.full((num_bins + 1, num_bins + 1), np.inf)  # of bins from a row's to a column's
    for first in range(num_bins):
        size = counts[first + 1 :] - counts[first]
        mean_squares = ((sums[first + 1 :] - sums[first]) ** 2).sum(axis=1) / size
        lost = squares[first + 1 :] - squares[first] - mean_squares
        apart[first, first + 1 :] = np.where(size >= FEWEST, lost.clip(min=0.0), np.inf)
    least, came = apart[0], []
    for _ in range(count - 1):
        total = least[:, None] + apart
        came.append(total.argmin(axis=0))
        least = total.min(axis=0)
    if not np.isfinite(least[-1]):
        return None
    cuts, end = list[int](), num_bins
    for places in reversed(came):
        end = int(places[end])
        cuts.append(end)
    return cuts[::-1]
