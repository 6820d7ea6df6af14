"""Prices of layers whose channels do not interact."""

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
        shape: ``(L, B)``.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._squares, self._examples = np.zeros(shape), 0

    def add(self, squares: Array, num_examples: int) -> None:
        """``[L, B]`` of more examples."""
        self._squares += squares
        self._examples += num_examples

    def table(self, scale: float) -> Array:
        """``[L, B]``, with the probes' scale."""
        return np.asarray(0.5 * scale * self._squares / self._examples)

    @property
    def state(self) -> State:
        """See ``Resumable``."""
        return {"squares": self._squares, "examples": np.array(self._examples)}

    def restore(self, state: State) -> None:
        """See ``Resumable``."""
        self._squares, self._examples = state["squares"], int(state["examples"])
