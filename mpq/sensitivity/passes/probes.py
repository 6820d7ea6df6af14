"""Random directions at the output, from which a backward pass starts."""

from typing import Final, final

import numpy as np
import torch
from torch import Tensor

from mpq.network.divergence import LOGITS_AT_ONCE
from mpq.network.examples import Batch
from mpq.network.metric import OutputMetric
from mpq.network.outputs import position_weights
from mpq.network.signs import ExampleSigns
from mpq.sensitivity.passes.checkpoint import State

TEMPERATURE: Final = 1.5
"""Softens the probabilities that probes are drawn with, unless the user says otherwise."""


@final
class Probes:
    """Draws probes of the softened metric, and knows the scale of the plain one beside it.

    Args:
        metric: That of the network, not softened.
        temperature: See ``OutputMetric.softened``.
        seed: Seed of the signs; an example gets the same ones in any batch, alone as well.
        has_scale: Whether the scale is wanted, for which every probe is drawn twice.
    """

    def __init__(
        self, metric: OutputMetric, temperature: float, seed: int, has_scale: bool = True
    ) -> None:
        self._has_scale = has_scale
        self._plain, self._softened = metric, metric.softened(temperature)
        self._seed = seed
        self._powers = [0.0, 0.0]

    def draw(self, batch: Batch, original: Tensor | None, number: int, outputs: Tensor) -> Tensor:
        """``[N, P, C]``, see ``OutputMetric.probe``; the scale is that of the original's probes."""
        weights = position_weights(batch, outputs)
        reference = outputs if original is None else original

        def signs() -> ExampleSigns:
            return ExampleSigns.of(self._seed, number, batch)

        # A metric without probabilities, or a temperature of 1: the scale is 1 by definition.
        if self._softened == self._plain:
            return self._plain.probe(outputs, weights, signs())
        if original is None and not self._has_scale:
            return self._softened.probe(outputs, weights, signs())
        # Common signs take most of the noise out of the ratio. Both lengths are those at the
        # original, also around an incumbent, so that all rounds of a search have one scale.
        for index, metric in enumerate((self._plain, self._softened)):
            drawn = metric.probe(reference, weights, signs())
            self._powers[index] += _squared_length(drawn)
            if original is None and metric is self._softened:
                return drawn
            del drawn  # before another one as large is made
        return self._softened.probe(outputs, weights, signs())

    @property
    def state(self) -> State:
        """See ``Resumable``."""
        return {"powers": np.array(self._powers)}

    def restore(self, state: State) -> None:
        """See ``Resumable``."""
        self._powers = state["powers"].tolist()

    @property
    def scale(self) -> float:
        """Squared length of the plain probes over that of the softened ones."""
        plain, softened = self._powers
        return plain / softened if softened else 1.0


def _squared_length(probe: Tensor) -> float:
    """Summed in float64, some positions at a time: a copy of all logits would be the largest."""
    step = max(1, LOGITS_AT_ONCE // max(probe.shape[-1], 1))
    parts = probe.flatten(0, 1).split(step)
    return float(torch.stack([part.square().sum(dtype=torch.float64) for part in parts]).sum())
