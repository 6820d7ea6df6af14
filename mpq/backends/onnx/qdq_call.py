"""One call of a layer in standard operators, on a weight that ``DequantizeLinear`` decodes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
from torch import Tensor, nn

from mpq.backends.input_grid import input_grid_of
from mpq.backends.onnx.containers import INTEGER_BITS, Container, container_of
from mpq.backends.onnx.graph import InputCodes, Writer
from mpq.backends.onnx.layer_nodes import convolution_attributes, write_sum
from mpq.backends.onnx.own_layer import INPUT, OUTPUT
from mpq.network.modules import weight_of
from mpq.network.tracing import kind_of
from mpq.network.weight_layout import CHANNEL_FIRST, layout_of
from mpq.quantization.codes import Codes
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.tensor_format import Granularity, TensorFormat

if TYPE_CHECKING:
    import onnx

FLOAT: Final = 1
"""ONNX's number of float32."""


@final
@dataclass(frozen=True)
class WrittenWeight:
    """Where a file has a layer's weight, decoded.

    Args:
        tensor: Its name in the graph.
        has_rows: Whether output channels are its first axis; else it is a matrix ``[K, O]``.
        container: Element type of its codes.
        codes: The constant that holds them.
    """

    tensor: str
    has_rows: bool
    container: Container
    codes: str = ""


