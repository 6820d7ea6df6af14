"""Pieces of a template: one layer alone, or two with everything between them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self, final

import numpy as np

from mpq._support.arrays import AnyArray
from mpq.backends.onnx.template import PLACEHOLDER, GraphTemplate

if TYPE_CHECKING:
    import onnx

_FLOAT: Final = 1
"""ONNX's number of float32."""


@final
@dataclass(frozen=True, eq=False)
class Subgraph:
    """A part of a network's graph that can be run alone.

    Args:
        layers: The one or two layers in it.
        graph: ONNX graph with placeholders for the layers' calls.
        examples: An input for each of the graph's.
        calls: How often the network has such a part.
    """

    layers: tuple[str, ...]
    graph: "onnx.ModelProto"
    examples: tuple[AnyArray, ...]
    calls: int = 1

    @classmethod
    def alone(cls, template: GraphTemplate, name: str, has_samples: bool = False) -> Self:
        """All calls of a layer, one beside the other.

        Args:
            template: Graph of the whole network, with the inputs of its layers.
            name: Name of the layer in the network.
            has_samples: Whether it takes ``template.samples`` instead of one run's examples.
        """
        nodes = [node for node in _placeholders(template) if _layer(node) == name]
        inputs = (template.samples if has_samples else template.layer_inputs)[name]
        # Hooks saw the calls in the graph's order. By input: calls on one tensor share it.
        examples = {node.input[0]: x.cpu().numpy() for node, x in zip(nodes, inputs, strict=True)}
        return cls((name,), _graph(template, nodes, examples), tuple(examples.values()))

    @classmethod
    def between(cls, template: GraphTemplate) -> tuple[Self, ...]:
        """Every layer with the last layer before it that it depends on, and what is between them.

        Of what the piece reads beside the first layer's input, only the shape is that of the
        network, the numbers are random. A layer that depends on no other, or reads something
        besides that is no float of known shape, begins no piece.
        """
        makers = {name: node for node in template.graph.graph.node for name in node.output}
        # Nodes have no identity of their own; the first output is a name that no other node has.
        order = {node.output[0]: number for number, node in enumerate(template.graph.graph.node)}
        found: dict[tuple[str, str], Self] = {}
        counts: dict[tuple[str, str], int] = {}
        for last in _placeholders(template):
            feeders = list(_feeders(last, makers))
            if not feeders:
                continue
            # The last that runs: what lies between the two runs between them in the network, too.
            first = max(feeders, key=lambda node: order[node.output[0]])
            key = (_layer(first), _layer(last))
            # Every hand-over counts, while the piece itself is made once.
            counts[key] = counts.get(key, 0) + 1
            # A layer that feeds itself is one layer with one kernel: no pair to choose for.
            if key[0] != key[1] and key not in found:
                piece = cls._joined(template, first, last, makers, order)
                found |= {} if piece is None else {key: piece}
        return tuple(replace(piece, calls=counts[key]) for key, piece in found.items())

    @classmethod
    def _joined(
        cls,
        template: GraphTemplate,
        first: "onnx.NodeProto",
        last: "onnx.NodeProto",
        makers: Mapping[str, "onnx.NodeProto"],
        order: Mapping[str, int],
    ) -> Self | None:
        inner = _path(first.output[0], last.input[0], makers)
        nodes = sorted([first, *inner, last], key=lambda node: order[node.output[0]])
        calls = [
            node.output[0] for node in _placeholders(template) if _layer(node) == _layer(first)
        ]
        # Calls may be of unlike shapes, so that it has to be the input of this very one.
        x = template.layer_inputs[_layer(first)][calls.index(first.output[0])]
        examples = {first.input[0]: x.cpu().numpy()}
        made = {name for node in nodes for name in node.output} | set(examples)
        made |= {constant.name for constant in template.graph.graph.initializer}
        for name in (name for node in nodes for name in node.input):
            # An optional input that is left out has an empty name.
            if name and name not in made and name not in examples:
                example = _example(template, name)
                if example is None:
                    return None
                examples[name] = example
        names = (_layer(first), _layer(last))
        return cls(names, _graph(template, nodes, examples), tuple(examples.values()))


def _placeholders(template: GraphTemplate) -> Iterator["onnx.NodeProto"]:
    return (node for node in template.graph.graph.node if node.op_type == PLACEHOLDER)


def _layer(node: "onnx.NodeProto") -> str:
    # A placeholder has a single attribute, the layer's name.
    return str(node.attribute[0].s.decode())


def _feeders(
    node: "onnx.NodeProto", makers: Mapping[str, "onnx.NodeProto"]
) -> Iterator["onnx.NodeProto"]:
    """Placeholders that a placeholder's input depends on through operations that are none."""
    waiting, seen = [node.input[0]], set[str]()
    while waiting:
        name = waiting.pop()
        maker = makers.get(name)
        if maker is None or name in seen:
            continue
        seen.add(name)
        if maker.op_type == PLACEHOLDER:
            yield maker
        else:
            waiting.extend(maker.input)


def _path(start: str, end: str, makers: Mapping[str, "onnx.NodeProto"]) -> list["onnx.NodeProto"]:
    """Nodes that lie on a way from one tensor to another."""
    leads: dict[str, bool] = {start: True}
    on_path: dict[str, onnx.NodeProto] = {}

    def reaches(name: str) -> bool:
        if name not in leads:
            maker = makers.get(name)
            leads[name] = False
            if maker is not None and maker.op_type != PLACEHOLDER:
                # A list first: `any` over a generator would stop at one way and miss the others.
                ways = [reaches(read) for read in maker.input]
                leads[name] = any(ways)
                if leads[name]:
                    on_path[maker.output[0]] = maker
        return leads[name]

    reaches(end)
    return list(on_path.values())


def _example(template: GraphTemplate, name: str) -> AnyArray | None:
    """Random numbers in the shape of a tensor of the graph; ``None`` if it is no such tensor."""
    graph = template.graph.graph
    for value in (*graph.value_info, *graph.input):
        if value.name == name:
            kind = value.type.tensor_type
            shape = [axis.dim_value for axis in kind.shape.dim]
            # An axis of unknown length has a value of 0; random indices could be out of range.
            if kind.elem_type != _FLOAT or not all(shape):
                return None
            # With a seed of its own: the same piece every time, and numpy's global state stays.
            return np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return None


def _graph(
    template: GraphTemplate, nodes: Sequence["onnx.NodeProto"], examples: Mapping[str, AnyArray]
) -> "onnx.ModelProto":
    from onnx import helper

    used = {name for node in nodes for name in node.input}
    # Only its own: weights of the whole network would be loaded with every piece.
    constants = [c for c in template.graph.graph.initializer if c.name in used]
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in examples.items()
    ]
    read = {name for node in nodes for name in node.input}
    ends = [name for node in nodes for name in node.output if name not in read]
    # No shape is given, as runtimes infer it.
    outputs = [helper.make_tensor_value_info(name, _FLOAT, None) for name in ends]
    return helper.make_model(helper.make_graph(nodes, "subgraph", inputs, outputs, constants))
