"""What becomes of a converted network's operators: decoded weights, dynamic and static integers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from mpq.backends.input_grid import input_grid
from mpq.backends.litert.capabilities import CONTAINERS, Way, way_of
from mpq.backends.litert.flatbuffer import Place, decode_for
from mpq.backends.litert.graph import Form, Graph, kernels_of
from mpq.backends.litert.integers import (
    StaticLayer,
    StaticPass,
    check_bias,
    following_form,
    largest_bias,
    make_dynamic,
    with_room_for,
)
from mpq.backends.litert.rounded import Output, StoredLayer, form_of, measured_forms
from mpq.backends.target import Shipped
from mpq.errors import InputError, ModelError
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.codes import Codes


@final
@dataclass(frozen=True, eq=False)
class Plan:
    """Operators of a converted network by what they will compute in.

    Args:
        graph: Changed by ``apply`` alone.
        decoded: Tensor of a weight to the operators that read its numbers.
        dynamic: Operators that round their inputs while running, with the bits of their weight.
        static: Layers whose inputs and outputs are codes.
        codes: Their weights by layer name.
    """

    graph: Graph
    decoded: Mapping[int, Sequence[Any]]
    dynamic: Sequence[tuple[Any, int]]
    static: Sequence[StaticLayer]
    codes: Mapping[str, Codes]

    @classmethod
    def of(cls, graph: Graph, shipped: Shipped, places: Mapping[str, Place]) -> "Plan":
        """Of a converted network.

        Args:
            graph: In floating point.
            shipped: What is written.
            places: Layer name to where its weight is.

        Raises:
            ModelError: If an operator has no integer kernel, or layers in different formats share a
                weight; names the layer.
        """
        layers: dict[int, list[AssignedLayer]] = {}
        for layer in shipped.quantized:
            layers.setdefault(places[layer.name].index, []).append(layer)
        decoded: dict[int, Sequence[Any]] = {}
        dynamic: list[tuple[Any, int]] = []
        static: list[StaticLayer] = []
        codes: dict[str, Codes] = {}
        for index, sharing in layers.items():
            chosen = _computing(sharing)
            taken: list[Any] = []
            if chosen is not None:
                taken = kernels_of(graph, index, chosen.name)
                bits = CONTAINERS[chosen.precision.weight.number.bits]
                if way_of(chosen, chosen.precision) is Way.DYNAMIC:
                    dynamic += [(operator, bits) for operator in taken]
                else:
                    stored = codes[chosen.name] = _codes(shipped, chosen)
                    static.append(_static(graph, shipped, chosen, taken, stored))
            readers = [x for x in graph.readers(index) if all(x is not one for one in taken)]
            if readers:
                decoded[index] = readers
        return cls(graph, decoded, dynamic, static, codes)

    def store_outputs(self, shipped: Shipped) -> dict[str, StoredLayer]:
        """Finds how outputs of static layers are stored, and what the simulation makes of it.

        Args:
            shipped: With examples.
        """
        if self.static and shipped.calibration is None:
            raise InputError("the target litert needs examples, for the ranges of outputs")
        readers = {id(x): layer.reads for layer in self.static for x in layer.operators}
        chosen = {x.name: following_form(self.graph, x, readers) for x in self.static}
        formats = {x.name: x.precision.activation for x in shipped.quantized}
        wanted = {
            x.name: Output(formats[x.name], x.activation)
            for x in self.static
            if chosen[x.name] is None
        }
        measured = measured_forms(
            shipped.module, shipped.calibration or (), wanted, shipped.assignment.weight_range
        )
        found: dict[str, StoredLayer] = {}
        for layer in self.static:
            layer.makes = measured.get(layer.name) or chosen[layer.name]
            found[layer.name] = _stored(self.graph, shipped, layer, self.codes[layer.name])
        return found

    def apply(self) -> None:
        """Changes the graph, in which the weights are codes already."""
        for operator, bits in self.dynamic:
            make_dynamic(self.graph, operator, bits)
        for index, readers in self.decoded.items():
            decode_for(self.graph, index, readers)
        layers = {id(x): layer for layer in self.static for x in layer.operators}
        StaticPass(self.graph, layers).run()
        self.graph.drop_unread()


def _computing(sharing: Sequence[AssignedLayer]) -> AssignedLayer | None:
    """The layer that reads a weight as integers, of all that share it; ``None`` if none does."""
    kernels = [x for x in sharing if x.kind != "embedding"]
    integers = [x for x in kernels if way_of(x, x.precision) is not Way.FLOAT]
    if not integers:
        return None
    first = integers[0]
    other = next((x for x in kernels if x is not first), None)
    is_static = way_of(first, first.precision) is Way.STATIC
    if other is not None and (is_static or other.precision != first.precision):
        raise ModelError(
            f"litert: {first.name!r} at {first.precision} shares its weight with {other.name!r} at "
            f"{other.precision}, and the file does not tell which operator is whose: give both one "
            "precision without static inputs"
        )
    return first


def _bias(shipped: Shipped, layer: AssignedLayer) -> Tensor | None:
    bias = getattr(shipped.module.get_submodule(layer.name), "bias", None)
    return None if bias is None else bias.detach().float().cpu()


def _codes(shipped: Shipped, layer: AssignedLayer) -> Codes:
    reads, bias = form_of(input_grid(layer)), _bias(shipped, layer)
    return with_room_for(shipped.codes(layer), bias, reads, _largest_bias(layer, reads))


def _largest_bias(layer: AssignedLayer, reads: Form) -> int:
    return largest_bias(layer.kind, CONTAINERS[layer.precision.weight.number.bits], reads)


def _static(
    graph: Graph, shipped: Shipped, layer: AssignedLayer, operators: Sequence[Any], codes: Codes
) -> StaticLayer:
    bias = _bias(shipped, layer)
    for operator in operators:
        check_bias(graph, operator, layer.name, bias)
    reads = form_of(input_grid(layer))
    return StaticLayer(
        layer.name,
        operators,
        reads,
        codes.scale[:, 0].float(),
        bias,
        CONTAINERS[layer.precision.weight.number.bits],
        _largest_bias(layer, reads),
    )


def _stored(graph: Graph, shipped: Shipped, layer: StaticLayer, codes: Codes) -> StoredLayer:
    assert layer.makes is not None
    module = shipped.module.get_submodule(layer.name)
    assert isinstance(module.weight, Tensor)
    bias = layer.bias_codes()
    return StoredLayer(
        layer.reads,
        layer.makes,
        codes.integers().reshape(module.weight.shape).double(),
        layer.scales,
        None if bias is None else bias.double(),
        layer.rounding(graph, getattr(module, "groups", 1), codes.num_inputs),
    )
