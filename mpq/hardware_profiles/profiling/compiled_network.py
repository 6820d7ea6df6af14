"""The network that is measured, with everything that its layers need to be compiled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

from mpq.backends.onnx import GraphTemplate
from mpq.network.examples import Calibration
from mpq.network.layer import Layer
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.ranges import Ranges


@final
@dataclass(frozen=True, eq=False)
class CompiledNetwork:
    """A network on the operating table.

    Args:
        network: The network that is measured, on the processor.
        template: Its graph without the layers, with example inputs.
        quantizer: Knows the ranges of weights and activations.
        batch_size: How many examples one run has; graphs are compiled for it.
    """

    network: Network
    template: GraphTemplate
    quantizer: Quantizer
    batch_size: int

    @classmethod
    def of(
        cls,
        network: Network,
        data: Calibration,
        candidates: Sequence[Precision],
        batch_size: int,
        ranges: Ranges,
    ) -> Self:
        """Calibrates ranges and exports the network once."""
        found = ActivationRanges.calibrate(network, data, candidates, ranges.activation)
        # Exported once: every piece and every assignment fills places of this one graph.
        template = GraphTemplate.of(network, data, batch_size)
        return cls(network, template, Quantizer(found, ranges.weight), batch_size)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The network's layers."""
        return self.network.layers
