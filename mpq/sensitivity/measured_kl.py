"""Measured KL divergence, one layer at a time."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from mpq.calibration import Calibration
from mpq.evaluation import Reference
from mpq.model import Network
from mpq.precision import ORIGINAL, Precision
from mpq.progress import track
from mpq.quantization import Quantizer, quantized
from mpq.sensitivity._base import Sensitivity, SensitivityEstimator, loss_table


@final
@dataclass(frozen=True)
class MeasuredKL(SensitivityEstimator):
    r"""KL divergence after quantizing a single layer.

    .. math:: s_{\ell b} = \mathrm{mean}_n \, KL(p_n \| p_n^{(\ell \to b)})

    in nats per example, as ZeroQ does (Cai et al. 2020, arXiv:2001.00281, section 3.2), but on the
    calibration examples instead of distilled ones. Exact for one layer; that losses add up over
    layers is an assumption. Takes ``L * B`` forward passes over the data.
    """

    name: ClassVar[str] = "measured-kl"
    summary: ClassVar[str] = "KL divergence measured one layer at a time, L x B forward passes"

    def estimate(
        self,
        network: Network,
        data: Calibration,
        quantizer: Quantizer,
        choices: Sequence[Precision],
    ) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``."""
        reference = Reference(network.module, data, network.metric)
        cells = list(itertools.product(range(len(network.layers)), range(len(choices))))
        values = np.zeros((len(network.layers), len(choices)))
        for row, column in track(cells, "measured KL"):
            if choices[column] != ORIGINAL:
                alone = {network.layers[row].name: choices[column]}
                with quantized(network, alone, quantizer):
                    values[row, column] = reference.compare(network.module).divergence
        return Sensitivity(loss_table(network, choices, values, self.name))
