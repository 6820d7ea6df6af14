"""Z-score distribution: layers with few outlying weights count as important."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from mpq.sensitivity._base import Sensitivity, SensitivityEstimator
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.importance import importance_table


@final
@dataclass(frozen=True)
class ZScore(SensitivityEstimator):
    r"""Relative rounding error, times the share of weights that do not stand out.

    .. math:: \iota_\ell = 1 - \frac{\lvert \{ i : z_{\ell i} > 1 \} \rvert}{n_\ell}, \quad
        z_{\ell i} = \frac{W_{\ell i} - \mathrm{mean}(W_\ell)}{\mathrm{std}(W_\ell)}

    No data are read. Layer-Wise Quantization (Dumitru et al. 2024, arXiv:2406.17415) ranks the
    blocks of a language model by the share of weights much larger than average, the smaller the
    more important, and gives the first ones more bits. Departs from it in looking at layers instead
    of blocks, and in making a table of it (see ``importance_table``). The unit is ``relative``.
    """

    name: ClassVar[str] = "z-score"
    summary: ClassVar[str] = "rounding error x share of weights with z-score below 1, no data"

    def estimate(self, on: Estimation) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``; no example is read."""
        importance = [1.0 - outlying_share(on.network.weight(name)) for name in on.names]
        return Sensitivity(importance_table(on, importance, self.name))


def outlying_share(weight: Tensor) -> float:
    """Share of the weights more than one standard deviation above their mean."""
    w = weight.double()
    # The weights are all there are, no sample; and a single one has a deviation of 0, not NaN.
    above = w > w.mean() + w.std(correction=0)
    return float(above.double().mean())
