"""A layer computed again, alone: what a format changes in its output."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer


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
    quantizer: Quantizer,
    name: str,
    layer_module: nn.Module,
    x: Tensor,
    original: Tensor,
    candidates: Sequence[Precision],
) -> Iterator[tuple[int, Tensor]]:
    """What each choice changes in the layer's output, one at a time.

    Args:
        quantizer: How weight and input are put into a format.
        name: Of the layer.
        layer_module: Its module.
        x: Its input.
        original: Its ``response`` to it.
        candidates: ``B``; those that leave weight and input as they are, are left out.

    Yields:
        Index of the choice, and the change, of the output's shape.
    """
    for column, candidate in enumerate(candidates):
        if not (candidate.weight.is_exact and candidate.activation.is_exact):
            rounded = quantizer.activation(name, layer_module, x, candidate.activation)
            weight = quantizer.weight(name, layer_module, candidate.weight)
            yield column, response(layer_module, rounded, weight) - original


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
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
