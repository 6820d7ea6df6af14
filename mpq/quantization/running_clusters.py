"""Rounding every example by the ranges of its own step."""

from collections.abc import Callable, Sequence
from typing import TypeVar, final

import torch
from torch import Tensor

from mpq.errors import ModelError
from mpq.network.running_steps import RunningSteps
from mpq.quantization.steps import StepClusters

Own = TypeVar("Own")
"""What the examples of a cluster are rounded by."""


@final
class RunningClusters:
    """The clusters of the examples that run.

    Args:
        running: Their steps.
        clusters: Which steps are in which cluster.
    """

    def __init__(self, running: RunningSteps, clusters: StepClusters) -> None:
        self.running, self.clusters = running, clusters
        self._steps: tuple[float, ...] = ()
        self._members: list[list[int]] = []
        self._places: dict[torch.device, list[Tensor]] = {}

    def rounded(
        self,
        layer: str,
        x: Tensor,
        cases: Sequence[Own],
        rounding: Callable[[Tensor, Own], Tensor],
    ) -> Tensor:
        """What a layer reads, each example rounded by format and range of its cluster.

        Args:
            layer: Its name, for an error.
            x: ``[N, ...]``, or ``[N P, ...]`` of ``P`` rows for each example, one after another.
            cases: ``[T]``.
            rounding: Rounds some examples.

        Raises:
            ModelError: If no step is known, or rows are not those of examples.
        """
        self._look()
        present = [cluster for cluster, places in enumerate(self._members) if places]
        if not present:
            raise ModelError(
                f"layer {layer!r} has ranges by step, and the network was not called as a whole: "
                "its steps are read from what it is called with"
            )
        if len(present) == 1:
            return rounding(x, cases[present[0]])
        count = len(self._steps)
        if not len(x) or len(x) % count:
            raise ModelError(
                f"layer {layer!r} reads {len(x)} rows for {count} examples at different steps, so "
                "that nobody can tell whose they are; run examples of one step at once"
            )
        by_example = x.reshape(count, -1, *x.shape[1:])
        *places, back = self._indices(x.device)
        parts = (
            rounding(by_example[some].flatten(0, 1), cases[cluster])
            for cluster, some in zip(present, places, strict=True)
        )
        # Put together and sorted, not written in place, which gradients do not pass.
        joined = torch.cat([part.reshape(-1, *by_example.shape[1:]) for part in parts])
        return joined[back].reshape(x.shape)

    def members(self, count: int) -> list[list[int]]:
        """``[T]`` places of the examples of each cluster, of as many that run."""
        self._look()
        if len(self._steps) != 1:
            return self._members
        return [[*range(count)] if places else [] for places in self._members]

    def _look(self) -> None:
        """Sorts the examples once for every batch, and not for every layer."""
        if self.running.values is self._steps:
            return
        self._steps, self._places = self.running.values, {}
        self._members = self.clusters.members(self._steps)

    def _indices(self, device: torch.device) -> list[Tensor]:
        """Places of each cluster's examples, and then where each example is among these."""
        if device not in self._places:
            members = [places for places in self._members if places]
            order = torch.tensor([place for places in members for place in places])
            found = [*map(torch.tensor, members), order.argsort()]
            self._places[device] = [places.to(device) for places in found]
        return self._places[device]
