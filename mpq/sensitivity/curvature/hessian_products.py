"""Second derivatives of a network's loss: products with blocks of its Hessian."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mpq.errors import InputError
from mpq.network.arguments import input_of, with_input
from mpq.network.examples import Batch
from mpq.network.modules import hooks, weight_of
from mpq.network.network import Network
from mpq.network.outputs import position_weights
from mpq.network.targets import class_targets, cross_entropy, target_weights
from mpq.sensitivity.passes.differentiation import (
    check_reached,
    check_second_derivatives,
    differentiating,
    translated,
)
from mpq.sensitivity.passes.weight_gradients import WholeGradients

Objective = Callable[[Batch, Tensor], Tensor]
"""From a batch and its outputs ``[N, P, C]`` to the loss, summed over the examples."""

LOSSES = ("divergence", "cross-entropy")


def objective(network: Network, loss: str) -> Objective:
    """The loss whose second derivatives are taken.

    Args:
        network: Its metric is what a divergence is.
        loss: ``divergence`` from the network's own outputs, whose gradient is 0, so that its
            Hessian is the Gauss-Newton matrix; or ``cross-entropy`` of the targets, as the papers
            have it, in nats.

    Raises:
        InputError: If there is no such loss, or the network's outputs are no logits.
    """
    check_option("loss", loss, LOSSES)
    if loss == "divergence":
        return lambda batch, outputs: (
            network.metric.divergence(outputs.detach(), outputs) * position_weights(batch, outputs)
        ).sum()
    if not network.metric.is_classification:
        raise InputError(
            f"loss='cross-entropy' needs logits, which metric={network.metric.name!r} says the "
            "outputs are not; use loss='divergence'"
        )
    return _cross_entropy


def check_option(option: str, value: str, known: Sequence[str]) -> None:
    """Refuses an option's value that is none of these.

    Raises:
        InputError: If it is another one.
    """
    if value not in known:
        raise InputError(f"{option} is one of {', '.join(known)}; got {value!r}")


def _cross_entropy(batch: Batch, outputs: Tensor) -> Tensor:
    targets = class_targets(batch, outputs, "loss=cross-entropy, unlike loss=divergence,")
    losses: Tensor = cross_entropy(targets, outputs) * target_weights(targets)
    return losses.sum()


@final
@dataclass(frozen=True, eq=False)
class Variable:
    """What second derivatives are taken with respect to.

    Args:
        tensor: A layer's weight, or what one call of it reads.
        gradient: Gradient of the loss summed over the batch; differentiable.
    """

    tensor: Tensor
    gradient: Tensor


@final
@dataclass(frozen=True, eq=False)
class SecondOrder:
    """The variables of one batch; those that the loss does not depend on are left out.

    Args:
        weights: By layer; layers that share a parameter have a variable each.
        inputs: By layer, one for each call.
    """

    weights: Mapping[str, Variable]
    inputs: Mapping[str, tuple[Variable, ...]]


def product(variables: Sequence[Variable], vectors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """``H v`` of the Hessian's block of these variables, of the loss summed over the batch.

    Args:
        variables: Weights of a ``SecondOrder``, inside its block.
        vectors: One for each variable, of its shape.

    Raises:
        GradientError: If an operation of the network has no second derivative.
    """
    if not variables:
        return ()
    # The graph serves the next probe, layer or precision, too. A gradient may be linear in some of
    # the variables, whose share is then 0 and not an error.
    gradients = [variable.gradient for variable in variables]
    along = [v.to(g.dtype) for v, g in zip(vectors, gradients, strict=True)]
    tensors = [variable.tensor for variable in variables]
    with translated():
        return torch.autograd.grad(
            gradients, tensors, along, retain_graph=True, materialize_grads=True
        )


@contextmanager
def second_order(
    network: Network, batch: Batch, loss: Objective, with_inputs: bool
) -> Iterator[SecondOrder]:
    """One forward and one differentiable backward pass, whose graph lives within this block.

    Args:
        network: Its weights are exchanged for variables in the meantime.
        batch: On the network's device.
        loss: What is differentiated twice, summed over the batch's examples; see ``objective``.
        with_inputs: Whether layers' inputs are variables as well.

    Raises:
        GradientError: If the network cannot be differentiated twice.
    """
    read: dict[str, list[Tensor]] = {layer.name: [] for layer in network.layers}
    handles = [
        network.layer_module(name).register_forward_pre_hook(_keep(kept), with_kwargs=True)
        for name, kept in read.items()
        if with_inputs
    ]
    with own_weights(network) as weights, hooks(handles), torch.enable_grad():
        # The fused attention kernels have no second derivative; the plain one has.
        with differentiating(network):
            with sdpa_kernel(SDPBackend.MATH), WholeGradients():
                total = loss(batch, network.outputs(batch))
            check_reached(total)
            inputs = [x for kept in read.values() for x in kept]
            # One backward pass serves weights and inputs; they are handed out in the order of this
            # list.
            variables = iter(_variables(total, [*weights.values(), *inputs]))
        yield SecondOrder(
            {name: v for name in weights if (v := next(variables)) is not None},
            {
                name: tuple(v for v in (next(variables) for _ in kept) if v is not None)
                for name, kept in read.items()
            },
        )


def _variables(total: Tensor, tensors: Sequence[Tensor]) -> list[Variable | None]:
    gradients = torch.autograd.grad(total, tensors, create_graph=True, allow_unused=True)
    check_second_derivatives(gradients)
    return [
        # A gradient that depends on nothing is constant: as good as no variable for the Hessian.
        Variable(x, g) if g is not None and g.requires_grad else None
        for x, g in zip(tensors, gradients, strict=True)
    ]


def _keep(kept: list[Tensor]) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = input_of(args, kwargs)
        if x is None or not x.is_floating_point():
            return None
        # A node of its own, so that the gradient is this call's share only: others may read x.
        x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        kept.append(x)
        return with_input(args, kwargs, x)

    return hook


@contextmanager
def own_weights(
    network: Network, names: Sequence[str] | None = None
) -> Iterator[dict[str, nn.Parameter]]:
    r"""Within this block layers compute with variables that share their weights' memory.

    Layers that use the same parameter get a variable each: a row of a table is what one layer does
    while all others stay as they are, tied or not. The blocks of layers ``a`` and ``b`` add up to
    that of their parameter but for the cross term,
    :math:`H = H_{aa} + H_{bb} + H_{ab} + H_{ba}`, which is left out as it is for any two layers.

    Args:
        network: Its layers' weights are exchanged, and put back at the end.
        names: Layers whose weight is a variable; ``None``: all.

    Yields:
        By layer.
    """
    names = [layer.name for layer in network.layers if names is None or layer.name in names]
    originals = {name: weight_of(network.layer_module(name)) for name in names}
    # Variables of our own: the network's parameters keep their flags and get no gradients. They are
    # Parameters, because torch lets nothing else take the place of one.
    fresh = {name: nn.Parameter(weight.detach()) for name, weight in originals.items()}
    try:
        for name, variable in fresh.items():
            network.layer_module(name).weight = variable
        yield fresh
    finally:
        for name, weight in originals.items():
            network.layer_module(name).weight = weight
