"""Where assignments are really tried."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from mpq.evaluation import Measurement, Reference
from mpq.model import Network
from mpq.precision import Precision
from mpq.problem import Choice
from mpq.quantization import Quantizer, quantized


@final
@dataclass(frozen=True, eq=False)
class Testbed:
    """One network, and the original's answers to compare with.

    Args:
        network: The network.
        quantizer: As the estimator had it.
        reference: The original's answers on held-out examples.
    """

    network: Network
    quantizer: Quantizer
    reference: Reference

    def measure(self, precisions: Mapping[str, Precision]) -> Measurement:
        """The network with these layers in these precisions, against the original."""
        with quantized(self.network, precisions, self.quantizer):
            return self.reference.compare(self.network.module)

    def loss_of(self, choices: Sequence[Precision]) -> Callable[[Choice], float]:
        """Measured divergence as a function of a choice ``[L]`` among precisions."""
        names = [layer.name for layer in self.network.layers]

        def loss(choice: Choice) -> float:
            precisions = (choices[column] for column in choice.tolist())
            return self.measure(dict(zip(names, precisions, strict=True))).divergence

        return loss

    def uniform(self, precision: Precision) -> dict[str, Precision]:
        """Every layer at one precision."""
        return {layer.name: precision for layer in self.network.layers}
