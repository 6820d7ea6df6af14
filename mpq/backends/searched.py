"""Whether a target can write a network at all: asked with examples, before any estimate."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Protocol, final, runtime_checkable

import torch
from torch import nn

from mpq.backends.half_precision import batch_in_float32
from mpq.backends.target import Target
from mpq.errors import InputError, ModelError
from mpq.network.examples import Batch, Calibration
from mpq.network.metric import OutputMetric
from mpq.network.modules import device_of
from mpq.network.named_outputs import scored_tensors
from mpq.network.network import Network

NUM_EXAMPLES: Final = 32
"""Examples that are run in the target's runtime at least, where there are as many."""
OUTPUTS_AT_ONCE: Final = 1 << 27
"""Numbers (512 MiB) in the outputs of the examples that are run: large vocabularies take fewer."""


@final
@dataclass(frozen=True, eq=False)
class Searched:
    """A network whose precisions are to be chosen.

    Args:
        network: Own copy, opened and folded; it stays as it is.
        examples: Those that an export would run.
        quantized: Names of layers for which the target holds some candidate.
    """

    network: Network
    examples: tuple[Batch, ...]
    quantized: Collection[str]


@runtime_checkable
class Traces(Protocol):
    """A ``Target`` that writes the graph of a network, and not only its layers."""

    def check_graph(self, searched: Searched) -> None:
        """Refuses a network whose graph the target cannot write, in any precision.

        It does what an export does before the first code is written, with every layer as it came:
        what it costs, an export costs again.

        Raises:
            ModelError: As ``Target.write`` does; names the operation or the layer.
            InputError: If the examples are none that the target takes.
            MissingDependencyError: If a package that reads the graph is missing.
        """


def check_searched(
    target: Target, network: Network, data: Calibration, quantized: Collection[str]
) -> None:
    """Refuses what would be refused after the search, whatever it chose.

    Args:
        target: Where the result is to run.
        network: The search's own.
        data: Calibration examples, cut as the search does.
        quantized: As in ``Searched``.

    Raises:
        ModelError: If the target has no place for the network's graph, or for its batches.
        InputError: If the examples are none that the target takes.
        MissingDependencyError: If a package that reads the graph is missing.
    """
    refuse_batches(target, data)
    if isinstance(target, Traces):
        examples = first_examples(data, network.module, network.metric)
        target.check_graph(Searched(network, tuple(examples), quantized))


def refuse_batches(target: Target, data: Calibration) -> None:
    """Refuses batches that are one example, for targets that run one row at a time.

    Raises:
        ModelError: If they are.
    """
    if data.is_whole and not target.takes_batches:
        raise ModelError(
            f"{target.name}: rows of this network's batches change each other's outputs "
            "(statistics of the batch, nodes of a graph, a sequence along the first axis), so that "
            "a batch is one example, and the target runs one row at a time: make the network "
            "compute every row by itself (in evaluation mode, batch first), or export to a target "
            "that takes batches as they are, such as onnx-qdq"
        )


@torch.no_grad()
def first_examples(data: Calibration, model: nn.Module, metric: OutputMetric) -> list[Batch]:
    """The first batches, with ``NUM_EXAMPLES`` examples if there are as many, and fit in.

    Raises:
        InputError: If there are no examples.
    """
    found: list[Batch] = []
    left = NUM_EXAMPLES
    for batch in data:
        whole = batch.to(device_of(model))
        if not found:
            one = whole.slice(0, 1)
            outputs = scored_tensors(model(*one.args, **one.kwargs), metric)
            count = sum(x.numel() for x in outputs.values())
            left = min(left, max(1, OUTPUTS_AT_ONCE // max(count, 1)))
        if whole.is_whole and found and _shapes(whole) != _shapes(found[0]):
            continue  # another graph: a file of fixed shapes takes those of the first one alone
        found.append(batch_in_float32(whole.slice(0, min(left, whole.size))))
        left -= found[-1].size
        if left <= 0:
            break
    if not found:
        raise InputError("an export runs examples, and there are none")
    return found


def _shapes(batch: Batch) -> list[torch.Size]:
    return [x.shape for x in batch.tensors]
