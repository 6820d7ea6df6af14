"""What is asked of a plain module: its device, its weights, its hooks."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mpq.errors import ModelError
from mpq.network.computed_weights import computed_tensors, hold_values
from mpq.network.finite import is_finite
from mpq.network.mapped import release
from mpq.network.max_norm import scale_once, scaled_tables
from mpq.network.refusals import (
    check_program,
    check_unprepared,
    foreign_program,
    is_program,
    is_readable,
    refusal,
)
from mpq.network.wrappers import copies_of_wrapped, plain_modules


def check_no_autocast() -> None:
    """Refuses to look at a network within ``torch.autocast``.

    Products of gradients and rounding errors would be made in half precision, too, and the network
    that is exported runs without it.

    Raises:
        ModelError: If it is on, for any device.
    """
    kinds = ("cpu", "cuda", "xpu", "mps")
    is_on = [kind for kind in kinds if torch.is_autocast_enabled(kind)]
    if is_on:
        raise ModelError(
            f"torch.autocast is on for {', '.join(is_on)}, where mpq's own products would be made "
            "in half precision as well: leave it, and convert the model (model.bfloat16()) if it "
            "is to run so"
        )


def check_model(model: nn.Module) -> None:
    """Refuses what no search can work with.

    Raises:
        ModelError: If ``torch.autocast`` is on, the model is in training mode, prepared for
            quantization-aware training, has no parameter, is on the ``meta`` device, has weights
            that are NaN or infinite, or is no module at all.
    """
    check_no_autocast()
    if not isinstance(model, nn.Module):
        raise ModelError(foreign_program(model) or f"expected an nn.Module, got {_kind(model)}")
    modules = dict(plain_modules(model))
    check_program(modules[""])
    # Before the mode, which is that of training as a rule.
    check_unprepared(modules)
    # Every module and not the root alone: `train()` may be called on a part. A program has no mode.
    programs = tuple(f"{name}." for name, m in modules.items() if is_program(m))
    parts = {n: m for n, m in modules.items() if not f"{n}.".startswith(programs)}
    training = [name or "the model itself" for name, m in parts.items() if m.training]
    if training:
        raise ModelError(
            f"the model is in training mode ({training[0]}), so that dropout and BatchNorm would "
            "change its answers; call model.eval() first"
        )
    if next(model.parameters(), None) is None:
        # The packed weights of a quantized network are no parameters.
        found = (refusal(name, module) for name, module in modules.items())
        nothing = "the model has no parameters: there is nothing to quantize"
        raise ModelError(next(filter(None, found), nothing))
    for name, module in modules.items():
        for own_name, parameter in module.named_parameters(name, recurse=False):
            _check_values(own_name, parameter)
            release([parameter])


def _kind(model: object) -> str:
    name = type(model).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _check_values(name: str, parameter: nn.Parameter) -> None:
    # Before `isfinite`, which fails on such parameters in torch's words.
    if isinstance(parameter, nn.UninitializedParameter) or parameter.is_meta:
        raise ModelError(f"parameter {name!r} has no values yet; load the weights first")
    if parameter.layout is not torch.strided:
        raise ModelError(
            f"parameter {name!r} is sparse ({parameter.layout}), while formats hold every number; "
            "make it dense first (to_dense())"
        )
    if parameter.is_inference() and parameter.requires_grad:
        raise ModelError(
            f"parameter {name!r} was made in inference_mode, where torch can neither read nor "
            "differentiate it as a parameter; make the network outside of it"
        )
    # A class without instances of its own: torch marks plain parameters with it.
    if getattr(parameter, "_is_flat_param", False):
        raise ModelError(
            f"parameter {name!r} is all parameters of an FSDP unit in one, without their shapes; "
            "wrap with use_orig_params=True, or search the module before it is wrapped"
        )
    if type(parameter).__name__ == "DTensor":
        raise ModelError(
            f"parameter {name!r} is spread over several processes (DTensor); gather all of them "
            "(full_tensor) and search the whole network in one process"
        )
    # It fails on the codes of quantized tensors as well, whose layers are refused by name.
    if is_readable(parameter) and not is_finite(parameter):
        raise ModelError(f"parameter {name!r} has values that are NaN or infinite")


def share_parameters(model: nn.Module) -> nn.Module:
    """A copy of the modules whose parameters are the model's own memory, without gradients.

    It computes what the model computes, written plainly: without the wrappers of ``torch.compile``
    and data parallelism, and with the values of computed weights (weight_norm, pruning) as
    parameters, which are new memory; so are embeddings with ``max_norm``, whose rows are scaled.

    Args:
        model: In evaluation mode; left as found.

    Raises:
        ModelError: If the model cannot be copied.
    """
    # By id, as `deepcopy` looks there first: a parameter that is used twice stays one. Those of
    # quantized networks are more than their numbers, and know themselves how they are copied.
    shared: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False)
        for p in model.parameters()
        if type(p) is nn.Parameter and is_readable(p)
    }
    for table in scaled_tables(model):
        if id(table) in shared:
            shared[id(table)] = nn.Parameter(table.detach().clone(), requires_grad=False)
    for module in model.modules():
        for tensor in computed_tensors(vars(module)):
            shared[id(tensor)] = tensor.detach().clone()
    try:
        copies_of_wrapped(model, shared, partial(copy.deepcopy, memo=shared))
        copied = copy.deepcopy(model, memo=shared)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ModelError(
            f"the model cannot be copied ({error}); a module holds something that "
            "copy.deepcopy refuses: keep it outside of the model"
        ) from error
    for parameter in copied.parameters():
        # TorchScript copies as an operation: gradients would reach the user's parameters.
        parameter.detach_().requires_grad_(False)
    hold_values(copied)
    scale_once(copied)
    return copied


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
