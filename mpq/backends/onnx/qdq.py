"""Standard ONNX: one file for ONNX Runtime and OpenVINO, with codes that any reader decodes."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, final

from torch import nn

from mpq.backends._base import HELD
from mpq.backends.onnx.containers import INTEGER_BITS, Container, container_of
from mpq.backends.onnx.exportable import exportable
from mpq.backends.onnx.fidelity import check_same, refuse_other_readers
from mpq.backends.onnx.graph import CALLS, Writer
from mpq.backends.onnx.instantiate import placeholders_of, stamp
from mpq.backends.onnx.layer_nodes import LayerCall
from mpq.backends.onnx.layer_tensors import calls_of
from mpq.backends.onnx.loaded import (
    LAYERS,
    SETTINGS,
    LoadedByOnnxRuntime,
    message_bytes,
    stored_settings,
)
from mpq.backends.onnx.own_layer import OPERATORS, layer_of
from mpq.backends.onnx.qdq_call import QdqWriter, weights_json
from mpq.backends.onnx.session import AS_WRITTEN, FLOAT_PRODUCTS
from mpq.backends.onnx.template import GraphTemplate, check_batch_size, require_onnx
from mpq.backends.runtime import Loaded
from mpq.backends.searched import Searched
from mpq.backends.target import (
    HEADERS,
    MEDIAN_OF_ROUNDED,
    LayerShape,
    Shipped,
    Target,
    rows_of,
)
from mpq.errors import ModelError
from mpq.network.examples import Batch, Calibration
from mpq.network.layer import OPERANDS
from mpq.network.network import Network
from mpq.network.tracing import kind_of
from mpq.problem.assignment import Assignment
from mpq.quantization.numerics import Numerics
from mpq.quantization.precision import Precision
from mpq.quantization.scale_formats import SCALE_FORMATS
from mpq.quantization.tensor_format import Granularity, TensorFormat

if TYPE_CHECKING:
    import onnx

FILE: Final = "network.onnx"
SETTINGS_FILE: Final = "onnxruntime-settings.txt"
LARGEST: Final = 2**31 - 1
"""Bytes of the largest message that protobuf writes."""
INPUTS: Final = ("int8", "int16", "fp8_e4m3", "fp16", "bf16", "fp32")
"""Number formats that an input is rounded to."""
_KINDS: Final = ("linear", "conv1d", "conv2d", "conv3d", "embedding")


@final
@dataclass(frozen=True)
class OnnxQdq(Target):
    """A file whose weights are codes behind ``DequantizeLinear``, in the operators of the standard.

    Layers compute in floating point on the decoded numbers, and inputs are rounded by
    ``QuantizeLinear`` and ``DequantizeLinear``: what a runtime makes of these patterns is its own
    matter. The backend ``onnx`` writes the kernels of ONNX Runtime that ``mpq profile`` times,
    whose convolutions round their outputs.

    Args:
        batch_size: Examples of one run; all shapes are fixed to those of the first example.
    """

    name: ClassVar[str] = "onnx-qdq"
    summary: ClassVar[str] = "one ONNX file of standard operators, equal to the simulation"
    extra: ClassVar[str] = "onnx"
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")
    readers: ClassVar[str] = "ONNX Runtime, OpenVINO"
    holds: ClassVar[str] = (
        "linear layers, convolutions and embeddings: w2 to w8, w2z to w8z per tensor, channel or "
        "group, fp8, fp16, bf16; inputs in floating point, a16, bf16, and static a8, a8s, aint16, "
        "aint16s and fp8; all else as it came"
    )
    candidates: ClassVar[tuple[str, ...]] = ("w2g32", "w2", "w4g32", "w4g128", "w4", "w8")
    operands: ClassVar[str] = HELD
    numerics: ClassVar[Numerics] = Numerics(input_rounding="rounded-quotient")
    # Sums in another order fall to either side of an int8 code.
    judged: ClassVar[str] = MEDIAN_OF_ROUNDED
    needs_float32: ClassVar[bool] = True
    weight_suffixes: ClassVar[tuple[str, ...]] = (".onnx",)
    notes: ClassVar[tuple[str, ...]] = (
        f"ONNX Runtime equals the simulation with the settings in {SETTINGS_FILE}. As it comes, it "
        "rounds the inputs of linear layers with 2, 4 and 8-bit weights to int8; both differences "
        "are in export.json.",
        "w3 is stored in 4 bits, w5, w6 and w7 in 8. A 2-bit matrix whose outputs are no multiple "
        "of 4 is stored in 4 bits: ONNX Runtime 1.32 multiplies with it wrongly, without a word.",
        "OpenVINO reads no 2-bit types from ONNX: the target openvino writes its own files.",
        "Integers of 16 bits (opset 21) OpenVINO 2026.4 leaves out: inputs stay floating point.",
        "Shapes and batch size are fixed to those of the examples.",
        "Embeddings are decoded as a whole in every run.",
    )

    batch_size: int = 1

    def traced_batch(self, batches: Sequence[Batch]) -> Batch:
        """See ``Target.traced_batch``: the examples of one run."""
        return batches[0].slice(0, self.batch_size)

    def refusal(self, layer: LayerShape, precision: Precision) -> str:
        """See ``Target.refusal``."""
        if layer.kind not in _KINDS:
            return f"it holds no layers of the kind {layer.kind} in fewer bits"
        return (
            self._weight_refusal(layer, precision.weight)
            or self._input_refusal(precision)
            or self._pair_refusal(layer, precision)
        )

    def _weight_refusal(self, layer: LayerShape, weight: TensorFormat) -> str:
        if self._container(layer, weight) is None:
            return f"it has no element type for {weight.number.name}"
        if weight.number.is_float and weight.granularity is Granularity.GROUP:
            return "it holds floating-point weights per tensor or channel"
        return ""

    def _input_refusal(self, precision: Precision) -> str:
        read = precision.activation
        if read.granularity is Granularity.TOKEN:
            return "its inputs have one scale that is known beforehand, and none per token"
        if read.number.name not in INPUTS:
            return f"it rounds no inputs to {read.number.name}: a8, a8s, aint16, fp8, a16"
        return ""

    def _pair_refusal(self, layer: LayerShape, precision: Precision) -> str:
        container = self._container(layer, precision.weight)
        is_grouped = precision.weight.granularity is Granularity.GROUP
        reads = precision.activation.number.name
        is_pair = layer.kind == "linear" and is_grouped and reads == "int8"
        if is_pair and container is not None and container.bits == 8:
            return "ONNX Runtime 1.32 breaks down on groups in 8 bits with int8 inputs"
        return ""

    def operand_refusal(self, precision: Precision) -> str:
        """See ``Backend.operand_refusal``: between ``QuantizeLinear`` and ``DequantizeLinear``."""
        return self._input_refusal(precision)

    def module_refusal(self, module: nn.Module | None) -> str:  # noqa: ARG002
        """See ``Target.module_refusal``: what is traced has a place, whatever its module."""
        return ""

    @staticmethod
    def _container(layer: LayerShape, weight: TensorFormat) -> Container | None:
        return container_of(weight, layer.kind, rows_of(layer)[0])

    def stored_bits(self, layer: LayerShape, precision: Precision) -> int:
        """See ``Target.stored_bits``; with the scale and zero point of a static input."""
        container = self._container(layer, precision.weight)
        assert container is not None
        return written_bits(layer, precision, container, self.numerics)

    def stored_kind(self, layer: LayerShape, precision: Precision) -> str:
        """See ``Target.stored_kind``."""
        container = self._container(layer, precision.weight)
        assert container is not None
        return container.name

    def header_bytes(self, folder: Path) -> int:
        """See ``Target.header_bytes``: nodes and names of the graph as well."""
        return HEADERS + message_bytes(folder / FILE)

    def check_graph(self, searched: Searched) -> None:
        """See ``Traces.check_graph``."""
        check_standard_graph(searched, self.batch_size)

    def write(self, shipped: Shipped, folder: Path) -> None:
        """See ``Target.write``."""
        graph = standard_graph(shipped, self.batch_size, self.name)
        (folder / FILE).write_bytes(graph.SerializeToString())
        text = settings_text(settings_for(shipped.assignment))
        (folder / SETTINGS_FILE).write_text(text, encoding="utf-8")

    def load(self, folder: Path) -> Loaded:
        """See ``Target.load``."""
        return LoadedByOnnxRuntime.of(folder / FILE)

    def load_otherwise(self, folder: Path) -> Mapping[str, Callable[[], Loaded]]:
        """See ``Target.load_otherwise``: without any setting, and with int8 products."""
        load = partial(LoadedByOnnxRuntime.of, folder / FILE)
        found: dict[str, Callable[[], Loaded]] = {
            "ONNX Runtime without settings": partial(load, {})
        }
        if stored_settings(folder / FILE) != AS_WRITTEN:
            found["ONNX Runtime with int8 products"] = partial(load, AS_WRITTEN)
        return found


def settings_for(assignment: Assignment) -> dict[str, str]:
    """A session's settings under which ONNX Runtime computes what the simulation does."""
    has_products = any(
        x.precision.activation.number.name == "int8"
        and INTEGER_BITS.get(x.precision.weight.number.bits) == 8
        and x.kind != "embedding"
        for x in assignment.layers
    )
    return {**AS_WRITTEN, **(FLOAT_PRODUCTS if has_products else {})}


