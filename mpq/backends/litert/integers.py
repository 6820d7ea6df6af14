"""Operators of a float graph that read and make 8-bit codes instead, dynamic or static."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor

from mpq.backends.litert.graph import MOVES, NO_TENSOR, Form, Graph
from mpq.backends.litert.requantizing import Rounding
from mpq.errors import ModelError
from mpq.quantization.codes import Codes

ACTIVATIONS: Final = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6")
"""What an operator cuts its output to, which its integer kernel does, too."""
VERSIONS_OF_16: Final[Mapping[str, Mapping[int, int]]] = {
    "FULLY_CONNECTED": {4: 13, 8: 7},
    "CONV_2D": {4: 7, 8: 4},
    "DEPTHWISE_CONV_2D": {8: 5},
    "TRANSPOSE": {16: 5},
    "MAX_POOL_2D": {16: 3},
    "PAD": {16: 3},
    "QUANTIZE": {16: 2},
    "DEQUANTIZE": {16: 3},
}
"""Operator to the version that reads codes of 16 bits, with the bits of its weight."""
VERSIONS: Final[Mapping[tuple[str, bool], Mapping[int, int]]] = {
    ("FULLY_CONNECTED", False): {2: 14, 4: 12, 8: 12},
    ("FULLY_CONNECTED", True): {2: 14, 4: 10, 8: 5},
    ("CONV_2D", False): {4: 7, 8: 5},
    ("CONV_2D", True): {4: 7, 8: 3},
    ("DEPTHWISE_CONV_2D", False): {8: 6},
    ("DEPTHWISE_CONV_2D", True): {4: 7, 8: 3},
}
"""Operator, and whether its inputs are codes: bits of the weight to the version that reads them."""
NEGLIGIBLE: Final = 5e-7
"""Of a layer's largest weight: half of what an export takes for the same number."""


@final
@dataclass(eq=False)
class StaticLayer:
    """A layer whose inputs and outputs are codes.

    Args:
        name: The layer's.
        operators: That compute it, one for every call.
        reads: How its input is stored.
        scales: ``[O]`` float32 of its weight.
        bias: ``[O]`` float32, or ``None``.
        bits: Of an element of its weight in the file.
        largest_bias: See ``largest_bias``.
        makes: How its output is stored; set once it is known.
    """

    name: str
    operators: Sequence[Any]
    reads: Form
    scales: Tensor
    bias: Tensor | None
    bits: int
    largest_bias: int
    makes: Form | None = None

    @property
    def bias_bits(self) -> int:
        """Of an element of its bias in the file."""
        return 64 if self.reads.bits == 16 else 32

    @property
    def unit(self) -> Tensor:
        """``[O]`` float32: what one unit of its sums is worth."""
        return torch.tensor(self.reads.scale, dtype=torch.float32) * self.scales

    def bias_codes(self) -> Tensor | None:
        """``[O]`` int32, or int64 with inputs of 16 bits, in units of its sums.

        Raises:
            ModelError: If one does not fit.
        """
        if self.bias is None:
            return None
        codes = (self.bias.double() / self.unit.double()).round()
        if float(codes.abs().max()) > self.largest_bias:
            raise ModelError(
                f"litert: the bias of layer {self.name!r} does not fit beside its sums into "
                f"{self.bias_bits} bits: it is thousands of times its largest product; give it "
                "inputs in floating point (a32)"
            )
        return codes.to(torch.int64 if self.reads.bits == 16 else torch.int32)

    @property
    def activation(self) -> str:
        """What its output is cut to in the file.

        Raises:
            ModelError: If that is none that integer kernels have, or differs between calls.
        """
        found = {activation_of(x) for x in self.operators}
        if len(found) > 1 or not found <= set(ACTIVATIONS):
            raise ModelError(
                f"litert: the output of layer {self.name!r} becomes {' and '.join(sorted(found))} "
                f"within its operator, and integer kernels have one of {', '.join(ACTIVATIONS)}"
            )
        return found.pop()

    def rounding(self, graph: Graph, groups: int, num_inputs: int) -> Rounding:
        """Which kernel of the interpreter computes it; XNNPACK has none for some 4-bit weights."""
        kind = graph.kind(self.operators[0])
        if self.reads.bits == 16:
            return Rounding.FLOAT64 if kind == "FULLY_CONNECTED" else Rounding.SHORT
        if self.bits == 8 or (kind == "FULLY_CONNECTED" and num_inputs * self.bits % 8 == 0):
            return Rounding.ONCE
        is_grouped = kind == "CONV_2D" and groups > 1
        return Rounding.TWICE_AWAY if is_grouped else Rounding.TWICE_UP


