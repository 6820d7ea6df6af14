"""What whole networks teach about the sum of their layers."""

from dataclasses import dataclass, replace
from typing import Any, Final, Self, final

import numpy as np
import numpy.typing as npt
from scipy import stats

from mpq._support.arrays import Array
from mpq.hardware_profiles.profiling.layer_sums import LayerSums
from mpq.hardware_profiles.profiling.network_times import NetworkTimes
from mpq.problem.cost_table import CostTable, PairwiseCost

OVERHEAD_SPREAD: Final = 0.5
"""Standard deviation of what a network takes besides its layers, in networks' median seconds."""
KERNEL_SPREAD: Final = 0.3
"""Standard deviation of a kernel's factor around 1: what caches and fusion may do to all of it."""
LAYER_SPREAD: Final = 0.05
"""Standard deviation of a single layer's further deviation at one precision."""
NOISE: Final = 0.01
"""Standard deviation of a network's measured time, relative."""


@final
@dataclass(frozen=True, eq=False)
class Correction:
    r"""Layers measured alone do not add up to their network: it has other operations, caches are
    in another state, some operations overlap or are fused. Whole networks show by how much:

    .. math:: T(z) = c + \sum_k s_k \sum_{\ell \in k} t_{\ell z_\ell}
        + \sum_\ell \delta_{\ell z_\ell} t_{\ell z_\ell} + s_e \, e(z) + noise

    with the times of layers alone ``t``, what the kernels of layers that follow each other change
    ``e``, all else ``c``, a factor for each kernel and one for pairs, and small deviations of
    single layers. All are Gaussian beforehand, around what layers and pairs alone took (c), 1 (s)
    and 0 (delta), so that few networks suffice; the correction is their posterior mean (Bayesian
    linear regression: Bishop 2006, Pattern Recognition and Machine Learning, section 3.3.1).

    Args:
        overhead_s: c, what a network takes besides layers and pairs, in seconds.
        factors: ``[K + 1]`` s, of the kernels and then of pairs.
        deviations: ``[L, B]`` delta, relative to the layer's time alone.
    """

    overhead_s: float
    factors: Array
    deviations: Array

    @classmethod
    def none(cls, sums: LayerSums) -> Self:
        """The plain sum."""
        return cls(sums.between_s, np.ones(len(sums.kernels) + 1), np.zeros(sums.alone.shape))

    @classmethod
    def fit(cls, sums: LayerSums, measured: NetworkTimes) -> Self:
        """The posterior mean, given whole networks; the plain sum, given none."""
        seconds = measured.seconds
        # There is no median of no times to scale the prior by.
        if not len(seconds):
            return cls.none(sums)
        # The columns are c, s_k, s_e and then delta, a row of the equation above per network.
        common = np.array([[1.0, *sums.by_kernel(row)] for row in measured.candidates])
        features = np.hstack([common, np.array([sums.cells(row) for row in measured.candidates])])
        num_common = common.shape[1]
        mean = np.zeros(features.shape[1])
        mean[0], mean[1:num_common] = sums.between_s, 1.0
        spread = np.full(features.shape[1], LAYER_SPREAD)
        # c is in seconds, all other unknowns are relative to their layers' times.
        spread[0], spread[1:num_common] = OVERHEAD_SPREAD * float(np.median(seconds)), KERNEL_SPREAD
        # A 95 % interval is about two standard deviations wide in either direction. The floor keeps
        # a network of very even times from outweighing all others.
        noise = np.maximum(NOISE * seconds, [i.half_width_s / 2 for i in measured.intervals])
        # In the space of the networks, of which there are fewer than cells.
        weighted = features * spread**2
        covariance = weighted @ features.T + np.diag(noise**2)
        found = mean + weighted.T @ np.linalg.solve(covariance, seconds - features @ mean)
        return cls(
            float(found[0]),
            found[1:num_common],
            found[num_common:].reshape(sums.alone.shape),
        )

    def apply(self, sums: LayerSums) -> CostTable:
        """``[L, B]`` seconds, with all else as constant."""
        alone = (self.factors[sums.kernel] + self.deviations) * sums.alone
        # A posterior mean may be below 0, which a solver would exploit; nan stays nan.
        values = np.maximum(alone, 0.0)
        pairs = tuple(
            PairwiseCost(pair.first, pair.second, self.factors[-1] * pair.values)
            for pair in sums.pairs
        )
        return replace(sums.table(), values=values, constant=self.overhead_s, pairs=pairs)

    def to_dict(self, sums: LayerSums) -> dict[str, Any]:
        """The numbers with their units, for a profile."""
        *own, pairs = self.factors.tolist()
        # The kernel without a name is of cells that do not run: nothing has moved its factor.
        named = zip(sums.kernels, own, strict=True)
        factors = {f"factor_{name}": factor for name, factor in named if name}
        return {"overhead_s": self.overhead_s, **factors, "factor_pairs": pairs}


@final
@dataclass(frozen=True)
class TimeErrors:
    """Predicted against measured seconds.

    Args:
        spearman: Rank correlation; 0 where all are predicted, or measured, alike.
        median_absolute_error: Relative to the measured time.
        largest_absolute_error: The same, at its largest.
        num_networks: How many networks were predicted and measured.
    """

    spearman: float
    median_absolute_error: float
    largest_absolute_error: float
    num_networks: int

    @classmethod
    def of(cls, predicted: Array, measured: Array) -> Self:
        """``[M]`` seconds each."""
        errors = np.abs(predicted / measured - 1)
        # Ranks of equal numbers are undefined, and a nan would make a profile that is no JSON.
        differ = np.ptp(predicted) > 0 and np.ptp(measured) > 0
        ranks = float(stats.spearmanr(predicted, measured).statistic) if differ else 0.0
        return cls(ranks, float(np.median(errors)), float(errors.max()), len(errors))


def predicted(table: CostTable, candidates: npt.NDArray[np.intp]) -> Array:
    """``[M]`` seconds of ``[M, L]`` assignments."""
    return np.array([table.total(row) for row in candidates])
