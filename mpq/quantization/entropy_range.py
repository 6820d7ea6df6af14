"""Entropy calibration: the range whose histogram in levels tells the least apart from the whole."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from mpq.errors import InputError
from mpq.quantization.number_format import NumberFormat
from mpq.quantization.range_method import RangeMethod

if TYPE_CHECKING:
    from torch import Tensor

    from mpq._support.arrays import AnyArray


@final
@dataclass(frozen=True)
class Entropy(RangeMethod):
    r"""The threshold with the least KL divergence between a histogram and itself in levels.

    Of the magnitudes' histogram the first :math:`i` bins are kept, what lies beyond is added to the
    last of them (that is :math:`P`), and the kept bins are merged into as many levels as the format
    has on one side of 0, each spread evenly over its bins that are not empty (:math:`Q`). The range
    ends in the middle of bin :math:`i` with the least :math:`KL(P \Vert Q)`. That is TensorRT's
    (Migacz 2017, 8-bit Inference with TensorRT, GTC), which has 2048 bins, 128 levels, and tries
    every :math:`i`. Departs from it in the number of levels, :math:`2^{b - 1}`, or :math:`2^b` of a
    format with a zero point where no number is below 0, and in trying so many thresholds at most.
    Ends are never beyond the numbers. Levels are taken for even, also of a floating-point format.

    Args:
        num_bins: Of the histogram.
        num_thresholds: Thresholds that are tried, evenly spaced.

    Raises:
        InputError: If there are fewer than 2 bins, or no threshold.
    """

    name: ClassVar[str] = "entropy"
    summary: ClassVar[str] = "least KL divergence of a histogram and itself in levels (TensorRT)"

    num_bins: int = 2048
    num_thresholds: int = 256

    def __post_init__(self) -> None:
        if self.num_bins < 2 or self.num_thresholds < 1:
            raise InputError(
                "entropy needs num_bins >= 2 and num_thresholds >= 1; got "
                f"{self.num_bins} and {self.num_thresholds}"
            )

    def ends(
        self, rows: "Tensor", number: NumberFormat, symmetric: bool
    ) -> tuple["Tensor", "Tensor"]:
        """See ``RangeMethod.ends``."""
        import torch

        rows = rows.float()
        low, high = rows.amin(dim=1), rows.amax(dim=1)
        halves = [
            2 ** (number.bits if end >= 0 and not symmetric else number.bits - 1)
            for end in low.tolist()
        ]
        magnitudes = rows.abs().cpu().numpy()
        reach = [self._threshold(x, n) for x, n in zip(magnitudes, halves, strict=True)]
        ends = torch.tensor(reach, device=rows.device, dtype=torch.float32)
        return torch.maximum(low, -ends), torch.minimum(high, ends)

    def _threshold(self, magnitudes: "AnyArray", num_levels: int) -> float:
        import numpy as np

        largest = float(magnitudes.max())
        if largest == 0:
            return 0.0
        counts, _ = np.histogram(magnitudes, self.num_bins, (0.0, largest))
        first = min(num_levels, self.num_bins)
        tried = np.linspace(self.num_bins, first, self.num_thresholds).round().astype(int)
        tried = np.unique(tried)
        # The widest of equals.
        best = min(tried[::-1].tolist(), key=lambda kept: divergence(counts, kept, num_levels))
        # All bins are the whole range; the middle of a bin is half a bin beyond its lower end.
        return float(largest * min((best + 0.5) / self.num_bins, 1.0))


def divergence(counts: "AnyArray", kept: int, num_levels: int) -> float:
    """KL divergence in nats of the first bins, with all else in the last, from levels of these.

    Infinite, where the last bin has nothing but what lies beyond.

    Args:
        counts: ``[N]`` of bins.
        kept: How many bins are kept, ``N`` or fewer.
        num_levels: That these are merged into.
    """
    import numpy as np

    inside = counts[:kept].astype(np.float64)
    p = inside.copy()
    p[-1] += counts[kept:].sum()
    level = np.arange(kept) * num_levels // kept
    is_there = inside > 0
    mass = np.bincount(level, inside, num_levels)
    bins = np.bincount(level, is_there, num_levels)
    q = np.where(is_there, (mass / np.maximum(bins, 1))[level], 0.0)
    if ((p > 0) & (q == 0)).any():
        return float("inf")
    p, q = p[is_there] / p.sum(), q[is_there] / q.sum()
    return float((p * np.log(p / q)).sum())
