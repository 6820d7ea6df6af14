"""A metric of another package: the squared error in other units."""

from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar, final

from torch import Tensor

from mpq.network.metric import OutputMetric, SquaredError
from mpq.network.signs import Draws


@final
@dataclass(frozen=True)
class ToyMetric(OutputMetric):
    """The squared error, a thousand times as large."""

    name: ClassVar[str] = "toy-metric"
    summary: ClassVar[str] = "a thousand squared errors"
    unit: ClassVar[str] = "squared_output"

    def positions(self, output: Any) -> Tensor:
        """See ``OutputMetric.positions``."""
        return SquaredError().positions(output)

    def divergence(self, reference: Tensor, outputs: Tensor) -> Tensor:
        """See ``OutputMetric.divergence``."""
        return 1000 * SquaredError().divergence(reference, outputs)

    def softened(self, temperature: float) -> "ToyMetric":
        """See ``OutputMetric.softened``."""
        return self

    def probe(self, outputs: Tensor, weights: Tensor, generator: Draws) -> Tensor:
        """See ``OutputMetric.probe``."""
        return sqrt(1000) * SquaredError().probe(outputs, weights, generator)
