"""Which tensors of a graph its layers read and give: looked at only where outputs differ."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from mpq.backends.layerwise import INPUT, OUTPUT, call_name
from mpq.backends.onnx import own_layer
from mpq.backends.onnx.graph import NOT_TOLD
from mpq.backends.onnx.instantiate import placeholders_of

if TYPE_CHECKING:
    from mpq.backends.onnx.template import GraphTemplate

Calls = Mapping[str, Sequence[Sequence[str]]]
"""Layer name to two tensors' names for each of its calls: what it reads, and what it gives."""


def calls_of(template: "GraphTemplate") -> dict[str, list[tuple[str, str]]]:
    """Tensors of every call of every layer, in order, by the names that they keep in the file.

    Of a layer whose calls the exporter has joined (two on one tensor) nothing is told: which call
    of the network's is which of the graph's would be a guess.

    Args:
        template: What the file is made of.
    """
    graph, network = template.graph.graph, template.network
    found: dict[str, list[tuple[str, str]]] = {}
    for call in placeholders_of(graph):
        reads_ids = isinstance(network.layer_module(call.layer), nn.Embedding)
        ends = (NOT_TOLD if reads_ids else call.x, call.y)
        found.setdefault(call.layer, []).append(ends)
    for node in graph.node:
        if node.op_type == own_layer.OUTPUT:
            ends = (NOT_TOLD, node.output[0])
            found.setdefault(own_layer.layer_of(node), []).append(ends)
    counts = {name: len(seen) for name, seen in template.layer_inputs.items()}
    return {name: calls for name, calls in found.items() if len(calls) == counts[name]}


def tensors_of(calls: Calls) -> list[str]:
    """The tensors' names, each once."""
    names = (name for ends in calls.values() for pair in ends for name in pair)
    return list(dict.fromkeys(name for name in names if name != NOT_TOLD))


def as_traced(calls: Calls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What layers read and gave, under the names of ``mpq.backends.layerwise.traced``.

    Args:
        calls: As ``calls_of`` has them.
        tensors: Those that a runtime tells, by name.
    """
    found: dict[str, Tensor] = {}
    for layer, ends in calls.items():
        for number, pair in enumerate(ends, 1):
            for what, name in zip((INPUT, OUTPUT), pair, strict=True):
                if name in tensors:
                    # Copies, as what one gives is what another reads.
                    found[what + call_name(layer, number)] = tensors[name].float().clone()
    return found
