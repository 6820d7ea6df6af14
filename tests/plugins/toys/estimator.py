"""A sensitivity estimator of another package: more bits are better, wherever they are."""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from mpq.sensitivity import Estimation, Sensitivity, SensitivityEstimator


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

    def estimate(self, on: Estimation) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``."""
        of_bits = [self.scale / 4**candidate.weight.number.bits for candidate in on.candidates]
        values = np.tile(np.array(of_bits), (len(on.network.layers), 1))
        return Sensitivity(on.table(values, self.name))
