"""Prices of layers whose channels do not interact."""

from collections.abc import Sequence
from typing import final

import numpy as np

from mpq._support.arrays import Array
from mpq.sensitivity.passes.checkpoint import State


@final
class ChannelPrices:
    r"""Sums the squares of every output channel's own change of the output, and of the input's.

    .. math:: c_{\ell b} = \tfrac12 \, \mathrm{mean}_n \Bigl(
            \sum_o \langle g^{W}_{n \ell o}, Q_b(W_\ell)_o - W_{\ell o} \rangle^2
            + \langle g^{x}_{n \ell}, Q_b(x_{n \ell}) - x_{n \ell} \rangle^2 \Bigr)

    Args:
        channels: ``[L]`` output channels of every layer.
        num_candidates: ``B``.
    """

    def __init__(self, channels: Sequence[int], num_candidates: int) -> None:
        self._starts = np.cumsum([0, *channels[:-1]])
        self._of_weights = np.zeros((sum(channels), num_candidates))
        self._of_inputs = np.zeros((len(channels), num_candidates))
        self._examples = 0

    def add(self, of_weights: Array, of_inputs: Array, num_examples: int) -> None:
        """Of more examples: channels of all layers ``[C, B]``, and inputs ``[L, B]``."""
        self._of_weights += of_weights
        self._of_inputs += of_inputs
        self._examples += num_examples

    def table(self, scale: float) -> Array:
        """``[L, B]``, with the probes' scale."""
        summed = np.add.reduceat(self._of_weights, self._starts, axis=0)
        return np.asarray(0.5 * scale * (summed + self._of_inputs) / self._examples)

    def by_channel(self, scale: float) -> list[Array]:
        """``[O, B]`` of every layer: what its channels' weights are priced at, without inputs."""
        found = 0.5 * scale * self._of_weights / self._examples
        return np.split(found, self._starts[1:])

    @property
    def state(self) -> State:
        """See ``Resumable``."""
        return {
            "weights": self._of_weights,
            "inputs": self._of_inputs,
            "examples": np.array(self._examples),
        }

    def restore(self, state: State) -> None:
        """See ``Resumable``."""
        self._of_weights, self._of_inputs = state["weights"], state["inputs"]
        self._examples = int(state["examples"])
