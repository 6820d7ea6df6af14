"""Layers whose rounded weight exists only while somebody reads it."""

from collections.abc import Mapping
from typing import final

from torch import Tensor, nn
from torch.nn.utils import parametrize

from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer, round_inputs
from mpq.quantization.tensor_format import TensorFormat


def round_when_read(
    module: nn.Module, precisions: Mapping[str, Precision], quantizer: Quantizer
) -> None:
    """Makes the named layers compute in their precisions, in place, as ``install`` does.

    Instead of a rounded weight a layer keeps its own, and rounds it whenever it is read: memory for
    one layer, and every call rounds anew.

    Args:
        module: Whose layers they are.
        precisions: Layer name to precision.
        quantizer: Rounds.
    """
    for name, precision in precisions.items():
        layer_module = module.get_submodule(name)
        if not precision.weight.is_exact:
            rounded = _Rounded(name, layer_module, precision.weight, quantizer)
            # Unsafe: it would be read now, to see that its shape stays.
            parametrize.register_parametrization(layer_module, "weight", rounded, unsafe=True)
    round_inputs(module, precisions, quantizer)


@final
class _Rounded(nn.Module):
    """What a layer's weight is stored as.

    Args:
        name: The layer's.
        layer_module: Its module.
        tensor_format: What it is stored in.
        quantizer: Rounds it.
    """

    def __init__(
        self, name: str, layer_module: nn.Module, tensor_format: TensorFormat, quantizer: Quantizer
    ) -> None:
        super().__init__()
        # In a tuple: as an attribute it would be a module of its own part.
        self._layer = (layer_module,)
        self._name, self._format, self._quantizer = name, tensor_format, quantizer

    def forward(self, weight: Tensor) -> Tensor:
        """The rounded weight."""
        return self._quantizer.weight(self._name, *self._layer, self._format, original=weight)
