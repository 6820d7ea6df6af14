"""Prices of layers whose channels do not interact."""

from collections.abc import Iterable, Sequence
from typing import final

import numpy as np
import torch

from mpq._support.arrays import Array
from mpq.network.batch import Batch
from mpq.sensitivity.passes.channel_products import ChannelProducts
from mpq.sensitivity.passes.checkpoint import State


@final
class ChannelPrices:
    r"""Sums the squares of every output channel's own change of the output, and of the input's.

    .. math:: c_{\ell b} = \tfrac12 \, \mathrm{mean}_n \Bigl(
            \sum_o \langle g^{W}_{n \ell o}, Q_b(W_\ell)_o - W_{\ell o} \rangle^2
            + \langle g^{x}_{n \ell}, Q_b(x_{n \ell}) - x_{n \ell} \rangle^2 \Bigr)

    Args:
        channels: ``[L]`` output channels of every layer.
        num_formats: ``F`` formats of weights.
        num_candidates: ``B``.
    """

    def __init__(self, channels: Sequence[int], num_formats: int, num_candidates: int) -> None:
        self._starts = np.cumsum([0, *channels[:-1]])
        # Squares and fourth powers, on the device of what is added: no batch waits for a transfer.
        self._powers = torch.zeros(2, sum(channels), num_formats, dtype=torch.float64)
        self._of_inputs = np.zeros((len(channels), num_candidates))
        self._examples, self._rows = 0, 0

    def add(self, of_weights: Iterable[ChannelProducts], of_inputs: Array, batch: Batch) -> None:
        """Of more examples: products of all layers, and squares of inputs ``[L, B]``."""
        found = list(of_weights)
        device = found[0].squares.device
        both = [(x.squares.double().to(device), x.fourths.to(device)) for x in found]
        powers = torch.stack([torch.cat(part) for part in zip(*both, strict=True)])
        self._powers = self._powers.to(device) + powers
        self._of_inputs += of_inputs
        self._examples += batch.size
        self._rows += len(found[0].whole)

    def table(self, scale: float, columns: Sequence[int]) -> Array:
        """``[L, B]``, with the probes' scale.

        Args:
            scale: Of the probes.
            columns: ``[B]`` every candidate's format of weights.
        """
        summed = np.add.reduceat(self._found[0], self._starts, axis=0)[:, list(columns)]
        return np.asarray(0.5 * scale * (summed + self._of_inputs) / self._examples)

    @property
    def _found(self) -> Array:
        """``[2, C, F]``."""
        return np.asarray(self._powers.cpu().numpy())

    def by_channel(self, scale: float) -> list[Array]:
        """``[O, F]`` of every layer: what its channels' weights are priced at."""
        return np.split(0.5 * scale * self._found[0] / self._examples, self._starts[1:])

    @property
    def variances(self) -> list[Array]:
        """``[O, F]`` of every layer: of each price, relative to its square."""
        squares, fourths = self._found
        squares = np.where(squares > 0, squares, 1.0) ** 2
        found = np.maximum(self._rows * fourths / squares - 1.0, 0.0) / max(self._rows, 1)
        return np.split(found, self._starts[1:])

    @property
    def state(self) -> State:
        """See ``Resumable``."""
        return {
            "powers": self._found,
            "inputs": self._of_inputs,
            "counts": np.array([self._examples, self._rows]),
        }

    def restore(self, state: State) -> None:
        """See ``Resumable``."""
        self._powers = torch.from_numpy(np.array(state["powers"]))
        self._of_inputs = state["inputs"]
        self._examples, self._rows = state["counts"].tolist()
