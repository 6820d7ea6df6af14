"""Whether a file keeps TensorRT's rules of explicit quantization. Nothing is run here.

The rules are those of NVIDIA's documentation of TensorRT 10.11 to 11.0 ("Working with Quantized
Types": quantization schemes, explicit quantization, placement of Q/DQ layers).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np

from mpq.backends.onnx.template import require_onnx
from mpq.errors import FileFormatError

if TYPE_CHECKING:
    import onnx

TYPES: Final = ("INT8", "INT4", "FLOAT8E4M3FN", "FLOAT4E2M1")
"""Element types of quantized numbers."""
INT4_BLOCKS: Final = (64, 128)
"""Block sizes of INT4 weights."""
_PAIR: Final = ("QuantizeLinear", "DequantizeLinear")
_PRODUCTS: Final = ("Conv", "ConvTranspose", "MatMul", "Gemm")


@final
@dataclass(frozen=True)
class Finding:
    """One rule that a file breaks.

    Args:
        node: Name of the node, as the file has it.
        is_refused: Whether TensorRT takes no such file; else it takes it, and a fusion breaks.
        text: The rule, and what came.
    """

    node: str
    is_refused: bool
    text: str


def lint(file: Path | str) -> tuple[Finding, ...]:
    """Rules of TensorRT's explicit quantization that an ONNX file breaks.

    Args:
        file: Any ONNX file; its numbers are read for zero points and scales.

    Returns:
        What TensorRT refuses first, then where its fusions break; empty: nothing was found, which
        is no proof that it runs.

    Raises:
        FileFormatError: If it is no ONNX file.
        MissingDependencyError: If ``onnx`` is not installed.
    """
    require_onnx()
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(file)
    except (DecodeError, OSError) as error:
        raise FileFormatError(f"{file} is no ONNX file: {error}") from error
    found = tuple(_Linting(model).findings())
    return tuple(sorted(found, key=lambda x: not x.is_refused))


@final
@dataclass(eq=False)
class _Linting:
    model: "onnx.ModelProto"
    constants: dict[str, "onnx.TensorProto"] = field(init=False)
    makers: dict[str, "onnx.NodeProto"] = field(init=False)
    readers: dict[str, list["onnx.NodeProto"]] = field(init=False)

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.constants = {x.name: x for x in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}
        self.readers = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def findings(self) -> Iterator[Finding]:
        for node in self.model.graph.node:
            if node.domain not in ("", "ai.onnx"):
                yield Finding(node.name, True, f"{node.domain}'s {node.op_type} is no standard one")
            if node.op_type in _PAIR:
                refused = [*self._type(node), *self._zero_point(node), *self._scale(node)]
                yield from (Finding(node.name, True, text) for text in refused)
            if node.op_type == "QuantizeLinear":
                yield from self._pair(node)
            if node.op_type in _PRODUCTS:
                yield from (Finding(node.name, False, text) for text in self._product(node))
            if node.op_type == "Add":
                yield from (Finding(node.name, False, text) for text in self._addition(node))

    def _element(self, node: "onnx.NodeProto") -> str:
        """Of the quantized numbers of a node of the pair; empty: the file does not tell."""
        from onnx import TensorProto

        constant = self.constants.get(node.input[0] if node.op_type == _PAIR[1] else "")
        if constant is None and len(node.input) > 2:
            constant = self.constants.get(node.input[2])
        if constant is not None:
            return str(TensorProto.DataType.Name(constant.data_type))
        told = _attribute(node, "output_dtype", 0)
        if told:
            return str(TensorProto.DataType.Name(told))
        maker = self.makers.get(node.input[0])
        if node.op_type == _PAIR[1] and maker is not None and maker.op_type == _PAIR[0]:
            return self._element(maker)
        # What the definition says where nothing is said.
        return "UINT8" if node.op_type == _PAIR[0] else ""

    def _type(self, node: "onnx.NodeProto") -> Iterator[str]:
        element = self._element(node)
        if element and element not in TYPES:
            yield f"quantized numbers are {', '.join(TYPES)}, and these are {element}"
        if element == "INT4" and node.input[0] not in self.constants:
            yield "INT4 is for weights alone, and this is computed"

    def _zero_point(self, node: "onnx.NodeProto") -> Iterator[str]:
        if len(node.input) < 3 or not node.input[2]:
            return
        constant = self.constants.get(node.input[2])
        if constant is None:
            yield "zero points are constants of 0, and these are computed"
        elif _numbers(constant).any():
            yield "quantization is symmetric: zero points are 0 (search with a8s and without z)"

    def _scale(self, node: "onnx.NodeProto") -> Iterator[str]:
        constant = self.constants.get(node.input[1])
        if constant is None:
            yield "scales are constants, and these are computed"
            return
        if not (_numbers(constant) > 0).all():
            yield "scales are positive"
        element, rank = self._element(node), len(constant.dims)
        stored, block = self.constants.get(node.input[0]), _attribute(node, "block_size", 0)
        if rank and stored is None:
            yield "computed tensors have one scale, and no list of them"
        if rank > 1 and (stored is None or rank != len(stored.dims)):
            yield f"a scale is a number, a list, or has as many axes as its tensor; got {rank}"
        if element == "INT4" and block not in INT4_BLOCKS:
            told = f"blocks of {block}" if block else "none"
            yield f"INT4 weights have blocks of {' or '.join(map(str, INT4_BLOCKS))}; got {told}"
        if block and stored is not None:
            axis = _attribute(node, "axis", 1) % len(stored.dims)
            if axis < len(stored.dims) - 2:
                yield "blocks lie along one of the last two axes"
            if stored.dims[axis] % block:
                yield f"{stored.dims[axis]} numbers are no whole blocks of {block}"

    def _pair(self, node: "onnx.NodeProto") -> Iterator[Finding]:
        others = [x for x in self.readers.get(node.output[0], ()) if x.op_type != _PAIR[1]]
        if others:
            text = f"its output is read by a {others[0].op_type}, and not by DequantizeLinear"
            yield Finding(node.name, True, text)

    def _decoded(self, name: str) -> "onnx.NodeProto | None":
        maker = self.makers.get(name)
        return maker if maker is not None and maker.op_type == _PAIR[1] else None

    def _product(self, node: "onnx.NodeProto") -> Iterator[str]:
        """Where no kernel on quantized numbers can come of a product."""
        read, weight = self._decoded(node.input[0]), self._decoded(node.input[1])
        maker = self.makers.get(node.input[1])
        is_moved = maker is not None and maker.op_type in ("Transpose", "Reshape")
        if maker is not None and is_moved and self._decoded(maker.input[0]) is not None:
            yield f"a {maker.op_type} stands between its weight and DequantizeLinear"
        if weight is None and read is not None:
            yield "its input is quantized and its weight is not: it runs in floating point"
        if weight is None:
            return
        element = self._element(weight)
        if read is None and element != "INT4":
            yield f"its weight is {element} and its input is not: it runs in floating point"
        if read is not None and self._element(read) != element:
            yield f"its input is {self._element(read)} and its weight {element}: no kernel has both"
        if element == "INT4" and node.op_type in ("Conv", "ConvTranspose"):
            yield "INT4 weights are for products of matrices: it runs in floating point"

    def _addition(self, node: "onnx.NodeProto") -> Iterator[str]:
        """A shortcut that is floating point where the convolution beside it ends in integers."""
        # With a constant it is a bias, which a convolution adds in any case.
        added = [x for x in node.input if x not in self.constants]
        products = [self.makers[x] for x in added if x in self.makers]
        convolutions = [x for x in products if x.op_type == "Conv" and self._decoded(x.input[0])]
        decoded = [x for x in added if self._decoded(x) is not None]
        if len(added) > 1 and convolutions and not decoded and self._ends_in_integers(node):
            yield (
                "it adds a shortcut in floating point to a quantized convolution, whose output "
                "stays floating point for it up to the next QuantizeLinear: Q/DQ belongs on the "
                "shortcut"
            )

    def _ends_in_integers(self, node: "onnx.NodeProto") -> bool:
        """Whether some reader, or what stands between, as a ReLU and a mean, is quantized again."""
        waiting, seen = list(node.output), set[str]()
        while waiting:
            name = waiting.pop()
            for reader in self.readers.get(name, ()):
                if reader.op_type == _PAIR[0]:
                    return True
                # A product is another kernel, whatever it ends in.
                if reader.op_type not in _PRODUCTS:
                    waiting += [x for x in reader.output if x not in seen]
            seen.add(name)
        return False


def _attribute(node: "onnx.NodeProto", name: str, default: int) -> int:
    return next((int(x.i) for x in node.attribute if x.name == name), default)


def _numbers(constant: "onnx.TensorProto") -> Any:
    from onnx import numpy_helper

    return np.asarray(numpy_helper.to_array(constant)).astype(np.float32)
