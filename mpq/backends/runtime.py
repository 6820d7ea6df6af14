"""What a target's runtime made of a file: what it tells, and how it is run."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from mpq.network.examples import Batch


class Loaded(Protocol):
    """What a target's runtime made of a file, in a process of its own."""

    @property
    def versions(self) -> Mapping[str, str]:
        """Package to version, of all that took part."""

    @property
    def kinds(self) -> Mapping[str, str]:
        """Layer name to what the runtime loaded it as; empty where it does not tell."""

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Layer name to its weight ``[O, K]`` float32, as the tool's own reader decodes it."""

    def run(self, batch: Batch) -> Tensor:
        """The runtime's outputs for a batch: what the network's outputs are compared by."""


@runtime_checkable
class Traceable(Protocol):
    """A ``Loaded`` whose modules have the names of ours, and can be looked at one by one."""

    def traced(self, batch: Batch) -> Mapping[str, Tensor]:
        """As ``mpq.backends.layerwise.traced``, of a run over a batch."""


@runtime_checkable
class ManyOutputs(Protocol):
    """A ``Loaded`` that tells all outputs of a network, and not only what is scored."""

    def run_all(self, batch: Batch) -> Mapping[str, Tensor]:
        """By path, as ``compared_tensors`` has them: what ``run`` gives comes first."""