def largest_bias(kind: str, weight_bits: int, reads: Form) -> int:
    """The largest code of a bias that kernels add up with: half of what their sums hold.

    Args:
        kind: The layer's, such as ``linear``.
        weight_bits: Of an element of its weight in the file.
        reads: How its input is stored.
    """
    if reads.bits == 16:
        return 2**46
    # The sums of XNNPACK's linear layers in 4 bits are 16 times as large: they overflow from 2^27.
    return 2**26 if kind == "linear" and weight_bits == 4 else 2**30


def with_room_for(codes: Codes, bias: Tensor | None, reads: Form, largest: int) -> Codes:
    """Codes of a static layer in which channels of almost nothing have larger steps.

    A bias is stored in units of its channel's sums. Where training has left weights of 1e-8 beside
    a bias of 1, as in networks with ReLU6, it does not fit; in steps so large that it does, these
    weights lose what no output shows.

    Args:
        codes: Of a symmetric format without groups.
        bias: ``[O]`` float32 of the layer, or ``None``.
        reads: How its input is stored.
        largest: See ``largest_bias``.

    Returns:
        The same codes where all biases fit, and where larger steps would not be ``NEGLIGIBLE``.
    """
    if bias is None:
        return codes
    needed = bias.double().abs() / (reads.scale * codes.scale[:, 0].double())
    doublings = (needed / largest).clamp(min=1).log2().ceil()[:, None]  # [O, 1]
    steps = (2**doublings).float()
    found = replace(codes, codes=(codes.codes / steps).round(), scale=codes.scale * steps)
    error = (found.numbers() - codes.numbers()).abs().max()
    return found if error <= NEGLIGIBLE * codes.numbers().abs().max() else codes


def activation_of(operator: Any) -> str:
    """What an operator does to its output, such as ``RELU``; ``NONE`` if there is no such thing."""
    from ai_edge_litert import schema_py_generated as schema

    names: dict[int, str] = {
        x: name for name, x in vars(schema.ActivationFunctionType).items() if name.isupper()
    }
    return names[getattr(operator.builtinOptions, "fusedActivationFunction", 0)]


def has_bias(graph: Graph, operator: Any, bias: Tensor | None) -> bool:
    """Whether an operator adds a layer's own bias, and nothing else.

    Args:
        graph: Of the file.
        operator: That computes the layer.
        bias: ``[O]`` of its module.
    """
    index = int(operator.inputs[2]) if len(operator.inputs) > 2 else NO_TENSOR
    stored = None if index == NO_TENSOR else graph.constant(index)
    expected = np.zeros(1) if bias is None else bias.detach().cpu().numpy()
    found = np.zeros(1) if stored is None else stored
    return not (stored is None and index != NO_TENSOR) and bool(np.all(found == expected))


def check_bias(graph: Graph, operator: Any, name: str, bias: Tensor | None) -> None:
    """Refuses a layer to whose bias the converter has added something.

    Args:
        graph: Of the file.
        operator: That computes the layer.
        name: The layer's.
        bias: ``[O]`` of its module.

    Raises:
        ModelError: If the file has another one.
    """
    if not has_bias(graph, operator, bias):
        raise ModelError(
            f"litert: the converted network has another bias for layer {name!r}: its converter has "
            "joined something that follows it; give it inputs in floating point (a32)"
        )


def make_dynamic(graph: Graph, operator: Any, bits: int) -> None:
    """An operator that reads floating point and integer weights.

    Args:
        graph: Changed in place.
        operator: One of ``KERNELS``.
        bits: Of an element of its weight.
    """
    kind = graph.kind(operator)
    graph.need_version(operator, VERSIONS[kind, False][bits])
    if kind == "FULLY_CONNECTED":
        # Convolutions have no such option, and round with a zero point.
        operator.builtinOptions.asymmetricQuantizeInputs = True


def following_form(graph: Graph, layer: StaticLayer, readers: Mapping[int, Form]) -> Form | None:
    """How the layers behind a layer read its output, if that is how it can be stored.

    Args:
        graph: Not changed yet.
        layer: Called once; the output of one that is called more often has several readers.
        readers: ``id`` of a static layer's operator to how it reads.
    """
    if len(layer.operators) > 1:
        return None
    found = _read_as(graph, int(layer.operators[0].outputs[0]), readers, is_pooled=False)
    # No operator reads codes of some bits and makes codes of others.
    same = [
        (None if form is None or form.bits != layer.reads.bits else form, is_pooled)
        for form, is_pooled in found
    ]
    direct = [form for form, is_pooled in same if form is not None and not is_pooled]
    if direct:
        return direct[0]
    # A maximum's range is not that of all numbers, which others may read.
    forms = {form for form, _ in same}
    return forms.pop() if len(forms) == 1 else None


