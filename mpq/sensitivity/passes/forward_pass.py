"""Forward passes, read at every layer."""

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mpq.network.arguments import read_where_it_ran
from mpq.network.examples import Batch
from mpq.network.modules import hooks
from mpq.network.network import Network
from mpq.network.own_forward import Again, is_computed_again
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.passes.backward_pass import Tap

LayerReader = Callable[[Tap, Tensor, Tensor], None]
"""Takes a layer, its input and its output, once per call; they must not be changed."""


def read_layers(on: Estimation, reader: LayerReader, purpose: str) -> int:
    """Runs every batch once.

    Args:
        on: The network whose layers are read, and the examples that are run through it.
        reader: Is called at every layer.
        purpose: For the progress bar.

    Returns:
        How many examples there were.

    Raises:
        ModelError: If the output is not finite.
    """
    examples = 0
    for batch in on.batches(purpose):
        read_batch(on.network, batch, reader)
        examples += batch.size
    return examples


def read_batch(network: Network, batch: Batch, reader: LayerReader) -> None:
    """Runs one batch, which is on the network's device.

    Raises:
        ModelError: If the output is not finite.
    """
    taps = [Tap(layer, network.layer_module(layer.name), batch.size) for layer in network.layers]
    handles = [
        tap.layer_module.register_forward_hook(partial(_read, reader, tap), with_kwargs=True)
        for tap in taps
    ]
    with hooks(handles), torch.no_grad():
        network.outputs(batch)


def _read(
    reader: LayerReader,
    tap: Tap,
    layer_module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Tensor,
) -> None:
    x = read_where_it_ran(args, kwargs, output)
    # An expert that is sent nothing has nothing to read.
    if x.numel() and not is_computed_again():
        read = replace(tap, call=Again(layer_module, args, kwargs, tap.layer.is_hooked))
        x, y = x.detach(), output.detach()
        if tap.is_single(x):
            x, y = x.unsqueeze(0), y.unsqueeze(0)
        reader(read, x, y)


class _AllRead(Exception):  # noqa: N818
    """Ends a pass in which all has been read; no error."""


def read_first(network: Network, batch: Batch, names: Collection[str], reader: LayerReader) -> None:
    """Runs one batch until each of some layers has been read once; what follows is not run.

    Args:
        network: Is left as found.
        batch: On its device.
        names: Layers that are read; one that is not called is not, and the pass runs to its end.
        reader: Is called at each of them.
    """
    waiting = set(names)

    def read(tap: Tap, x: Tensor, output: Tensor) -> None:
        if tap.name in waiting:
            reader(tap, x, output)
            waiting.remove(tap.name)
        if not waiting:
            raise _AllRead

    taps = [
        Tap(layer, network.layer_module(layer.name), batch.size)
        for layer in network.layers
        if layer.name in waiting
    ]
    handles = [
        tap.layer_module.register_forward_hook(partial(_read, read, tap), with_kwargs=True)
        for tap in taps
    ]
    with hooks(handles), torch.no_grad(), suppress(_AllRead):
        network.outputs(batch)
