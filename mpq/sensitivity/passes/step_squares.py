"""Squared changes of the output, summed by clusters of steps."""

from collections.abc import Sequence
from typing import final

import numpy as np

from mpq._support.arrays import Array
from mpq.quantization.running_clusters import RunningClusters
from mpq.sensitivity.passes.checkpoint import State
from mpq.sensitivity.step_shares import StepShares


@final
class StepSquares:
    """Sums ``R ** 2`` of the examples of each cluster: the sketch's rows, and no further pass.

    Args:
        running: The clusters of the examples that run.
        shape: ``(L, B)``.
    """

    def __init__(self, running: RunningClusters, shape: tuple[int, int]) -> None:
        self._running = running
        count = running.clusters.count
        self._sums, self._counts = np.zeros((*shape, count)), np.zeros(count)

    def add(self, passes: Sequence[Array]) -> None:
        """Of the batch that ran last: ``[N, L, B]`` of each pass, a row for each example."""
        members = self._running.members(len(passes[0]))
        for cluster, places in enumerate(members):
            self._counts[cluster] += len(places)
            self._sums[:, :, cluster] += sum((rows[places] ** 2).sum(axis=0) for rows in passes)

    @property
    def state(self) -> State:
        """See ``Resumable``."""
        return {"sums": self._sums, "counts": self._counts}

    def restore(self, state: State) -> None:
        """See ``Resumable``."""
        self._sums, self._counts = state["sums"], state["counts"]

    def shares(self) -> StepShares:
        """Of all batches."""
        return StepShares.of(self._sums, self._counts)
