"""Fills the placeholders of a template with layers in their precisions."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mpq.backends.input_grid import input_grid_of
from mpq.backends.onnx.formats import Kernel, kernel_of, rounds_output
from mpq.backends.onnx.graph import CALLS, NOT_TOLD, InputCodes, Writer
from mpq.backends.onnx.layer_nodes import LayerCall
from mpq.backends.onnx.own_layer import OPERATORS, layer_of
from mpq.backends.onnx.template import PLACEHOLDER, GraphTemplate
from mpq.network.tracing import kind_of
from mpq.quantization.formats import NUMBER_FORMATS
from mpq.quantization.grid import make_grid
from mpq.quantization.precision import ORIGINAL, Precision
from mpq.quantization.quantizer import Quantizer

if TYPE_CHECKING:
    import onnx

# What torch's exporter writes. onnx's own default is the newest, which runtimes may not read yet.
OPSET, IR_VERSION = 20, 10


@final
@dataclass(frozen=True)
class Placeholder:
    """One call of a layer.

    Args:
        layer: Name of the layer that is called.
        x: Name of the tensor that the call reads.
        y: Name of the tensor that the call writes.
        tail: What the network reads of it: the output, or that of the ReLU that alone reads it.
        is_rectified: Whether the tail is a ReLU's.
    """

    layer: str
    x: str
    y: str
    tail: str
    is_rectified: bool


def placeholders_of(graph: "onnx.GraphProto") -> tuple[Placeholder, ...]:
    """The placeholders of a template's graph, in order."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    ends = {value.name for value in graph.output}
    found = []
    for node in graph.node:
        if node.op_type != PLACEHOLDER:
            continue
        y = node.output[0]
        reading = readers.get(y, [])
        # Any other reader needs the output before the ReLU, and rounding would come after it.
        is_rectified = y not in ends and len(reading) == 1 and reading[0].op_type == "Relu"
        tail = reading[0].output[0] if is_rectified else y
        found.append(
            Placeholder(node.attribute[0].s.decode(), node.input[0], y, tail, is_rectified)
        )
    return tuple(found)


def fill(
    template: GraphTemplate,
    precisions: Mapping[str, Precision],
    quantizer: Quantizer,
    graph: "onnx.ModelProto | None" = None,
) -> "onnx.ModelProto":
    """The whole graph, every layer in its precision.

    A tensor that an int8 layer reads is rounded once for all such readers with the same range. An
    int8 convolution needs an output of integers too: the range of whoever reads it as int8, else
    the one seen over the calibration examples. There it deviates from the simulation, whose layers
    leave floats.

    Args:
        template: The network's graph with a placeholder for every call of a layer.
        precisions: Layer name to the precision that it is written in.
        quantizer: Knows the scales of weights and the ranges of activations.
        graph: Another graph with placeholders of the same layers; default: the template's own.

    Raises:
        PrecisionError: If there is no kernel for a layer at its precision.
        ModelError: If ONNX has no such layer, or an int8 layer's range was not calibrated.
    """
    from onnx import ModelProto

    # A copy, as one template is filled again and again.
    filled = ModelProto()
    filled.CopyFrom(template.graph if graph is None else graph)
    calls = _Filling(template, precisions, quantizer).run(filled.graph)
    filled.metadata_props.add(key=CALLS, value=json.dumps(calls))
    return stamp(filled)


