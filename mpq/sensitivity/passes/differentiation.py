"""The one place where a network that cannot be differentiated says so, whatever the estimator."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from mpq.errors import GradientError, MpqError
from mpq.network.modules import hooks
from mpq.network.network import Network
from mpq.network.own_forward import is_computed_again

_FAILURES: Final = (RuntimeError, ValueError, TypeError)
"""What torch raises where it cannot differentiate, and what backward passes of users raise."""
_CAUSES: Final = {
    "backward or vjp": "a torch.autograd.Function in it has no backward",
    "numpy()": "its forward hands what gradients flow through to numpy",
    "leaf variable": "its forward changes a parameter or an input in place",
    "inplace": "its forward changes in place what gradients need",
    "in-place": "its forward changes in place what gradients need",
    "inference tensor": "a part of its forward runs in inference_mode",
    "checkpoint": "its forward is checkpointed in a way that gradients cannot follow",
    "differentiate twice": "an operation in it has no second derivative",
    "_backward is not implemented": "an operation in it has no second derivative",
    "derivative": "an operation in it has no derivative",
    "deepcopy": "its forward copies what gradients flow through",
    "requires grad": "a part of its forward takes no tensors that gradients flow through",
}
"""From a part of torch's message, in lower case, to ours. Only the words depend on it."""


@contextmanager
def differentiating(network: Network) -> Iterator[None]:
    """Within this block the network is run and differentiated; what fails is a ``GradientError``.

    Raises:
        GradientError: If a layer runs where gradients are switched off, or torch cannot go on.
    """
    handles = [
        network.layer_module(layer.name).register_forward_pre_hook(
            partial(_check_grad_mode, layer.name), prepend=True
        )
        for layer in network.layers
    ]
    with hooks(handles), translated():
        yield


@contextmanager
def translated() -> Iterator[None]:
    """Within this block an error is the network's, which ran without gradients before.

    Raises:
        GradientError: Instead of torch's errors, or those of a backward pass of the user's.
    """
    try:
        yield
    except _OwnError as error:
        raise error.found from None
    except MpqError:
        raise
    except _FAILURES as error:
        if _is_of_memory(error):
            raise
        raise GradientError(f"{_cause(error)} ({_first_line(error)})") from error


@contextmanager
def reading() -> Iterator[None]:
    """Within this block, inside of ``translated``, errors are ours and stay as they are."""
    try:
        yield
    except MpqError:
        raise
    except _FAILURES as error:
        raise _OwnError(error) from error


class _OwnError(Exception):
    """Carries an error that says nothing about the network through torch's backward pass."""

    def __init__(self, found: Exception) -> None:
        self.found = found
        super().__init__(str(found))


def check_reached(outputs: Tensor) -> None:
    """Refuses outputs, or a loss of theirs, that gradients cannot start from.

    Raises:
        GradientError: If they depend on no layer.
    """
    if not outputs.requires_grad:
        raise GradientError(
            "the output does not depend on any quantizable layer in a way that gradients follow "
            "(detach, no_grad or numpy in its forward)"
        )


def check_second_derivatives(gradients: Sequence[Tensor | None]) -> None:
    """Refuses gradients of which torch would leave out a part when they are differentiated.

    A ``torch.autograd.Function`` marked ``once_differentiable`` raises only where something behind
    it is asked for: where it hides a weight from its own gradient, 0 would come out.

    Raises:
        GradientError: If there is such a function.
    """
    waiting = [g.grad_fn for g in gradients if g is not None and g.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if node.name() == "torch::autograd::Error":
            raise GradientError(
                "an operation in it has no second derivative (a torch.autograd.Function that is "
                "marked once_differentiable)"
            )
        new = {after for after, _ in node.next_functions if after is not None} - seen
        seen |= new
        waiting += new


def _check_grad_mode(name: str, _: nn.Module, __: tuple[Any, ...]) -> None:
    # Said here, as torch would fail much later, with words about a hook or a saved tensor.
    if torch.is_grad_enabled() or is_computed_again():
        return
    if torch.is_inference_mode_enabled():
        raise GradientError(f"layer {name!r} runs in inference_mode in its forward")
    raise GradientError(
        f"layer {name!r} runs without gradients in its forward (torch.no_grad around it, or "
        "checkpoint with use_reentrant=True)"
    )


def _cause(error: Exception) -> str:
    said = str(error).lower()
    found = (cause for part, cause in _CAUSES.items() if part in said)
    return next(found, "a step of it fails when gradients are computed")


def _is_of_memory(error: Exception) -> bool:
    """Memory that runs out says nothing about gradients, and measuring would only hide it."""
    # On the CPU torch raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError) or any(
        part in str(error) for part in ("out of memory", "not enough memory", "allocate memory")
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
