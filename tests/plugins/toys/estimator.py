"""A sensitivity estimator of another package: more bits are better, wherever they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Sensitivity, SensitivityEstimator
from mpq.sensitivity._base import loss_table


@final
@dataclass(frozen=True)
class ToyEstimator(SensitivityEstimator):
    """A loss that falls with the bits of the weight, the same for every layer.

    Args:
        scale: Loss at 0 bits.
    """

    name: ClassVar[str] = "toy-estimator"
    summary: ClassVar[str] = "a loss that falls with the bits"

    scale: float = 1.0

    def estimate(
        self,
        network: Network,
        data: Calibration,
        quantizer: Quantizer,
        candidates: Sequence[Precision],
    ) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``."""
        of_bits = [self.scale / 4**candidate.weight.number.bits for candidate in candidates]
        values = np.tile(np.array(of_bits), (len(network.layers), 1))
        return Sensitivity(loss_table(network, candidates, values, self.name))
