"""Layers' inputs beside the loss's squared gradients there: what ranges from the loss look at."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import final

from torch import Tensor

from mpq._support.progress import track
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.input_sample import InputSample, Samples
from mpq.quantization.observer import observe_inputs
from mpq.quantization.range_method import RangeMethod
from mpq.quantization.tensor_format import TensorFormat
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
        self,
        network: Network,
        data: Calibration,
        method: RangeMethod,
        formats: Collection[TensorFormat] = (),
    ) -> dict[str, InputSample]:
        """See ``mpq.quantization.observer.Observe``.

        Raises:
            GradientError: If the network cannot be differentiated.
        """
        reader = _Reader(Samples(formats))
        probes = Probes(network.metric, TEMPERATURE, self.seed, has_scale=False)
        for batch in track(network.batches(data), "activation ranges", data.num_batches):
            reader.samples.begin(batch)
            read_gradients(network, batch, reader, partial(probes.draw, batch, None, 0))
        found = reader.samples.of()
        reads_numbers = {layer.name for layer in network.layers if layer.kind != "embedding"}
        if reads_numbers <= found.keys():
            return found
        return observe_inputs(network, data, method, formats) | found


@final
@dataclass
class _Reader:
    """Collects samples of inputs and of squared gradients."""

    samples: Samples

    @property
    def reads_inputs(self) -> bool:
        """See ``GradientReader``."""
        return True

    def read_input(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""
        self.samples.add(tap.name, tap.layer_module, x, g)

    def read_output(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""