def _read_as(
    graph: Graph, tensor: int, readers: Mapping[int, Form], is_pooled: bool
) -> list[tuple[Form | None, bool]]:
    found: list[tuple[Form | None, bool]] = []
    if tensor in list(graph.subgraph.outputs):
        found.append((None, is_pooled))
    for reader in graph.readers(tensor):
        kind = graph.kind(reader)
        if kind in MOVES:
            pooled = is_pooled or kind == "MAX_POOL_2D"
            found += _read_as(graph, int(reader.outputs[0]), readers, pooled)
        else:
            found.append((readers.get(id(reader)), is_pooled))
    return found


@final
@dataclass(eq=False)
class StaticPass:
    """Makes operators read and write codes, with ``QUANTIZE`` and ``DEQUANTIZE`` between.

    Args:
        graph: Changed in place.
        layers: ``id`` of an operator to its layer, whose ``makes`` is known.
    """

    graph: Graph
    layers: Mapping[int, StaticLayer]
    _done: list[Any] = field(default_factory=list)
    _stored: dict[int, tuple[int, Form]] = field(default_factory=dict)
    _quantized: dict[tuple[int, Form], int] = field(default_factory=dict)
    _decoded: set[int] = field(default_factory=set)

    def run(self) -> None:
        """In the order in which operators run."""
        for operator in list(self.graph.subgraph.operators):
            layer = self.layers.get(id(operator))
            first = int(operator.inputs[0]) if len(operator.inputs) else NO_TENSOR
            if layer is not None:
                self._compute(operator, layer)
            elif self.graph.kind(operator) in MOVES and first in self._stored:
                self._move(operator, first)
            else:
                for tensor in operator.inputs:
                    self._decode(int(tensor))
                self._done.append(operator)
        for tensor in self.graph.subgraph.outputs:
            self._decode(int(tensor))
        self.graph.subgraph.operators = self._done

    def _compute(self, operator: Any, layer: StaticLayer) -> None:
        assert layer.makes is not None
        kind = self.graph.kind(operator)
        is_16 = layer.reads.bits == 16
        known = VERSIONS_OF_16[kind] if is_16 else VERSIONS[kind, True]
        self.graph.need_version(operator, known[layer.bits])
        read = self._codes(int(operator.inputs[0]), layer.reads)
        self._done.append(operator)
        inputs = [read, int(operator.inputs[1])]
        index = int(operator.inputs[2]) if len(operator.inputs) > 2 else NO_TENSOR
        # Without a bias kernels of 16 bits would add up in 32, which do not hold the sums.
        if is_16 or index != NO_TENSOR:
            inputs.append(self._bias(index, layer))
        operator.inputs = np.array(inputs, np.int32)
        operator.outputs = self._made(int(operator.outputs[0]), layer.makes)

    def _move(self, operator: Any, first: int) -> None:
        codes, form = self._stored[first]
        kind = self.graph.kind(operator)
        # Of codes there is a second version of most of them.
        if kind != "RESHAPE":
            version = VERSIONS_OF_16[kind][16] if form.bits == 16 else 2
            self.graph.need_version(operator, version)
        operator.inputs = np.array([codes, *operator.inputs[1:]], np.int32)
        operator.outputs = self._made(int(operator.outputs[0]), form)
        self._done.append(operator)

    def _made(self, tensor: int, form: Form) -> Any:
        codes = self.graph.stored(tensor, form)
        self._stored[tensor] = codes, form
        return np.array([codes], np.int32)

    def _codes(self, tensor: int, form: Form) -> int:
        """The tensor of a number tensor's codes, which is made if it is not there."""
        stored = self._stored.get(tensor)
        if stored is not None and stored[1] == form:
            return stored[0]
        if (tensor, form) not in self._quantized:
            self._decode(tensor)
            codes = self._quantized[tensor, form] = self.graph.stored(tensor, form)
            version = VERSIONS_OF_16["QUANTIZE"][16] if form.bits == 16 else 1
            self._done.append(self.graph.operator("QUANTIZE", version, tensor, codes))
        return self._quantized[tensor, form]

    def _decode(self, tensor: int) -> None:
        """Makes the numbers of a tensor that is stored as codes, once."""
        if tensor not in self._stored or tensor in self._decoded:
            return
        self._decoded.add(tensor)
        codes, form = self._stored[tensor]
        version = VERSIONS_OF_16["DEQUANTIZE"][16] if form.bits == 16 else 2
        self._done.append(self.graph.operator("DEQUANTIZE", version, codes, tensor))

    def _bias(self, tensor: int, layer: StaticLayer) -> int:
        codes, bits = layer.bias_codes(), layer.bias_bits
        data = np.zeros(len(layer.scales), f"int{bits}") if codes is None else codes.numpy()
        like = int(layer.operators[0].inputs[1]) if tensor == NO_TENSOR else tensor
        suffix = f"_int{bits}_{len(self._done)}"
        return self.graph.add(like, suffix, f"INT{bits}", layer.unit.numpy(), data=data)
