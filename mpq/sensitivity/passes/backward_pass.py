"""Backward passes, read at every layer: inputs, and the gradients of inputs and outputs."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from mpq._support.pages import is_streaming
from mpq.errors import GradientError
from mpq.network.arguments import input_of, read_where_it_ran, with_input
from mpq.network.examples import Batch
from mpq.network.layer import Layer
from mpq.network.mapped import release
from mpq.network.modules import hooks, weight_of
from mpq.network.network import Network
from mpq.network.own_forward import Again, is_computed_again
from mpq.quantization.observer import round_last
from mpq.sensitivity.passes.borders import kept_at_borders
from mpq.sensitivity.passes.broadcasts import Broadcasts
from mpq.sensitivity.passes.differentiation import check_reached, differentiating, reading
from mpq.sensitivity.passes.per_example import by_example
from mpq.sensitivity.passes.weight_gradients import CallGradients, OwnCall, PlainCall


@final
@dataclass(frozen=True, eq=False)
class Tap:
    """Where gradients are read: one layer, in a batch of so many examples.

    Args:
        layer: Which layer it is, with its number of calls and its batch axis.
        layer_module: The module whose calls are read.
        num_examples: Examples in the batch, ``N``.
        call: What it was called with, detached, where a call is read.
        is_shared: Whether the gradient that is read has a row per example, of one output that all
            of them share.
    """

    layer: Layer
    layer_module: nn.Module
    num_examples: int
    call: Again | None = None
    is_shared: bool = False

    @property
    def name(self) -> str:
        """Of the layer."""
        return self.layer.name

    def by_example(self, tensor: Tensor) -> Tensor | None:
        """``[N, ...]``, or ``None`` where examples share the tensor; see ``by_example``."""
        return by_example(tensor, self.num_examples, self.layer.batch_axis)

    def is_single(self, x: Tensor) -> bool:
        """Whether the layer reads one thing, without any axis of examples: ``[K]``."""
        if self.layer.has_own_forward:
            return False
        if self.layer.kind in ("linear", "embedding"):
            return x.ndim == int(x.is_floating_point())
        assert isinstance(self.layer_module.weight, Tensor)
        return x.ndim == self.layer_module.weight.ndim - 1

    def weight_gradients(self, x: Tensor, g: Tensor) -> CallGradients:
        """Of the call that is read, from its input and the gradient of its output."""
        if self.layer.has_own_forward and self.call is not None:
            axis = self.layer.batch_axis
            return OwnCall(self.name, self.call, g, self.num_examples, axis, self.is_shared)
        return PlainCall(self.layer_module, x, g, self.by_example(x), self.by_example(g))


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
    network: Network, batch: Batch, reader: GradientReader, *probes_of: "ProbeOf"
) -> Tensor:
    """One forward pass, and a backward pass for each probe through what that one kept.

    Args:
        network: Parameters do not require gradients, and get none.
        batch: On the network's device.
        reader: Is called at every layer, in one backward pass after the other.
        probes_of: Gradients of the scalars that are differentiated, from the outputs ``[N, P, C]``;
            each is asked for just before its backward pass.

    Returns:
        The outputs, detached.

    Raises:
        GradientError: If the network cannot be differentiated: the output depends on no layer, an
            operation in place overwrote an input, or torch says so.
    """
    with tapped(network, batch.size, reader), torch.enable_grad():
        outputs = network.outputs(batch)
        check_reached(outputs)
        for number, probe_of in enumerate(probes_of, start=1):
            start: Tensor = _Start.apply(outputs, probe_of(outputs.detach()))  # type: ignore[no-untyped-call]
            start.backward(retain_graph=number < len(probes_of))
    return outputs.detach()


class _Start(torch.autograd.Function):
    """A number whose gradient is the probe, without their product, which is as large as logits.

    To be given a gradient of the outputs, torch loads symbolic shapes, which takes a second.
    """

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, probe: Tensor) -> Tensor:
        ctx.probe = probe
        return outputs.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.probe, None


class ProbeOf(Protocol):
    """From outputs ``[N, P, C]`` to the gradient that a backward pass starts with."""

    def __call__(self, outputs: Tensor, /) -> Tensor:
        """``[N, P, C]``."""


@contextmanager
def tapped(network: Network, num_examples: int, reader: GradientReader) -> Iterator[None]:
    """Within this block a backward pass through the network is read; see ``differentiating``."""
    handles, broadcasts = [], Broadcasts(num_examples)
    for layer in network.layers:
        layer_module = network.layer_module(layer.name)
        tap = Tap(layer, layer_module, num_examples)
        handles += [
            layer_module.register_forward_pre_hook(partial(_before, reader, tap), with_kwargs=True),
            layer_module.register_forward_hook(
                partial(_after, reader, tap, broadcasts), with_kwargs=True
            ),
        ]
        round_last(layer_module)
    # Every function of the pass goes through a mode: only where a layer may be shared.
    may_share = num_examples > 1 and any(map(_may_be_shared, network.layers))
    watching = broadcasts if may_share else nullcontext()
    borders = kept_at_borders(network.blocks, num_examples)
    with hooks(handles), watching, differentiating(network), borders:
        yield


def _may_be_shared(layer: Layer) -> bool:
    return layer.kind == "embedding" or layer.has_own_forward or layer.output_shape[:1] == (1,)


def _before(
    reader: GradientReader, tap: Tap, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    x = input_of(args, kwargs)
    if x is None or not x.is_floating_point() or is_computed_again():
        return None
    # A node of its own, so that the gradient is this layer's share only: others may read x.
    x = x.view_as(x) if x.requires_grad else _leaf(x)
    if is_streaming():
        # The gradient of what a layer read is the last that its weight is needed for.
        x.register_hook(lambda _: release([weight_of(tap.layer_module)]))
    if reader.reads_inputs and x.numel():
        x.register_hook(partial(_read_input, reader, tap, x.detach(), x._version))
    return with_input(args, kwargs, x)


def _leaf(tensor: Tensor) -> Tensor:
    """Where gradients end."""
    leaf = tensor.detach().requires_grad_()
    # The next backward pass would add to it in place, which readers may have kept.
    leaf.register_post_accumulate_grad_hook(_drop_gradient)
    return leaf


def _drop_gradient(leaf: Tensor) -> None:
    leaf.grad = None


def _read_input(reader: GradientReader, tap: Tap, x: Tensor, version: int, g: Tensor) -> None:
    # Of what has a weight, its call asks.
    if not tap.layer.has_weights and x._version != version:
        raise _overwritten(tap.name)
    if tap.is_single(x):
        x, g = x.unsqueeze(0), g.unsqueeze(0)
    with reading():
        reader.read_input(tap, x, g)


def _after(
    reader: GradientReader,
    tap: Tap,
    broadcasts: Broadcasts,
    _: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Tensor,
) -> Tensor | None:
    if is_computed_again() or not tap.layer.has_weights:
        return None
    given = input_of(args, kwargs)
    if given is not None and not given.numel():
        return output  # an expert that is sent nothing: there is nothing to read
    if not output.requires_grad:  # an embedding; the clone may be changed in place
        output = _leaf(output).clone()
    call = _Call(reader, tap, args, kwargs, output)
    if _is_shared(tap, call.x, output):
        return broadcasts.watched(output, call.use)
    # A hook stays with the value it was set on, also if an activation in place follows.
    output.register_hook(call.use)
    return output


def _is_shared(tap: Tap, x: Tensor, output: Tensor) -> bool:
    """Whether it may be one output for all examples: position ids, a table of positions."""
    if tap.num_examples == 1:
        return False
    is_row = tap.is_single(x) or len(output) == 1
    # Positions by themselves, [T, E]: also where there are as many of them as examples.
    is_table = tap.layer.kind == "embedding" and output.ndim == 2
    return is_row or (is_table and (x.ndim == 1 or tap.layer.has_own_forward))


class _Call:
    """One call of a layer, until the gradient of its output arrives."""

    def __init__(
        self,
        reader: GradientReader,
        tap: Tap,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
    ) -> None:
        self._reader = reader
        # `detach` shares the version counter (`data` would not), so that a change in place shows.
        args, kwargs = tree_map(_detached, (args, kwargs))
        call = Again(tap.layer_module, args, kwargs, tap.layer.is_hooked)
        self._tap = replace(tap, call=call)
        self.x = read_where_it_ran(args, kwargs, output)
        self._read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        self._versions = [t._version for t in self._read]

    def use(self, g: Tensor, by_example: Tensor | None = None) -> None:
        """Hands on the gradient of the output, and those of the examples if they share it."""
        if [t._version for t in self._read] != self._versions:
            raise _overwritten(self._tap.name)
        with reading():
            self._read_output(g, by_example)

    def _read_output(self, g: Tensor, by_example: Tensor | None) -> None:
        x, count = self.x, self._tap.num_examples
        if self._tap.is_single(x):
            x, g = x.unsqueeze(0), g.unsqueeze(0)
        if by_example is None:
            self._reader.read_output(self._tap, x, g.detach())
            return
        if not self._tap.layer.has_own_forward:  # as if every example had read it
            is_row = len(x) == 1 and by_example.ndim == g.ndim
            x = x.expand(count, *x.shape[1:]) if is_row else x.expand(count, *x.shape)
        self._reader.read_output(replace(self._tap, is_shared=True), x, by_example)


def _overwritten(name: str) -> GradientError:
    return GradientError(
        f"the input of layer {name!r} is changed in place after the layer read it, so that its "
        "gradient is lost (make that operation not in place)"
    )


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
