"""A layer computed again, alone: what a format changes in its output."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mpq.sensitivity.estimation import Estimation


def response(layer_module: nn.Module, x: Tensor, weight: Tensor | None = None) -> Tensor:
    """The output of a layer's own ``forward``, without gradients and without its hooks.

    Args:
        layer_module: The layer's module; left as it is.
        x: Input, as it is called with.
        weight: Takes the place of its weight, of the same shape.

    Returns:
        At least in float32: the difference of two responses would drown in bfloat16.
    """
    # Named as `_Bare` holds them: `functional_call` finds parameters by their path.
    parameters = layer_module.named_parameters(recurse=False)
    own = {f"layer_module.{name}": _wide(p) for name, p in parameters}
    if weight is not None:
        own["layer_module.weight"] = _wide(weight)
    with torch.no_grad():
        found = torch.func.functional_call(_Bare(layer_module), own, (_wide(x),))
    assert isinstance(found, Tensor)
    return found


def response_changes(
    on: Estimation, name: str, x: Tensor, original: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """What each candidate changes in the layer's output, one at a time.

    Args:
        on: Its candidates; those that leave weight and input as they are, are left out.
        name: Name of the layer.
        x: What the layer reads.
        original: The layer's ``response`` to ``x``.

    Yields:
        Column of the candidate, and the change, of the output's shape.
    """
    for column, candidate in enumerate(on.candidates):
        # No change is yielded where it is 0, so that callers' sums, which start at 0, stay so.
        if not (candidate.weight.is_exact and candidate.activation.is_exact):
            rounded = on.rounded_input(name, x, candidate.activation)
            weight = on.rounded_weight(name, candidate.weight)
            yield column, response(on.network.layer_module(name), rounded, weight) - original


class _Bare(nn.Module):
    """Calls a layer's ``forward`` itself, so that no hook on the layer is called."""

    def __init__(self, layer_module: nn.Module) -> None:
        super().__init__()
        self.layer_module = layer_module

    def forward(self, x: Tensor) -> Any:
        return self.layer_module.forward(x)


def _wide(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if not tensor.is_floating_point():
        return tensor
    # Promoted, not cast: float64 stays float64.
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