@final
@dataclass(eq=False)
class _Filling:
    template: GraphTemplate
    precisions: Mapping[str, Precision]
    quantizer: Quantizer
    writer: Writer = field(default_factory=Writer)
    rounded: dict[tuple[str, InputCodes], str] = field(
        default_factory=dict
    )  # tensor, codes -> name
    calls: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def run(self, graph: "onnx.GraphProto") -> dict[str, list[tuple[str, str]]]:
        """Changes the graph; layer name to what each call reads, rounded, and what it gives."""
        placeholders = {placeholder.y: placeholder for placeholder in placeholders_of(graph)}
        tails = {placeholder.tail: placeholder for placeholder in placeholders.values()}
        # From behind, so that of several readers the first one's codes are left in the dict.
        integer_readers = {
            reader.x: self.input_codes(reader)
            for reader in reversed(list(placeholders.values()))
            if self.is_integer(reader)
        }
        renamed: dict[str, str] = {}
        for node in graph.node:
            placeholder = placeholders.get(node.output[0]) if node.op_type == PLACEHOLDER else None
            if node.op_type in OPERATORS:
                self.as_it_is(node, renamed)
            elif placeholder is None:
                self.copy(node, renamed)
            else:
                self.placeholder(placeholder, renamed.get(placeholder.x, placeholder.x))
            made = tails.get(node.output[0])
            if made is not None and self.needs_integer_output(made):
                # In its reader's codes, so that no second rounding lies between the two.
                codes = integer_readers.get(made.tail) or self.output_codes(made)
                # After the ReLU, which ONNX Runtime then drops: codes from 0 clip negative numbers.
                renamed[made.tail] = self.round(made.tail, codes)
        # At once at the end, as the loop above runs over the nodes.
        del graph.node[:]
        graph.node.extend(self.writer.nodes)
        graph.initializer.extend(self.writer.constants)
        # Assignments differ in what is rounded, but every file is read by the same output name.
        swapped = {v.name: renamed[v.name] for v in graph.output if v.name in renamed}
        names = _swap_names(graph, swapped)
        return {
            layer: [(names.get(x, x), names.get(y, y)) for x, y in ends]
            for layer, ends in self.calls.items()
        }

    def copy(self, node: "onnx.NodeProto", renamed: Mapping[str, str]) -> None:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        self.writer.nodes.append(node)

    def as_it_is(self, node: "onnx.NodeProto", renamed: Mapping[str, str]) -> None:
        """The input or weight of a layer with a forward of its own, which is not rounded here."""
        assert self.precisions[layer_of(node)] == ORIGINAL  # by `refuse_own_forwards`
        x = renamed.get(node.input[0], node.input[0])
        self.writer.node("Identity", [x], node.output[0])

    def placeholder(self, placeholder: Placeholder, x: str) -> None:
        layer_module = self.template.network.layer_module(placeholder.layer)
        codes = self.input_codes(placeholder) if self.is_integer(placeholder) else None
        if codes is not None:
            x = self.round(x, codes)
        call = LayerCall(
            placeholder.layer,
            layer_module,
            self.precisions[placeholder.layer],
            self.quantizer,
            x,
            placeholder.y,
            codes,
        )
        call.write(self.writer)
        reads_ids = isinstance(layer_module, nn.Embedding)
        ends = (NOT_TOLD if reads_ids else x, placeholder.y)
        self.calls.setdefault(placeholder.layer, []).append(ends)

    def round(self, x: str, codes: InputCodes) -> str:
        """The tensor after rounding; a tensor that was rounded so already is taken as it is."""
        # A convolution's output already has its reader's codes.
        if x in (name for (_, known), name in self.rounded.items() if known == codes):
            return x
        if (x, codes) not in self.rounded:
            integers = self.writer.quantize(x, codes)
            self.rounded[x, codes] = self.writer.dequantize(integers, codes)
        return self.rounded[x, codes]

    def kernel(self, placeholder: Placeholder) -> Kernel | None:
        kind = kind_of(self.template.network.layer_module(placeholder.layer))
        return None if kind is None else kernel_of(kind, self.precisions[placeholder.layer])

    def is_integer(self, placeholder: Placeholder) -> bool:
        return self.kernel(placeholder) is Kernel.QDQ

    def needs_integer_output(self, placeholder: Placeholder) -> bool:
        kind = kind_of(self.template.network.layer_module(placeholder.layer))
        return kind is not None and rounds_output(kind, self.precisions[placeholder.layer])

    def input_codes(self, placeholder: Placeholder) -> InputCodes:
        activation = self.precisions[placeholder.layer].activation
        return InputCodes.of(input_grid_of(self.quantizer, placeholder.layer, activation))

    def output_codes(self, placeholder: Placeholder) -> InputCodes:
        low, high = self.template.output_ranges[placeholder.layer]
        # The range was seen before the ReLU: below 0 all codes would be wasted.
        low = max(low, 0.0) if placeholder.is_rectified else low
        ends = torch.tensor([low]), torch.tensor([high])
        # Not symmetric, as outputs seldom lie around 0: a ReLU's would waste half of the codes.
        return InputCodes.of(make_grid(NUMBER_FORMATS["int8"], False, *ends))


def _swap_names(graph: "onnx.GraphProto", rounded: Mapping[str, str]) -> dict[str, str]:
    """Lets rounded outputs of the graph keep their names; what is rounded takes the new ones.

    Returns:
        Name before to name after, of those that changed.
    """
    names = {**rounded, **{new: old for old, new in rounded.items()}}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    return names


def idle_graph() -> tuple["onnx.ModelProto", list[npt.NDArray[np.float32]]]:
    """A graph that hands one number through, and its input."""
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 1)) for name in ("x", "y")]
    # The least work there is: what remains of its time is the runtime's own.
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "idle", ends[:1], ends[1:])
    return stamp(helper.make_model(graph)), [np.zeros((1, 1), dtype=np.float32)]


def stamp(
    model: "onnx.ModelProto", opset: int = OPSET, ir_version: int = IR_VERSION
) -> "onnx.ModelProto":
    """The model, marked with the versions that its operators need."""
    from onnx import helper

    del model.opset_import[:]
    model.opset_import.extend(
        # Placeholders are gone, and so is their domain; MatMulNBits is in Microsoft's.
        [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    )
    model.ir_version = ir_version
    model.producer_name = "mpq"
    return model
