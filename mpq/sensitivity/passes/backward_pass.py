"""One backward pass, read at every layer: inputs, and the gradients of inputs and outputs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from mpq.errors import ModelError
from mpq.network.examples import Batch
from mpq.network.layer import Layer
from mpq.network.modules import hooks
from mpq.network.network import Network
from mpq.sensitivity.passes.per_example import by_example


@final
@dataclass(frozen=True, eq=False)
class Tap:
    """Where gradients are read: one layer, in a batch of so many examples.

    Args:
        layer: Which layer it is, with its number of calls and its batch axis.
        layer_module: The module whose calls are read.
        num_examples: Examples in the batch, ``N``.
    """

    layer: Layer
    layer_module: nn.Module
    num_examples: int

    @property
    def name(self) -> str:
        """Of the layer."""
        return self.layer.name

    def by_example(self, tensor: Tensor) -> Tensor | None:
        """``[N, ...]``, or ``None`` where examples share the tensor; see ``by_example``."""
        return by_example(tensor, self.num_examples, self.layer.batch_axis)


class GradientReader(Protocol):
    """What is done with the gradients, layer by layer, as the backward pass reaches them.

    In a quantized network ``read_input`` gets the input as it came, ``read_output`` as it was read.

    A layer that is called several times is read once per call. Tensors are detached; they must not
    be changed, and keeping them costs their memory.
    """

    @property
    def reads_inputs(self) -> bool:
        """Whether ``read_input`` is wanted; gradients of inputs cost memory."""

    def read_input(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """The layer's input and the share of its gradient that flows through this layer."""

    def read_output(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """The layer's input and the gradient of its output."""


def read_gradients(
    network: Network, batch: Batch, reader: GradientReader, probe_of: "ProbeOf"
) -> Tensor:
    """One forward and one backward pass.

    Args:
        network: Parameters do not require gradients, and get none.
        batch: On the network's device.
        reader: Is called at every layer.
        probe_of: Gradient of the scalar that is differentiated, from the outputs ``[N, P, C]``.

    Returns:
        The outputs, detached.

    Raises:
        ModelError: If the output depends on no layer, or an operation in place overwrote an input.
    """
    with tapped(network, batch.size, reader), torch.enable_grad():
        outputs = network.outputs(batch)
        if not outputs.requires_grad:
            raise ModelError("the output does not depend on any quantizable layer")
        outputs.backward(probe_of(outputs.detach()))
    return outputs.detach()


class ProbeOf(Protocol):
    """From outputs ``[N, P, C]`` to the gradient that a backward pass starts with."""

    def __call__(self, outputs: Tensor, /) -> Tensor:
        """``[N, P, C]``."""


@contextmanager
def tapped(network: Network, num_examples: int, reader: GradientReader) -> Iterator[None]:
    """Within this block a backward pass through the network is read."""
    handles = []
    for layer in network.layers:
        layer_module = network.layer_module(layer.name)
        tap = Tap(layer, layer_module, num_examples)
        handles += [
            # Before the hooks of a quantized network: what is read is the input as it came.
            layer_module.register_forward_pre_hook(partial(_before, reader, tap), prepend=True),
            layer_module.register_forward_hook(partial(_after, reader, tap)),
        ]
    with hooks(handles):
        yield


def _before(
    reader: GradientReader, tap: Tap, _: nn.Module, args: tuple[Any, ...]
) -> tuple[Any, ...]:
    x = args[0]
    if not x.is_floating_point():
        return args
    # A node of its own, so that the gradient is this layer's share only: others may read x.
    x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
    if reader.reads_inputs and x.numel():
        x.register_hook(partial(reader.read_input, tap, x.detach()))
    return (x, *args[1:])


def _after(
    reader: GradientReader, tap: Tap, _: nn.Module, args: tuple[Any, ...], output: Tensor
) -> Tensor:
    if not args[0].numel():  # an expert that is sent nothing: there is nothing to read
        return output
    if not output.requires_grad:  # an embedding; the clone may be changed in place
        output = output.detach().requires_grad_().clone()
    x = args[0].detach()
    if len(output) == 1 < tap.num_examples:  # position ids: one row for all, read by each example
        output = output.expand(tap.num_examples, *output.shape[1:])
        x = x.expand(tap.num_examples, *x.shape[1:])
    # `detach` shares the version counter (`data` would not), so that a change in place shows.
    version = args[0]._version

    def use(g: Tensor) -> None:
        if x._version != version:
            raise ModelError(
                f"the input of layer {tap.name!r} is changed in place after the layer read "
                "it, so that its gradient is lost; make that operation not in place"
            )
        reader.read_output(tap, x, g.detach())

    # A hook stays with the value it was set on, also if an activation in place follows.
    output.register_hook(use)
    return output