@final
@dataclass(eq=False)
class QdqWriter:
    """Writes layers in their precisions; what is read or stored twice is written once.

    Args:
        writer: Collects nodes and constants.
        quantizer: Gives codes and ranges.
        narrowest: Bits that an integer code takes at least.
        weights: Layer name to where its decoded weight is.
    """

    writer: Writer
    quantizer: Quantizer
    narrowest: int = 2
    weights: dict[str, WrittenWeight] = field(default_factory=dict)
    _decoded: dict[tuple[int, TensorFormat, bool], WrittenWeight] = field(default_factory=dict)
    _rounded: dict[tuple[str, object], str] = field(default_factory=dict)

    def call(
        self, name: str, module: nn.Module, precision: Precision, x: str, y: str, rank: int
    ) -> None:
        """A layer's nodes, from the tensor ``x`` to the tensor ``y``.

        Args:
            name: The layer's.
            module: Its module, which holds the original weight.
            precision: A layer that does not stay as it came.
            x: Float, or ids of an embedding.
            y: Float.
            rank: How many axes ``x`` has.
        """
        kind = kind_of(module)
        assert kind is not None
        if kind == "embedding":
            self.writer.node("Gather", [self._weight(name, module, precision, True), x], y)
            return
        x = self._input(name, precision.activation, x)
        bias = getattr(module, "bias", None)
        biases = []
        if bias is not None:
            # With as many axes as the product: a list would let ONNX Runtime 1.32 fuse products of
            # tokens with it, and lose the zero point of their int8 inputs on the way.
            axes = rank if kind == "linear" else 1
            numbers = bias.detach().float().reshape(*[1] * (axes - 1), -1)
            biases = [self.writer.constant("bias", numbers)]
        weight = self._weight(name, module, precision, has_rows=kind != "linear")
        if kind == "linear":
            write_sum(self.writer, [x, weight], biases[0] if biases else None, y)
            return
        attributes = convolution_attributes(name, module)
        self.writer.node("Conv", [x, weight, *biases], y, attributes)

    def operand(self, name: str, precision: Precision, x: str, y: str) -> None:
        """What an operation between layers reads, rounded where the operation reads it.

        Args:
            name: The operand's.
            precision: Any that the target takes.
            x: Float.
            y: Float, which the operation reads.
        """
        self.writer.node("Identity", [self._input(name, precision.activation, x)], y)

    def own(
        self, name: str, module: nn.Module, precision: Precision, node: "onnx.NodeProto"
    ) -> None:
        """What stands for a placeholder of a layer whose forward is its own.

        Args:
            name: The layer's.
            module: Its module, which holds the original weight.
            precision: Any that the target takes.
            node: The placeholder.
        """
        if node.op_type == INPUT:
            x = self._input(name, precision.activation, node.input[0])
        elif node.op_type == OUTPUT or precision.weight.is_exact:
            x = node.input[0]  # a weight as it came, whatever its kind
        else:
            # As torch has it: output channels first, but in Hugging Face's Conv1D.
            x = self._weight(name, module, precision, layout_of(module) == CHANNEL_FIRST)
        self.writer.node("Identity", [x], node.output[0])

    def _weight(self, name: str, module: nn.Module, precision: Precision, has_rows: bool) -> str:
        """The tensor of a weight, of those that share a parameter the same codes."""
        shared = (id(weight_of(module)), precision.weight)
        found = self._decoded.get((*shared, has_rows))
        if found is None:
            other = self._decoded.get((*shared, not has_rows))
            if other is None:
                found = self._write_weight(name, module, precision.weight, has_rows)
            else:
                turned = self.writer.node("Transpose", [other.tensor], attributes={"perm": [1, 0]})
                found = WrittenWeight(turned, has_rows, other.container, other.codes)
            self._decoded[*shared, has_rows] = found
        if not precision.weight.is_exact:
            self.weights[name] = found
        return found.tensor

    def _write_weight(
        self, name: str, module: nn.Module, tensor_format: TensorFormat, has_rows: bool
    ) -> WrittenWeight:
        layout, original = layout_of(module), weight_of(module).detach()
        rows = layout.to_rows(original)
        shape = tuple(original.shape) if has_rows else (rows.shape[1], len(rows))
        container = container_of(tensor_format, kind_of(module) or "", len(rows), self.narrowest)
        assert container is not None  # `OnnxQdq.refusal`
        if not tensor_format.number.needs_scale:
            numbers = layout.to_rows(self.quantizer.weight(name, module, tensor_format))
            values = numbers.reshape(shape) if has_rows else numbers.t()
            tensor = stored = self._constant(container, "weight", values)
            if not tensor_format.is_exact:
                tensor = self.writer.node("Cast", [tensor], attributes={"to": FLOAT})
            return WrittenWeight(tensor, has_rows, container, stored)
        codes = self.quantizer.codes(name, module, tensor_format)
        if not tensor_format.number.is_float:
            # Some tools read positive scales alone, as TensorRT. In the bits that codes of the
            # format are stored in, as what is 2 bits may come to lie in 4 on the way alone.
            codes = codes.turned(INTEGER_BITS[tensor_format.number.bits])
        tensor, stored = self._dequantized(codes, container, shape, has_rows)
        return WrittenWeight(tensor, has_rows, container, stored)

    def _dequantized(
        self, codes: Codes, container: Container, shape: tuple[int, ...], has_rows: bool
    ) -> tuple[str, str]:
        """The tensor of the decoded weight, and the constant of its codes."""
        block, rank = _block(codes, container, has_rows), len(shape)
        stored = codes.codes[:, : codes.num_inputs]
        if not codes.tensor_format.number.is_float:
            stored = codes.integers()
        # A convolution's groups lie along its rows, which a kernel's axes cut into pieces.
        as_rows = has_rows and block is not None
        stored = stored if as_rows else stored.reshape(shape) if has_rows else stored.t()
        grid = self._grid(codes, container, has_rows, block is not None)
        attributes: dict[str, Any] = {}
        if block is not None:
            attributes = {"axis": int(has_rows), "block_size": block}
        elif codes.tensor_format.granularity is Granularity.CHANNEL:
            attributes = {"axis": int(not has_rows)}
        constant = self._constant(container, "codes", stored)
        decoded = self.writer.node("DequantizeLinear", [constant, *grid], attributes=attributes)
        if as_rows and rank > 2:
            to = self.writer.constant("shape", np.array(shape, dtype=np.int64))
            decoded = self.writer.node("Reshape", [decoded, to])
        return decoded, constant

    def _grid(
        self, codes: Codes, container: Container, has_rows: bool, is_blocked: bool
    ) -> list[str]:
        """Scales, and zero points where there are any, as ``DequantizeLinear`` takes them."""
        scale, point = codes.scale, codes.zero_point
        granularity = codes.tensor_format.granularity
        if is_blocked and not has_rows:
            scale, point = scale.t(), point.t()
        elif granularity is Granularity.TENSOR:
            scale, point = scale[0, 0], point[0, 0]
        elif not is_blocked:
            scale, point = scale[:, 0], point[:, 0]
        if granularity is Granularity.GROUP and self.quantizer.numerics.group_scale == "fp16":
            half = self._constant(Container("FLOAT16", 16), "scale", scale)
            # A scale's type is that of the numbers: from fp16 ones they would be rounded to fp16.
            scales = self.writer.node("Cast", [half], attributes={"to": FLOAT})
        else:
            scales = self.writer.constant("scale", scale)
        if codes.tensor_format.symmetric:
            return [scales]
        return [scales, self._constant(container, "zero_point", point)]

    def _constant(self, container: Container, stem: str, values: Tensor) -> str:
        name = self.writer.fresh(stem)
        self.writer.constants.append(container.tensor(name, values))
        return name

    def _input(self, name: str, tensor_format: TensorFormat, x: str) -> str:
        """A layer's input as it is after storing it; readers of one tensor share it."""
        if tensor_format.is_exact:
            return x
        number = tensor_format.number
        if not number.needs_scale:
            return self._once(x, number.name, lambda: self._cast(x, tensor_format))
        codes = InputCodes.of(input_grid_of(self.quantizer, name, tensor_format))
        if number.is_float:
            key = (number.name, codes.scale)
            return self._once(x, key, lambda: self._through_float8(x, tensor_format, codes.scale))
        return self._once(
            x, codes, lambda: self.writer.dequantize(self.writer.quantize(x, codes), codes)
        )

    def _once(self, x: str, key: object, write: Any) -> str:
        if (x, key) not in self._rounded:
            self._rounded[x, key] = write()
        return self._rounded[x, key]

    def _cast(self, x: str, tensor_format: TensorFormat) -> str:
        from onnx import TensorProto

        # Larger numbers are the format's largest one here, and infinity to a cast.
        end = np.float32(tensor_format.number.max_value)
        ends = [self.writer.constant("end", np.array(value)) for value in (-end, end)]
        cut = self.writer.node("Clip", [x, *ends])
        to = getattr(TensorProto, container_name(tensor_format))
        half = self.writer.node("Cast", [cut], attributes={"to": to})
        return self.writer.node("Cast", [half], attributes={"to": FLOAT})

    def _through_float8(self, x: str, tensor_format: TensorFormat, scale: float) -> str:
        from onnx import TensorProto

        grid = [self.writer.constant("scale", np.array(scale, dtype=np.float32))]
        # Named and not by a zero point, whose 0 ONNX Runtime 1.32 takes for the lowest code: it
        # would drop a ReLU before it.
        to = getattr(TensorProto, container_name(tensor_format))
        codes = self.writer.node("QuantizeLinear", [x, *grid], attributes={"output_dtype": to})
        return self.writer.node("DequantizeLinear", [codes, *grid])


def _block(codes: Codes, container: Container, has_rows: bool) -> int | None:
    """Codes that share a scale along an axis; ``None``: whole channels, or the whole tensor."""
    tensor_format = codes.tensor_format
    if tensor_format.granularity is Granularity.CHANNEL:
        # ONNX Runtime 1.32 cannot load the transpose of a table of 2-bit codes whose zero points
        # are a list, and can where they are a matrix: a row is one block.
        is_table = has_rows and container.bits == 2 and not tensor_format.symmetric
        return codes.num_inputs if is_table else None
    return tensor_format.group_size


def container_name(tensor_format: TensorFormat) -> str:
    """Element type of a floating-point format that inputs are rounded to."""
    found = container_of(tensor_format, "", 0)
    assert found is not None
    return found.name


def weights_json(weights: Mapping[str, WrittenWeight]) -> dict[str, Any]:
    """Layer name to where its decoded weight is, JSON-ready."""
    return {
        name: {
            "tensor": x.tensor,
            "has_rows": x.has_rows,
            "container": x.container.name,
            "codes": x.codes,
        }
        for name, x in weights.items()
    }
