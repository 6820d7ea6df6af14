"""The network that is measured, with everything that its layers need to be compiled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

from mpq.backends.onnx import Skeleton
from mpq.network.examples import Calibration
from mpq.network.layer import Layer
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.ranges import RangeMethod


@final
@dataclass(frozen=True, eq=False)
class Subject:
    """A network on the operating table.

    Args:
        network: The network.
        skeleton: Its graph without the layers, with example inputs.
        quantizer: Knows the ranges of weights and activations.
        batch_size: Examples of one run.
    """

    network: Network
    skeleton: Skeleton
    quantizer: Quantizer
    batch_size: int

    @classmethod
    def of(
        cls,
        network: Network,
        data: Calibration,
        candidates: Sequence[Precision],
        batch_size: int,
        weight_range: RangeMethod = "mse",
        activation_range: RangeMethod = "mse",
    ) -> Self:
        """Calibrates ranges and exports the network once.

        Args:
            network: The network.
            data: Calibration examples; the first ones are what is run.
            candidates: Precisions that are measured.
            batch_size: Examples of one run.
            weight_range: How weights' ranges are chosen, as ``RANGE_METHODS`` takes it.
            activation_range: How activations' ranges are chosen.
        """
        ranges = ActivationRanges.calibrate(network, data, candidates, activation_range)
        skeleton = Skeleton.of(network, data, batch_size)
        return cls(network, skeleton, Quantizer(ranges, weight_range), batch_size)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The network's layers."""
        return self.network.layers
