"""Layers' inputs beside the loss's squared gradients there: what ranges from the loss look at."""

from dataclasses import dataclass, field
from functools import partial
from typing import final

import torch
from torch import Tensor

from mpq._support.progress import track
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.observer import Draws, InputSample, observe_inputs
from mpq.quantization.range_method import RangeMethod
from mpq.sensitivity.passes.backward_pass import Tap, read_gradients
from mpq.sensitivity.passes.probes import TEMPERATURE, Probes


@final
@dataclass(frozen=True)
class WeightedInputs:
    """Observes inputs with squared gradients, in one forward and one backward pass.

    Gradients are those of the output sketch's softened probe, of each layer its own share. Layers
    that no gradient reaches in every call take a forward pass more, and count all numbers alike.

    Args:
        seed: Of the probes' random signs.
    """

    seed: int = 0

    def __call__(
        self, network: Network, data: Calibration, method: RangeMethod
    ) -> dict[str, InputSample]:
        """See ``mpq.quantization.observer.Observe``.

        Raises:
            GradientError: If the network cannot be differentiated.
        """
        reader, probes = _Reader(), Probes(network.metric, TEMPERATURE, self.seed)
        for batch in track(network.batches(data), "activation ranges", data.num_batches):
            read_gradients(network, batch, reader, partial(probes.draw, batch, None, 0))
        found = {name: reader.sample(name) for name in reader.numbers}
        reads_numbers = {layer.name for layer in network.layers if layer.kind != "embedding"}
        if reads_numbers <= found.keys():
            return found
        return observe_inputs(network, data, method) | found


@final
@dataclass
class _Reader:
    """Collects samples of inputs and of squared gradients, by layer."""

    numbers: dict[str, list[Tensor]] = field(default_factory=dict)
    weights: dict[str, list[Tensor]] = field(default_factory=dict)
    _drawn: Draws = field(default_factory=Draws)

    @property
    def reads_inputs(self) -> bool:
        """See ``GradientReader``."""
        return True

    def read_input(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""
        numbers, gradients = self._drawn.of(x.flatten(), g.flatten())
        self.numbers.setdefault(tap.name, []).append(numbers)
        self.weights.setdefault(tap.name, []).append(gradients.square())

    def read_output(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""

    def sample(self, name: str) -> InputSample:
        """Of a layer whose gradients were read."""
        return InputSample(torch.cat(self.numbers[name]), torch.cat(self.weights[name]))
