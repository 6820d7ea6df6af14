"""What keeps the converter from joining a layer with what is around it, and is taken out again.

litert-torch takes a bias through the weight of the next linear layer, multiplies what follows a
layer into its weight, and adds it to its bias. All of that is right in floating point; but a layer
that is rounded then has other numbers than the simulation's. So every layer is converted between
two maxima with a number far below all others. They change nothing, no rule of the converter sees
through them, and the number tells which ones they are.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from torch import Tensor, nn

from mpq.backends.litert.graph import KERNELS, Graph
from mpq.backends.litert.integers import activation_of
from mpq.network.arguments import input_of, with_input

BOUND: Final = -float(0x6D7071 * 2**76)
"""About -5.4e29, a number of float32 that no network has by chance."""
JOINED: Final = ("RELU", "RELU_N1_TO_1", "RELU6")
"""Operators that the one before them may do as well."""


def add_barriers(network: nn.Module, names: Iterable[str]) -> None:
    """Puts one before and one behind every layer of some, in place.

    Args:
        network: It gets hooks.
        names: Of the layers. Ids, which an embedding reads, have no barrier.
    """
    for name in names:
        layer = network.get_submodule(name)
        layer.register_forward_pre_hook(_before, with_kwargs=True)
        # Before the user's own hooks, which may change what the layer gives.
        layer.register_forward_hook(_behind, prepend=True)


def _before(
    _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    x = input_of(args, kwargs)
    if x is None or not x.is_floating_point():
        return None
    return with_input(args, kwargs, x.clamp(min=BOUND))


def _behind(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.clamp(min=BOUND)


def remove_barriers(graph: Graph) -> None:
    """Takes barriers out, and joins layers with the function that they kept apart from them.

    Args:
        graph: Of the converted network: changed in place.
    """
    for operator in list(graph.subgraph.operators):
        read = _passed(graph, operator)
        if read is None:
            continue
        made = int(operator.outputs[0])
        _drop(graph, operator)
        if made in list(graph.subgraph.outputs):
            # A signature names this tensor: what was read is made in its place.
            _rename(graph, read, made)
        else:
            _rename(graph, made, read)
    for operator in list(graph.subgraph.operators):
        _join(graph, operator)


def _passed(graph: Graph, operator: Any) -> int | None:
    """The tensor that a barrier lets through; ``None`` of another operator."""
    if graph.kind(operator) != "MAXIMUM":
        return None
    first, second = (int(i) for i in operator.inputs)
    return next((i for i, j in ((first, second), (second, first)) if _is_bound(graph, j)), None)


def _is_bound(graph: Graph, tensor: int) -> bool:
    numbers = graph.constant(tensor)
    return numbers is not None and bool(np.all(numbers == np.float32(BOUND)))


def _join(graph: Graph, operator: Any) -> None:
    """Lets a layer cut its output if that is all that is read of it, as the converter does."""
    if graph.kind(operator) not in KERNELS or activation_of(operator) != "NONE":
        return
    made = int(operator.outputs[0])
    readers = graph.readers(made)
    if len(readers) != 1 or made in list(graph.subgraph.outputs):
        return
    kind = graph.kind(readers[0])
    if kind in JOINED:
        from ai_edge_litert import schema_py_generated as schema

        function = getattr(schema.ActivationFunctionType, kind)
        operator.builtinOptions.fusedActivationFunction = function
        operator.outputs = readers[0].outputs
        _drop(graph, readers[0])


def _drop(graph: Graph, operator: Any) -> None:
    kept = [x for x in graph.subgraph.operators if x is not operator]
    graph.subgraph.operators = kept


def _rename(graph: Graph, old: int, new: int) -> None:
    """Makes all operators read and make another tensor."""
    for operator in graph.subgraph.operators:
        operator.inputs = _with(operator.inputs, old, new)
        operator.outputs = _with(operator.outputs, old, new)


def _with(tensors: Sequence[int], old: int, new: int) -> Any:
    return np.array([new if i == old else int(i) for i in tensors], np.int32)
