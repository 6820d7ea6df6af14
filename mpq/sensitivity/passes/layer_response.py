"""A layer computed again, alone: what a format changes in its output."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mpq.network.arguments import with_input
from mpq.network.own_forward import Again
from mpq.sensitivity.estimation import Estimation


def response(
    layer_module: nn.Module, x: Tensor, weight: Tensor | None = None, call: Again | None = None
) -> Tensor:
    """The output of a layer's own ``forward``, without gradients and without its hooks.

    Args:
        layer_module: The layer's module; left as it is.
        x: Input, as it is called with.
        weight: Takes the place of its weight, of the same shape.
        call: All that it is called with, where that is more than ``x``.

    Returns:
        At least in float32: the difference of two responses would drown in bfloat16.
    """
    args, kwargs = ((x,), {}) if call is None else with_input(call.args, call.kwargs, x)
    args, kwargs = tree_map(_widened_tensor, (args, dict(kwargs)))
    replaced = {} if weight is None else {"weight": widened(weight)}
    with torch.no_grad():
        again = Again(layer_module, args, kwargs, call is not None and call.with_hooks)
        found = again.output(replaced, widened)
    assert isinstance(found, Tensor)
    return found


def response_changes(
    on: Estimation, name: str, x: Tensor, original: Tensor, call: Again | None = None
) -> Iterator[tuple[int, Tensor]]:
    """What each candidate changes in the layer's output, one at a time.

    Args:
        on: Its candidates; those that leave weight and input as they are, are left out.
        name: Name of the layer.
        x: What the layer reads.
        original: The layer's ``response`` to ``x``.
        call: As for ``response``.

    Yields:
        Column of the candidate, and the change, of the output's shape.
    """
    for column, candidate in enumerate(on.candidates):
        # No change is yielded where it is 0, so that callers' sums, which start at 0, stay so.
        if not (candidate.weight.is_exact and candidate.activation.is_exact):
            rounded = on.rounded_input(name, x, candidate.activation)
            weight = on.rounded_weight(name, candidate.weight)
            layer_module = on.network.layer_module(name)
            yield column, response(layer_module, rounded, weight, call) - original


def widened(tensor: Tensor) -> Tensor:
    """The numbers, at least in float32; without gradients."""
    tensor = tensor.detach()
    if not tensor.is_floating_point():
        return tensor
    # Promoted, not cast: float64 stays float64.
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _widened_tensor(value: Any) -> Any:
    return widened(value) if isinstance(value, Tensor) else value
