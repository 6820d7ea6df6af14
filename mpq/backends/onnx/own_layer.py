"""Layers with a forward of their own in a graph: as torch computes them, around placeholders."""

from typing import TYPE_CHECKING, Any, Final, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mpq.network.arguments import input_of, with_input

if TYPE_CHECKING:
    import onnx

INPUT, WEIGHT, OUTPUT = "LayerInput", "LayerWeight", "LayerOutput"
OPERATORS: Final = (INPUT, WEIGHT, OUTPUT)
"""A layer's input and its weight, to be written in the layer's precision, and what it gives."""


@final
class OwnLayer(nn.Module):
    """Runs a layer's own forward on placeholders of its weight and its input, before a third.

    The input's stands behind all hooks of the layer's, where the simulation rounds.
    """

    def __init__(self, name: str, layer_module: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.layer_module = layer_module
        layer_module.register_forward_pre_hook(self._marked, with_kwargs=True)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the layer computes."""
        weight = self.layer_module.weight
        assert isinstance(weight, Tensor)
        parameters = {"weight": self._placeholder(WEIGHT, weight)}
        found: Tensor = functional_call(self.layer_module, parameters, args, kwargs)
        return self._placeholder(OUTPUT, found)

    def _marked(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        x = input_of(args, kwargs)
        if x is None or not x.is_floating_point():  # ids and shapes, which are not rounded
            return None
        return with_input(args, kwargs, self._placeholder(INPUT, x))

    def _placeholder(self, operator: str, x: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            f"mpq::{operator}",
            (x,),
            {"layer": self.name},
            dtype=x.dtype,
            shape=tuple(x.shape),
            version=1,
        )


def layer_of(node: "onnx.NodeProto") -> str:
    """The layer that a placeholder stands for a part of."""
    name: str = node.attribute[0].s.decode()
    return name
