"""A copy of a model with other parameters that compute the same."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from mpq.errors import MismatchError
from mpq.network.modules import share_parameters
from mpq.network.reparametrization import Addition, Change, Rotation, Scaling, Untying

_TOLD: Final = 5
"""Parameters in an error that says which ones do not fit."""


def reparametrized(model: nn.Module, changes: Sequence[Change]) -> nn.Module:
    """The model with its parameters changed; the given one stays as it is.

    It is of the model's own classes, without wrappers, and shares the memory of all parameters
    that are not changed. Each change is computed in float64, and rounded once at the end.

    Args:
        model: In evaluation mode; left as found.
        changes: ``Reparametrization.changes``.

    Raises:
        MismatchError: If a parameter is missing, or has another shape.
        ModelError: If the model cannot be copied.
    """
    module = share_parameters(model)
    # Under every name that it has: a tied parameter is one object, and changed once.
    parameters = dict(module.named_parameters(remove_duplicate=False))
    _check(parameters, changes)
    with torch.no_grad():
        for change in changes:
            if isinstance(change, Untying):
                parameters[change.parameter] = _untied(module, change.parameter)
        for name in dict.fromkeys(change.parameter for change in changes):
            parameter = parameters[name]
            own = (change for change in changes if change.parameter == name)
            # Our parameter gets memory of its own; the user's keeps what it has.
            parameter.data = changed(parameter.data.double(), own).to(parameter.dtype)
    return module


def changed(values: Tensor, changes: Iterable[Change]) -> Tensor:
    """A parameter's numbers after its changes, in the dtype given."""
    for change in changes:
        if isinstance(change, Scaling):
            values = values * _along(values, change.axis, change.factors)
        elif isinstance(change, Addition):
            values = values + _along(values, change.axis, change.terms)
        elif isinstance(change, Rotation):
            matrix = torch.from_numpy(change.by.matrix).to(values)
            values = rotated(values, change.axis, change.start, change.count, matrix)
    return values


def rotated(values: Tensor, axis: int, start: int, count: int, by: Tensor) -> Tensor:
    """Blocks of ``d`` entries along an axis, as rows multiplied with a matrix ``[d, d]``.

    Args:
        values: Of any shape.
        axis: Which one.
        start: Entry where the first block begins.
        count: Of blocks, one behind the other; the entries around them stay.
        by: In the dtype of the values.
    """
    end = start + count * len(by)
    rows = values.movedim(axis, -1)
    blocks = rows[..., start:end].unflatten(-1, (count, len(by))) @ by
    parts = (rows[..., :start], blocks.flatten(-2), rows[..., end:])
    return torch.cat(parts, dim=-1).movedim(-1, axis).contiguous()


def _untied(module: nn.Module, name: str) -> nn.Parameter:
    """Memory of its own for one name of a parameter."""
    path, _, own = name.rpartition(".")
    owner = module.get_submodule(path)
    copied = nn.Parameter(owner.get_parameter(own).detach().clone(), requires_grad=False)
    owner.register_parameter(own, copied)
    # A copy as well: what transformers loads by it has to load both.
    config = vars(module).get("config")
    if getattr(config, "tie_word_embeddings", False):
        config.tie_word_embeddings = False  # type: ignore[union-attr]
    return copied


def _along(values: Tensor, axis: int, vector: "np.ndarray[Any, Any]") -> Tensor:
    """A vector that meets the entries of an axis."""
    return torch.from_numpy(vector).to(values).view(-1, *[1] * (values.ndim - axis - 1))


def _check(parameters: dict[str, nn.Parameter], changes: Sequence[Change]) -> None:
    problems = []
    for change in changes:
        parameter = parameters.get(change.parameter)
        if parameter is None:
            problems.append(f"lacks the parameter {change.parameter!r}")
            continue
        why = change.why_not(tuple(parameter.shape))
        if why:
            problems.append(f"{change.parameter!r} {why}")
    if problems:
        told = list(dict.fromkeys(problems))
        more = f" and {len(told) - _TOLD} more" if len(told) > _TOLD else ""
        raise MismatchError(
            "the assignment belongs to another network, whose parameters were transformed: this "
            f"one {'; '.join(told[:_TOLD])}{more}"
        )