def written_bits(
    layer: LayerShape, precision: Precision, container: Container, numerics: Numerics
) -> int:
    """Bits of a layer's codes, scales and zero points, and of a static input's two numbers."""
    num_channels, num_inputs = rows_of(layer)
    weight = precision.weight
    is_group = weight.granularity is Granularity.GROUP
    count = weight.num_scales(num_channels * num_inputs, num_channels)
    total = _whole_bytes(num_channels * num_inputs * container.bits)
    total += count * SCALE_FORMATS[numerics.group_scale if is_group else numerics.scale].bits
    # A zero point takes as many bits as a code.
    total += 0 if weight.symmetric else _whole_bytes(count * container.bits)
    read = precision.activation
    is_static = read.granularity is Granularity.TENSOR and layer.kind != "embedding"
    # A scale, and a zero point which is a code, also where it is 0.
    return total + (32 + read.number.bits if is_static else 0)


def _whole_bytes(bits: int) -> int:
    return -(-bits // 8) * 8


def standard_graph(
    shipped: Shipped, batch_size: int, tool: str, narrowest: int = 2
) -> "onnx.ModelProto":
    """The network in standard operators, every layer in its precision.

    Args:
        shipped: With examples, on which the network is traced.
        batch_size: Examples of one run.
        tool: Who asks, for messages.
        narrowest: Bits that an integer code takes at least.

    Raises:
        ModelError: If torch cannot export the network, the graph in fp32 is another network, or
            the file would be larger than protobuf's messages are.
        MissingDependencyError: If a package is missing.
    """
    require_onnx()
    check_batch_size(batch_size)
    data = Calibration(shipped.examples)
    network = exportable(shipped.model, shipped.assignment, data, with_own=True)
    shipped.check_shared(tool)
    template = _traced(network, data, batch_size)
    writer = QdqWriter(Writer(), shipped.quantizer, narrowest)
    graph = filled_graph(template, shipped.assignment.precisions, writer)
    told = {
        LAYERS: weights_json(writer.weights),
        CALLS: calls_of(template),
        SETTINGS: settings_for(shipped.assignment),
    }
    for key, value in told.items():
        graph.metadata_props.add(key=key, value=json.dumps(value))
    if graph.ByteSize() > LARGEST:
        raise ModelError(f"{tool}: a file of ONNX has at most 2 GiB, and this one would have more")
    return graph


def check_standard_graph(searched: Searched, batch_size: int) -> None:
    """Traces a network whose precisions are not chosen yet, and drops the graph.

    Args:
        searched: The network, its examples, and the layers that may be quantized.
        batch_size: Examples of one run.

    Raises:
        ModelError: As ``standard_graph`` does, but for the size of the file.
        MissingDependencyError: If a package is missing.
    """
    require_onnx()
    check_batch_size(batch_size)
    refuse_other_readers(searched.network, searched.quantized)
    _traced(searched.network, Calibration(searched.examples), batch_size)


def _traced(network: Network, data: Calibration, batch_size: int) -> GraphTemplate:
    """The network's graph, which in fp32 computes what the network does."""
    data = network.examples(data)
    template = GraphTemplate.of(network, data, batch_size, has_unscored=True, with_own=True)
    check_same(template, data)
    return template


def filled_graph(
    template: GraphTemplate, precisions: Mapping[str, Precision], layers: QdqWriter
) -> "onnx.ModelProto":
    """A template's graph in standard operators."""
    from onnx import ModelProto

    filled = ModelProto()
    filled.CopyFrom(template.graph)
    writer = layers.writer
    placeholders = {placeholder.y: placeholder for placeholder in placeholders_of(filled.graph)}
    # In the order of the calls, which is that of the graph.
    inputs = {name: iter(seen) for name, seen in template.layer_inputs.items()}
    for node in filled.graph.node:
        if node.op_type in OPERATORS:
            name = layer_of(node)
            layers.own(name, template.network.layer_module(name), precisions[name], node)
            continue
        call = placeholders.get(node.output[0])
        if call is None:
            writer.nodes.append(node)
            continue
        module, precision = template.network.layer_module(call.layer), precisions[call.layer]
        if kind_of(module) in OPERANDS:
            layers.operand(call.layer, precision, call.x, call.y)
        elif kind_of(module) in _KINDS:
            rank = next(inputs[call.layer]).ndim
            layers.call(call.layer, module, precision, call.x, call.y, rank)
        else:  # as it came, by `OnnxQdq.refusal`
            LayerCall(call.layer, module, precision, layers.quantizer, call.x, call.y, None).write(
                writer
            )
    del filled.graph.node[:]
    filled.graph.node.extend(writer.nodes)
    _share_equal(filled.graph)
    filled.graph.initializer.extend(writer.constants)
    _drop_unread(filled.graph)
    opset = max((x.container.opset for x in layers.weights.values()), default=21)
    return stamp(filled, opset, _ir_version(opset))


def _share_equal(graph: "onnx.GraphProto") -> None:
    """Makes one of constants that are equal: torch's exporter writes tables of angles, which every
    block computes from one buffer, once for each block."""
    first: dict[bytes, str] = {}
    other: dict[str, str] = {}
    ends = {value.name for value in graph.output}
    for constant in graph.initializer:
        name = constant.name
        constant.name = ""
        same = sha256(constant.SerializeToString(deterministic=True)).digest()
        constant.name = name
        if name not in ends and first.setdefault(same, name) != name:
            other[name] = first[same]
    for node in graph.node:
        node.input[:] = [other.get(name, name) for name in node.input]


def _drop_unread(graph: "onnx.GraphProto") -> None:
    """Drops constants that no node reads: the numbers that codes have taken the place of."""
    read = {name for node in graph.node for name in node.input}
    kept = [x for x in graph.initializer if x.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _ir_version(opset: int) -> int:
    """Of the first release of ONNX whose operators have a version."""
    from onnx import helper

    return min(ir for _, ir, known, *_ in helper.VERSION_TABLE if known >= opset)


def settings_text(settings: Mapping[str, str]) -> str:
    """What a session needs to compute as the simulation does, for people."""
    entries = "\n".join(
        f'options.add_session_config_entry("{name}", "{value}")' for name, value in settings.items()
    )
    products = (
        """
# The last one decodes all weights to floats. Leave it out for int8 products, which are as exact on
# processors with VNNI; on others they saturate at 8-bit weights (both are in export.json).
"""
        if settings != AS_WRITTEN
        else ""
    )
    return f"""\
# With these settings ONNX Runtime computes {FILE} as mpq simulated it (see export.json).
import onnxruntime

options = onnxruntime.SessionOptions()
# Inputs of layers with 2, 4 and 8-bit weights stay floating point; without it they become int8.
# Float layers between int8 ones stay float, and two roundings two roundings.
{entries}
{products}session = onnxruntime.InferenceSession("{FILE}", options)

# OpenVINO reads the same file, if it has no 2-bit weights and no inputs in integers of 16 bits:
#   openvino.Core().compile_model("{FILE}", "CPU",
#       {{"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}})
"""
