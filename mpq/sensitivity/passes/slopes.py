"""Slopes of the loss at an incumbent assignment."""

from typing import final

import numpy as np
import torch
from torch import Tensor

from mpq._support.arrays import Array
from mpq.network.batch import Batch
from mpq.network.metric import OutputMetric
from mpq.network.outputs import position_weights
from mpq.sensitivity.passes.checkpoint import State


@final
class Slopes:
    """Sums what an incumbent loses, and what every change does to that, to first order."""

    def __init__(self, metric: OutputMetric, temperature: float, shape: tuple[int, int]) -> None:
        self._plain, self._softened = metric, metric.softened(temperature)
        self.values = np.zeros(shape)
        self._lost = 0.0

    def draw(self, batch: Batch, original: Tensor, outputs: Tensor) -> Tensor:
        """``[N, P, C]`` gradient of the softened divergence with respect to the outputs."""
        weights = position_weights(batch, outputs)
        # What the incumbent loses is known without softening; only slopes need that.
        self._lost += float((self._plain.divergence(original, outputs) * weights).sum())
        with torch.enable_grad():
            at = outputs.detach().requires_grad_()
            lost = (self._softened.divergence(original, at) * weights).sum()
            (slope,) = torch.autograd.grad(lost, at)
        return slope

    @property
    def state(self) -> State:
        """See ``Resumable``."""
        return {"values": self.values, "lost": np.array(self._lost)}

    def restore(self, state: State) -> None:
        """See ``Resumable``."""
        self.values, self._lost = state["values"], float(state["lost"])

    def table(self, scale: float) -> Array:
        """``[L, B]`` summed over examples, what the incumbent loses spread evenly over layers."""
        # An assignment takes one cell of each layer, so that shares of 1/L add up to the whole.
        return scale * self.values + self._lost / len(self.values)
