"""Networks of a few named layers, and any function of them."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Function(nn.Module):
    """Named layers and a function of them."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        """What the function gives."""
        return self.function(self, x)
