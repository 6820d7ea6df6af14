"""A median and how sure it is."""

from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt
from scipy import stats


@final
@dataclass(frozen=True)
class Interval:
    """Median of repeated times.

    Args:
        median_s: The median, in seconds of the chosen clock.
        low_s: Lower end of its 95 % interval.
        high_s: Upper end of its 95 % interval.
        wall_s: Median by the wall clock, for comparison.
        drift: Median of the second half over that of the first, less 1.
        runs: How many times there are.
    """

    median_s: float
    low_s: float
    high_s: float
    wall_s: float
    drift: float
    runs: int

    @property
    def half_width_s(self) -> float:
        """Half of the interval."""
        return (self.high_s - self.low_s) / 2


def median_interval(seconds: npt.NDArray[np.float64], wall_s: float) -> Interval:
    """The median of ``[R]`` times with its 95 % interval.

    The interval's ends are order statistics: how many of the times lie below the true median is
    binomial, whatever their distribution (Conover 1999, Practical Nonparametric Statistics,
    section 3.2). Times that depend on each other, as those of a machine that slows down, make it
    too narrow; ``drift`` shows that.

    >>> median_interval(np.arange(1.0, 12.0), 6.0).low_s
    2.0
    """
    # A sorted copy: the drift below needs the times in the order of the rounds.
    ordered = np.sort(seconds)
    count = len(ordered)
    # Fewer than `below` of the times lie under the true median with a chance of less than 2.5 %,
    # and as rarely so few above it.
    below = int(stats.binom.ppf(0.025, count, 0.5))
    # Of 5 times or fewer there is no such rank; then all of them are the interval.
    first = max(below - 1, 0)
    half = count // 2
    early, late = np.median(seconds[:half]), np.median(seconds[half:])
    return Interval(
        float(np.median(ordered)),
        float(ordered[first]),
        float(ordered[count - 1 - first]),
        wall_s,
        # A coarse clock may stand still during half of the runs.
        float(late / early - 1) if early > 0 else 0.0,
        count,
    )
