"""A layer that has its rounded weight for the length of each of its calls."""

from collections.abc import Callable
from typing import Any, final

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mpq.network.modules import weight_of


@final
class RoundedInCalls:
    """Hooks that give a layer its rounded weight for the length of each of its calls.

    Args:
        rounded: The weight of a layer that holds its original one.
    """

    def __init__(self, rounded: Callable[[nn.Module], Tensor]) -> None:
        self._rounded = rounded
        self._original: nn.Parameter | None = None

    def hooks(self, layer_module: nn.Module) -> list[RemovableHandle]:
        """The handles, after which the layer is one that rounds its weight."""
        return [
            layer_module.register_forward_pre_hook(self._begin),
            layer_module.register_forward_hook(self._end, always_call=True),
        ]

    def _begin(self, layer_module: nn.Module, _: Any) -> None:
        self._original = weight_of(layer_module)
        layer_module.weight = nn.Parameter(self._rounded(layer_module), requires_grad=False)

    def _end(self, layer_module: nn.Module, _: Any, __: Any) -> None:
        if self._original is not None:  # after an error in an earlier hook nothing was begun
            layer_module.weight, self._original = self._original, None
