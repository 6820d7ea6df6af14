"""An ONNX graph that is being written: nodes, constants, fresh names."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mpq.quantization.grid import Grid

if TYPE_CHECKING:
    import onnx

CALLS: Final = "mpq_calls"
"""Key of a file's metadata: which tensors layers read and give."""
NOT_TOLD: Final = ""
"""In the place of a tensor: ids, which are no numbers, and what hooks of a layer change first."""


@final
@dataclass(frozen=True)
class InputCodes:
    """How a tensor's integers stand for numbers: one scale and zero point for all of them.

    Args:
        scale: How far the numbers of two successive codes are apart; positive.
        zero_point: The code that stands for the number zero.
        symmetric: Signed codes if so, from 0 if not.
        bits: Of a code: 8 or 16.
    """

    scale: float
    zero_point: int
    symmetric: bool
    bits: int

    @classmethod
    def of(cls, grid: Grid) -> "InputCodes":
        """Of an activation's grid, which has one row."""
        # Python's numbers, as codes are compared and are keys of a dict.
        ends = float(grid.scale[0]), int(grid.zero_point[0])
        return cls(*ends, grid.symmetric, grid.number.bits)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the codes; 16 bits are in the standard's operators from version 21 on."""
        return np.dtype(f"{'' if self.symmetric else 'u'}int{self.bits}")


@final
@dataclass(eq=False)
class Writer:
    """Collects nodes and constants of one graph; every name it gives is new."""

    nodes: list["onnx.NodeProto"] = field(default_factory=list)
    constants: list["onnx.TensorProto"] = field(default_factory=list)
    _count: int = 0

    def fresh(self, stem: str) -> str:
        """A name that no other tensor has."""
        self._count += 1
        # The prefix keeps clear of the exporter's names, which are in the same graph.
        return f"mpq_{self._count}_{stem}"

    def constant(self, stem: str, values: Tensor | npt.NDArray[Any]) -> str:
        """A constant tensor; its name."""
        # Here, as onnx is an optional package.
        from onnx import numpy_helper

        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
        name = self.fresh(stem)
        # Not ascontiguousarray, which makes a list of one of a single number.
        self.constants.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def node(
        self,
        operator: str,
        inputs: Sequence[str],
        output: str | None = None,
        attributes: dict[str, Any] | None = None,
        domain: str = "",
    ) -> str:
        """A node with one output; the output's name."""
        from onnx import helper

        output = output or self.fresh(operator.lower())
        # Named, as runtimes tell of a node by its name.
        name = self.fresh(f"{operator}_node")
        self.nodes.append(
            helper.make_node(
                operator, list(inputs), [output], name, domain=domain, **(attributes or {})
            )
        )
        return output

    def quantize(self, x: str, codes: InputCodes, output: str | None = None) -> str:
        """A float tensor as integers."""
        return self.node("QuantizeLinear", [x, *self._codes(codes)], output)

    def dequantize(self, x: str, codes: InputCodes, output: str | None = None) -> str:
        """Integers as a float tensor."""
        return self.node("DequantizeLinear", [x, *self._codes(codes)], output)

    def dequantize_rows(self, codes: Tensor, scale: Tensor, axis: int) -> str:
        """A constant of integers, one scale for every index of an axis, as a float tensor."""
        # Weights are symmetric, and for int32 the operator's definition has no other zero point.
        zero = torch.zeros(len(scale), dtype=codes.dtype)
        inputs = [
            self.constant("codes", codes),
            self.constant("scale", scale.float()),
            self.constant("zero", zero),
        ]
        return self.node("DequantizeLinear", inputs, attributes={"axis": axis})

    def _codes(self, codes: InputCodes) -> list[str]:
        return [
            # float32, as a scale has the type of the numbers.
            self.constant("scale", np.array(codes.scale, dtype=np.float32)),
            # Its type is what tells QuantizeLinear the type of the codes.
            self.constant("zero_point", np.array(codes.zero_point, dtype=codes.dtype)),
        ]
