"""How well one column of numbers ranks as another does, and how sure that is."""

from dataclasses import dataclass
from math import atanh, sqrt, tanh
from typing import Final, Self, final

import numpy as np
import numpy.typing as npt

_FEWEST: Final = 10
"""Rows of which a correlation has an interval: the formula is for so many or more."""
_QUANTILE: Final = 1.959964
"""Of the normal distribution: 95 % lie within so many standard deviations."""


@final
@dataclass(frozen=True)
class RankAgreement:
    """Predicted against measured losses.

    Args:
        spearman: Spearman's rank correlation, -1 to 1; ``nan`` where there is none.
        kendall: Kendall's tau-b, -1 to 1: ties are taken into account; ``nan`` where there is none.
        ratio: Median of predicted over measured, where something was lost; ``nan`` where nothing.
        num_trials: How many assignments were compared.
    """

    spearman: float
    kendall: float
    ratio: float
    num_trials: int

    @classmethod
    def of(cls, predicted: npt.ArrayLike, measured: npt.ArrayLike) -> Self:
        """Of two columns of equal length.

        Fewer than three rows, or a column of equal numbers, have no correlation; a ratio needs one
        row whose measured loss is above 0.
        """
        # Imported here: it takes tenths of a second, and a comparison can be read without it.
        from scipy import stats

        x, y = np.asarray(predicted, dtype=float), np.asarray(measured, dtype=float)
        # The median: where the measured loss is close to 0, single ratios are huge.
        ratio = float(np.median(x[y > 0] / y[y > 0])) if (y > 0).any() else float("nan")
        # Two points always agree or disagree in full, and ranks of equal numbers are undefined:
        # scipy would warn and return nan.
        if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
            return cls(float("nan"), float("nan"), ratio, len(x))
        spearman, kendall = stats.spearmanr(x, y), stats.kendalltau(x, y)
        return cls(float(spearman.statistic), float(kendall.statistic), ratio, len(x))

    @property
    def interval(self) -> tuple[float, float] | None:
        r"""The 95 % interval of ``spearman``; ``None`` of fewer than ten, or of +1 or -1.

        By Fisher's z, whose variance is about :math:`(1 + r^2 / 2) / (n - 3)` for ranks: Bonett and
        Wright (2000), Sample size requirements for estimating Pearson, Kendall and Spearman
        correlations, Psychometrika 65(1). Assignments are taken to be drawn independently; near a
        correlation of 1 it is rough.
        """
        # A comparison with nan is false.
        if self.num_trials < _FEWEST or not abs(self.spearman) < 1:
            return None
        half = _QUANTILE * sqrt((1 + self.spearman**2 / 2) / (self.num_trials - 3))
        return tanh(atanh(self.spearman) - half), tanh(atanh(self.spearman) + half)
