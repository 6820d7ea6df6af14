"""The operators of a ``.tflite`` file: who reads what, and new tensors and operators."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np

from mpq.errors import ModelError

KERNELS: Final = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D")
"""Operators that read weights as integers."""
LOOKUPS: Final = ("GATHER", "EMBEDDING_LOOKUP")
MOVES: Final = ("RESHAPE", "TRANSPOSE", "MAX_POOL_2D", "PAD")
"""Operators after which all numbers are numbers that were there, or 0: codes pass through them."""
NO_TENSOR: Final = -1


@final
@dataclass(frozen=True)
class Form:
    """How a tensor is stored: ``number = scale * (code - zero)``.

    Args:
        scale: Of one code, a float32 number.
        zero: The code of 0, from -128 to 127; 0 of 16 bits.
        bits: Of a code, 8 or 16.
    """

    scale: float
    zero: int
    bits: int = 8

    def cut(self, codes: Any) -> Any:
        """Codes without their zero point, cut to those that there are."""
        half = 2 ** (self.bits - 1)
        return codes.clamp(-half - self.zero, half - 1 - self.zero)


@final
@dataclass(frozen=True, eq=False)
class Graph:
    """The first subgraph of a file's objects, which are changed in place."""

    model: Any

    @property
    def subgraph(self) -> Any:
        """Its tensors and operators."""
        return self.model.subgraphs[0]

    def kind(self, operator: Any) -> str:
        """Such as ``CONV_2D``."""
        from ai_edge_litert import schema_py_generated as schema

        code = self.model.operatorCodes[operator.opcodeIndex].builtinCode
        return next(str(name) for name, x in vars(schema.BuiltinOperator).items() if x == code)

    def readers(self, tensor: int) -> list[Any]:
        """Operators that read a tensor, in order."""
        return [x for x in self.subgraph.operators if tensor in list(x.inputs)]

    def constant(self, tensor: int) -> Any:
        """A float constant's numbers ``[N]``, or ``None``."""
        data = self.model.buffers[self.subgraph.tensors[tensor].buffer].data
        return None if data is None else np.frombuffer(bytes(data), np.float32)

    def add(
        self,
        like: int,
        suffix: str,
        kind: str,
        scales: Sequence[float] | np.ndarray[Any, Any] = (),
        zero: int = 0,
        data: np.ndarray[Any, Any] | None = None,
    ) -> int:
        """A new tensor of another one's shape, or of the shape of what it holds.

        Args:
            like: The other one.
            suffix: Behind its name.
            kind: Element type, such as ``INT8``.
            scales: Of its codes, along the first axis; empty: none.
            zero: The code of 0.
            data: What it holds, if it is a constant.
        """
        from ai_edge_litert import schema_py_generated as schema

        other, made = self.subgraph.tensors[like], schema.TensorT()
        made.name = bytes(other.name) + suffix.encode()
        made.shape, made.shapeSignature = other.shape, other.shapeSignature
        if data is not None:
            made.shape, made.shapeSignature = np.array(data.shape, np.int32), None
        made.type = getattr(schema.TensorType, kind)
        made.buffer = len(self.model.buffers)
        self.model.buffers.append(schema.BufferT())
        if data is not None:
            self.model.buffers[made.buffer].data = np.frombuffer(data.tobytes(), np.uint8)
        if len(scales):
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale = np.array(scales, np.float32)
            made.quantization.zeroPoint = np.full(len(scales), zero, np.int64)
        self.subgraph.tensors.append(made)
        return len(self.subgraph.tensors) - 1

    def stored(self, tensor: int, form: Form) -> int:
        """A new tensor for the codes of another one."""
        suffix = f"_int{form.bits}_{len(self.subgraph.tensors)}"
        return self.add(tensor, suffix, f"INT{form.bits}", [form.scale], form.zero)

    def operator(self, kind: str, version: int, read: int, made: int) -> Any:
        """A new ``QUANTIZE`` or ``DEQUANTIZE``, in no place yet."""
        from ai_edge_litert import schema_py_generated as schema

        operator, name = schema.OperatorT(), f"{kind.capitalize()}Options"
        operator.opcodeIndex = self._code(getattr(schema.BuiltinOperator, kind), version)
        operator.inputs, operator.outputs = np.array([read], np.int32), np.array([made], np.int32)
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, name)
        operator.builtinOptions = getattr(schema, f"{name}T")()
        return operator

    def need_version(self, operator: Any, version: int) -> None:
        """States that an operator is of a version at least, as readers ask for it."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        if code.version < version:
            operator.opcodeIndex = self._code(code.builtinCode, version)

    def drop_unread(self) -> None:
        """Empties the buffers of tensors that no operator reads any more."""
        graph = self.subgraph
        read = {int(i) for x in graph.operators for i in x.inputs} | {int(i) for i in graph.outputs}
        kept = {graph.tensors[i].buffer for i in read if i != NO_TENSOR}
        kept |= {entry.buffer for entry in self.model.metadata or ()}
        for index, buffer in enumerate(self.model.buffers):
            if index not in kept:
                buffer.data = None

    def _code(self, builtin: int, version: int) -> int:
        from ai_edge_litert import schema_py_generated as schema

        for index, code in enumerate(self.model.operatorCodes):
            if code.builtinCode == builtin and code.version == version:
                return index
        code = schema.OperatorCodeT()
        code.builtinCode, code.version = builtin, version
        # For old readers, whose field has eight bits.
        code.deprecatedBuiltinCode = min(builtin, 127)
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1


def kernels_of(graph: Graph, tensor: int, name: str) -> list[Any]:
    """Operators that read a weight and could read it as integers.

    Args:
        graph: Of a converted network.
        tensor: The weight.
        name: The layer's, for the message.

    Raises:
        ModelError: If another operator computes the layer.
    """
    found = [x for x in graph.readers(tensor) if graph.kind(x) not in LOOKUPS]
    for operator in found:
        kind = graph.kind(operator)
        if kind not in KERNELS or operator.inputs[1] != tensor:
            raise ModelError(
                f"litert: layer {name!r} is computed by {kind} in the converted network, and "
                f"integers are read by {', '.join(KERNELS)}: give it inputs in floating point (a32)"
            )
    return found
