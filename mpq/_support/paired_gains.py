"""Whether losses of the same examples are smaller in one network than in another."""

from math import sqrt
from typing import Final

import numpy as np
from scipy.special import stdtr

from mpq._support.arrays import Array

LEVEL: Final = 0.05
"""How often a gain is called one that is none."""
ALIKE: Final = 1e-5
"""Standard error, as a share of the mean, up to which examples are one and the same."""


def relative_gains(before: Array, after: Array) -> Array:
    """``[N]`` how much less each example loses, in units of the larger mean loss."""
    found: Array = (before - after) / (max(after.mean(), before.mean()) or 1.0)
    return found


def is_above_chance(gains: Array, level: float = LEVEL) -> bool:
    """Whether a mean of paired differences ``[N]`` is above 0: Student's t, one-sided."""
    error = standard_error(gains)
    # Examples that are all alike prove as little as a single one; their last digits may differ.
    if error <= ALIKE * abs(gains.mean()):
        return False
    return bool(stdtr(len(gains) - 1, gains.mean() / error) > 1 - level)


def most_gain(gains: Array) -> float:
    """How often chance alone would give such signed ranks of differences ``[N]``: Wilcoxon's p.

    One-sided; 1 where all are 0.
    """
    from scipy.stats import wilcoxon  # takes as long to import as a third of torch

    return float(wilcoxon(gains, alternative="greater").pvalue) if gains.any() else 1.0


def standard_error(values: Array) -> float:
    """Of their mean; 0 of a single one."""
    return float(np.std(values, ddof=1)) / sqrt(len(values)) if len(values) > 1 else 0.0
