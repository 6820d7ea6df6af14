"""A layer that has its rounded weight for the length of each of its calls."""

from typing import TYPE_CHECKING, Any, final

from torch import nn
from torch.utils.hooks import RemovableHandle

from mpq.network.modules import weight_of
from mpq.quantization.tensor_format import TensorFormat

if TYPE_CHECKING:
    from mpq.quantization.quantizer import Quantizer


@final
class RoundedInCalls:
    """Hooks that give a layer its rounded weight for the length of each of its calls.

    Args:
        name: The layer's.
        tensor_format: What its weight is stored in.
        quantizer: Rounds it.
    """

    def __init__(self, name: str, tensor_format: TensorFormat, quantizer: "Quantizer") -> None:
        self._name, self._format, self._quantizer = name, tensor_format, quantizer
        self._original: nn.Parameter | None = None

    def hooks(self, layer_module: nn.Module) -> list[RemovableHandle]:
        """The handles, after which the layer is one that rounds its weight."""
        return [
            layer_module.register_forward_pre_hook(self._begin),
            layer_module.register_forward_hook(self._end, always_call=True),
        ]

    def _begin(self, layer_module: nn.Module, _: Any) -> None:
        self._original = weight_of(layer_module)
        rounded = self._quantizer.weight(self._name, layer_module, self._format)
        layer_module.weight = nn.Parameter(rounded, requires_grad=False)

    def _end(self, layer_module: nn.Module, _: Any, __: Any) -> None:
        if self._original is not None:  # after an error in an earlier hook nothing was begun
            layer_module.weight, self._original = self._original, None
