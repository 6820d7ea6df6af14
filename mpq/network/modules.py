"""What is asked of a plain module: its device, its weights, its hooks."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mpq.errors import ModelError


def check_model(model: nn.Module) -> None:
    """Refuses what no search can work with.

    Raises:
        ModelError: If the model is in training mode, has no parameter, is on the ``meta`` device,
            or has weights that are NaN or infinite.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected an nn.Module, got a {type(model).__name__}")
    # Every module and not the root alone: `train()` may be called on a part.
    training = [name or "the model itself" for name, m in model.named_modules() if m.training]
    if training:
        raise ModelError(
            f"the model is in training mode ({training[0]}), so that dropout and BatchNorm would "
            "change its answers; call model.eval() first"
        )
    if next(model.parameters(), None) is None:
        raise ModelError("the model has no parameters: there is nothing to quantize")
    for name, parameter in model.named_parameters():
        # Before `isfinite`, which fails on such parameters in torch's words.
        if isinstance(parameter, nn.UninitializedParameter) or parameter.is_meta:
            raise ModelError(f"parameter {name!r} has no values yet; load the weights first")
        if not bool(parameter.isfinite().all()):
            raise ModelError(f"parameter {name!r} has values that are NaN or infinite")


def share_parameters(model: nn.Module) -> nn.Module:
    """A copy of the modules whose parameters are the model's own memory, without gradients.

    Raises:
        ModelError: If the model cannot be copied.
    """
    # By id, as `deepcopy` looks there first: a parameter that is used twice stays one.
    shared: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()
    }
    try:
        return copy.deepcopy(model, memo=shared)
    except (RuntimeError, TypeError) as error:
        raise ModelError(
            f"the model cannot be copied ({error}); weight_norm and other parametrizations must "
            "be removed first"
        ) from error


def device_of(module: nn.Module) -> torch.device:
    """Device of the first parameter."""
    return next(module.parameters()).device


def stored_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and persistent buffers, as a state dict has them, but the very objects."""
    for part in module.modules():
        stored = (*part._parameters.items(), *part._buffers.items())
        for name, tensor in stored:
            if tensor is not None and name not in part._non_persistent_buffers_set:
                yield tensor


def weight_of(layer_module: nn.Module) -> nn.Parameter:
    """The weight of a layer's module."""
    weight = layer_module.weight
    assert isinstance(weight, nn.Parameter)
    return weight


@contextmanager
def hooks(handles: Iterable[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    """Removes the hooks afterwards, whatever happens."""
    # A generator would register its hooks only when it is read, that is afterwards.
    kept = list(handles)
    try:
        yield
    finally:
        for handle in kept:
            handle.remove()
