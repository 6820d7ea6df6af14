"""Fills the open places of a skeleton with layers in their precisions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

import numpy as np
import numpy.typing as npt
import torch

from mpq.backends.onnx.formats import Kernel, kernel_of, rounds_output
from mpq.backends.onnx.graph import Codes, Writer
from mpq.backends.onnx.layer_nodes import LayerCall
from mpq.backends.onnx.template import PLACE, Skeleton
from mpq.errors import ModelError
from mpq.network.tracing import kind_of
from mpq.quantization.formats import NUMBER_FORMATS
from mpq.quantization.grid import make_grid
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.rounding import static_grid

if TYPE_CHECKING:
    import onnx

OPSET, IR_VERSION = 20, 10


@final
@dataclass(frozen=True)
class Place:
    """One call of a layer.

    Args:
        layer: Its name.
        x: Name of its input.
        y: Name of its output.
        tail: What the network reads of it: the output, or that of the ReLU that alone reads it.
        is_rectified: Whether the tail is a ReLU's.
    """

    layer: str
    x: str
    y: str
    tail: str
    is_rectified: bool


def places_of(graph: "onnx.GraphProto") -> tuple[Place, ...]:
    """The open places of a skeleton's graph, in order."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    ends = {value.name for value in graph.output}
    found = []
    for node in graph.node:
        if node.op_type != PLACE:
            continue
        y = node.output[0]
        reading = readers.get(y, [])
        is_rectified = y not in ends and len(reading) == 1 and reading[0].op_type == "Relu"
        tail = reading[0].output[0] if is_rectified else y
        found.append(Place(node.attribute[0].s.decode(), node.input[0], y, tail, is_rectified))
    return tuple(found)


def fill(
    skeleton: Skeleton,
    precisions: Mapping[str, Precision],
    quantizer: Quantizer,
    graph: "onnx.ModelProto | None" = None,
) -> "onnx.ModelProto":
    """The whole graph, every layer in its precision.

    A tensor that an int8 layer reads is rounded once for all such readers with the same range. An
    int8 convolution needs an output of integers too: the range of whoever reads it as int8, else
    the one seen over the calibration examples. There it departs from the simulation, whose layers
    leave floats.

    Args:
        skeleton: The network with open places.
        precisions: Layer name to the precision that it is written in.
        quantizer: Knows the scales of weights and the ranges of activations.
        graph: Another graph with places of the same layers; default: the skeleton's own.

    Raises:
        PrecisionError: If there is no kernel for a layer at its precision.
        ModelError: If ONNX has no such layer, or an int8 layer's range was not calibrated.
    """
    from onnx import ModelProto

    filled = ModelProto()
    filled.CopyFrom(skeleton.graph if graph is None else graph)
    _Filling(skeleton, precisions, quantizer).run(filled.graph)
    return stamp(filled)


@final
@dataclass(eq=False)
class _Filling:
    skeleton: Skeleton
    precisions: Mapping[str, Precision]
    quantizer: Quantizer
    writer: Writer = field(default_factory=Writer)
    rounded: dict[tuple[str, Codes], str] = field(default_factory=dict)  # tensor, codes -> name

    def run(self, graph: "onnx.GraphProto") -> None:
        places = {place.y: place for place in places_of(graph)}
        tails = {place.tail: place for place in places.values()}
        integer_readers = {
            place.x: self.input_codes(place) for place in reversed(list(places.values()))
            if self.is_integer(place)
        }  # fmt: skip
        renamed: dict[str, str] = {}
        for node in graph.node:
            place = places.get(node.output[0]) if node.op_type == PLACE else None
            if place is None:
                self.copy(node, renamed)
            else:
                self.place(place, renamed.get(place.x, place.x))
            made = tails.get(node.output[0])
            if made is not None and self.needs_integer_output(made):
                codes = integer_readers.get(made.tail) or self.output_codes(made)
                renamed[made.tail] = self.round(made.tail, codes)
        del graph.node[:]
        graph.node.extend(self.writer.nodes)
        graph.initializer.extend(self.writer.constants)
        _swap_names(graph, {v.name: renamed[v.name] for v in graph.output if v.name in renamed})

    def copy(self, node: "onnx.NodeProto", renamed: Mapping[str, str]) -> None:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        self.writer.nodes.append(node)

    def place(self, place: Place, x: str) -> None:
        layer_module = self.skeleton.network.layer_module(place.layer)
        codes = self.input_codes(place) if self.is_integer(place) else None
        if codes is not None:
            x = self.round(x, codes)
        call = LayerCall(
            place.layer,
            layer_module,
            self.precisions[place.layer],
            self.quantizer,
            x,
            place.y,
            codes,
        )
        call.write(self.writer)

    def round(self, x: str, codes: Codes) -> str:
        """The tensor after rounding; a tensor that was rounded so already is taken as it is."""
        if x in (name for (_, known), name in self.rounded.items() if known == codes):
            return x
        if (x, codes) not in self.rounded:
            integers = self.writer.quantize(x, codes)
            self.rounded[x, codes] = self.writer.dequantize(integers, codes)
        return self.rounded[x, codes]

    def kernel(self, place: Place) -> Kernel | None:
        kind = kind_of(self.skeleton.network.layer_module(place.layer))
        return None if kind is None else kernel_of(kind, self.precisions[place.layer])

    def is_integer(self, place: Place) -> bool:
        return self.kernel(place) is Kernel.QDQ

    def needs_integer_output(self, place: Place) -> bool:
        kind = kind_of(self.skeleton.network.layer_module(place.layer))
        return kind is not None and rounds_output(kind, self.precisions[place.layer])

    def input_codes(self, place: Place) -> Codes:
        activation = self.precisions[place.layer].activation
        calibrated = self.quantizer.ranges.of(place.layer, activation)
        if calibrated is None:
            raise ModelError(f"layer {place.layer!r} has no calibrated activation range")
        return Codes.of(static_grid(activation, calibrated, torch.device("cpu")))

    def output_codes(self, place: Place) -> Codes:
        low, high = self.skeleton.output_ranges[place.layer]
        low = max(low, 0.0) if place.is_rectified else low
        ends = torch.tensor([low]), torch.tensor([high])
        return Codes.of(make_grid(NUMBER_FORMATS["int8"], False, *ends))


def _swap_names(graph: "onnx.GraphProto", rounded: Mapping[str, str]) -> None:
    """Lets rounded outputs of the graph keep their names; what is rounded takes the new ones."""
    names = {**rounded, **{new: old for old, new in rounded.items()}}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def idle_graph() -> tuple["onnx.ModelProto", list[npt.NDArray[np.float32]]]:
    """A graph that hands one number through, and its input."""
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 1)) for name in ("x", "y")]
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "idle", ends[:1], ends[1:])
    return stamp(helper.make_model(graph)), [np.zeros((1, 1), dtype=np.float32)]


def stamp(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The model, marked with the versions that its operators need."""
    from onnx import helper

    del model.opset_import[:]
    model.opset_import.extend(
        [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    )
    model.ir_version = IR_VERSION
    model.producer_name = "mpq"
    return model
