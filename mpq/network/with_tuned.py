"""A copy of a model with vectors that tuning has changed."""

from typing import Final

import torch
from torch import nn

from mpq.errors import MismatchError
from mpq.network.modules import share_parameters
from mpq.network.tuned_parameters import TunedParameters

_TOLD: Final = 5
"""Parameters in an error that says which ones do not fit."""


def with_tuned(model: nn.Module, tuned: TunedParameters) -> nn.Module:
    """The model with its tuned vectors; the given one stays as it is.

    It is of the model's own classes, without wrappers, and shares the memory of all other
    parameters.

    Args:
        model: In evaluation mode, transformed if it was; left as found.
        tuned: Names and numbers.

    Raises:
        MismatchError: If a parameter is missing, or has other numbers than those that were tuned.
        ModelError: If the model cannot be copied.
    """
    module = share_parameters(model)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    problems = []
    for name, vector in tuned.by_name.items():
        parameter = parameters.get(name)
        if parameter is None:
            problems.append(f"lacks the parameter {name!r}")
            continue
        dtype = torch.from_numpy(vector.original).dtype
        why = vector.why_not(parameter.detach().to("cpu", dtype).numpy())
        if why:
            problems.append(f"{name!r} {why}")
        # Our parameter gets memory of its own; the user's keeps what it has.
        parameter.data = torch.from_numpy(vector.tuned).to(parameter.device, parameter.dtype)
    if problems:
        more = f" and {len(problems) - _TOLD} more" if len(problems) > _TOLD else ""
        raise MismatchError(
            "the assignment belongs to another network, whose biases and norms were tuned (another "
            f"checkpoint?): this one {'; '.join(problems[:_TOLD])}{more}"
        )
    return module
