"""What a target's runtime made of a file: what it tells, and how it is run."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mpq.errors import ModelError
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
    """A ``Loaded`` whose layers have the names of ours, and can be looked at one by one."""

    def traced(self, batch: Batch) -> Mapping[str, Tensor]:
        """As ``mpq.backends.layerwise.traced``, of a run over a batch."""


@runtime_checkable
class ManyOutputs(Protocol):
    """A ``Loaded`` that tells all outputs of a network, and not only what is scored."""

    def run_all(self, batch: Batch) -> Mapping[str, Tensor]:
        """By path, as ``compared_tensors`` has them: what ``run`` gives comes first."""


def run_in_parts(batch: Batch, shapes: list[list[int]], run: Any) -> list[Tensor]:
    """All outputs of a batch, by a graph of fixed shapes.

    Args:
        batch: As many examples as there are.
        shapes: Of the graph's inputs.
        run: Outputs of a batch of the graph's size.

    Raises:
        ModelError: If the graph takes other inputs.
    """
    tensors = batch.tensors
    if [list(x.shape) for x in tensors] == shapes:
        found: list[Tensor] = run(batch)
        return found
    axis = batch.first_axis
    size = shapes[0][axis] if shapes and len(shapes[0]) > axis else 1
    if batch.is_whole:
        raise _other_inputs(shapes, [list(x.shape) for x in tensors])
    parts = []
    for start in range(0, batch.size, size):
        part = batch.slice(start, start + size)
        count = part.size
        # The last one may be short: the graph takes no other number.
        full = part if count == size else part.repeated(-(-size // count)).slice(0, size)
        given = [list(x.shape) for x in full.tensors]
        if given != shapes:
            raise _other_inputs(shapes, given)
        # Of every example one row, or as many as it has positions.
        parts.append([x[: count * max(1, len(x) // size)] if x.ndim else x for x in run(full)])
    return [torch.cat(x) if x[0].ndim else torch.stack(x) for x in zip(*parts, strict=True)]


def _other_inputs(shapes: list[list[int]], given: list[list[int]]) -> ModelError:
    return ModelError(
        f"the file takes inputs {shapes}, and the examples have {given}: shapes are fixed "
        "to those of the first example"
    )
