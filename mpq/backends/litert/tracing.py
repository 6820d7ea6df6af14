"""What layers read and give in LiteRT's interpreter: tensors that a file is asked for as well."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from mpq.backends.layerwise import INPUT, OUTPUT, call_name
from mpq.backends.litert.flatbuffer import Place, written_model
from mpq.backends.litert.graph import KERNELS, LOOKUPS, Graph
from mpq.backends.litert.integers import ACTIVATIONS, activation_of, has_bias
from mpq.backends.litert.rounded import CUTS
from mpq.backends.target import Shipped

TURNS: Final = ("TRANSPOSE", "RESHAPE")


def computing(graph: Graph, shipped: Shipped, places: Mapping[str, Place]) -> dict[str, list[Any]]:
    """The operators that compute a layer and nothing else, one for every call, in their order.

    Left out are layers to whose output the converter has done something that the simulation does
    not know, and those of which a weight that several share does not tell whose an operator is.

    Args:
        graph: Of the converted network, in which nothing has changed yet.
        shipped: What is written.
        places: Layer name to where its weight is.
    """
    kinds = {x.name: LOOKUPS if x.kind == "embedding" else KERNELS for x in shipped.quantized}
    shared = Counter((places[name].index, kind) for name, kind in kinds.items())
    found: dict[str, list[Any]] = {}
    for name, kind in kinds.items():
        index = places[name].index
        operators = [x for x in graph.readers(index) if graph.kind(x) in kind]
        bias = getattr(shipped.module.get_submodule(name), "bias", None)
        is_plain = kind is LOOKUPS or all(has_bias(graph, x, bias) for x in operators)
        cuts = {activation_of(x) for x in operators}
        is_known = len(cuts) == 1 and cuts <= set(ACTIVATIONS)
        if shared[index, kind] == 1 and is_plain and is_known:
            found[name] = operators
    return found


def cut_outputs(module: nn.Module, operators: Mapping[str, Sequence[Any]]) -> nn.Module:
    """A simulation whose layers cut what they give as their operators do: changed in place.

    What follows cuts it again, so that the network computes the same.

    Args:
        module: A simulation.
        operators: As ``computing`` gives them.
    """
    for name, (operator, *_) in operators.items():
        cut = activation_of(operator)
        if cut != "NONE":
            module.get_submodule(name).register_forward_hook(partial(_cut, cut))
    return module


def _cut(how: str, _: nn.Module, __: object, output: Tensor) -> Tensor:
    return CUTS[how](output)


def tensors_of(graph: Graph, operator: Any) -> dict[str, int]:
    """The tensors that a layer reads and gives in one call.

    Args:
        graph: As it is written.
        operator: That computes it.

    Returns:
        By ``INPUT`` and ``OUTPUT``; no input of ids, or of what is padded before it is read.
    """
    found, read = {OUTPUT: int(operator.outputs[0])}, int(operator.inputs[0])
    if graph.kind(operator) in LOOKUPS:  # ids, of which nothing is compared
        return found
    maker = _maker(graph, read)
    if maker is not None and graph.kind(maker) == "QUANTIZE":
        read = int(maker.inputs[0])  # before it is rounded, as in the simulation
    return found if _is_padded(graph, read) else {INPUT: read, **found}


def _is_padded(graph: Graph, tensor: int) -> bool:
    """Whether zeros were added to what a layer is given, perhaps before its axes were turned."""
    maker = _maker(graph, tensor)
    if maker is None:
        return False
    kind = graph.kind(maker)
    return "PAD" in kind or (kind in TURNS and _is_padded(graph, int(maker.inputs[0])))


def _maker(graph: Graph, tensor: int) -> Any:
    """The operator that makes a tensor; ``None`` of what is given, and of constants."""
    return next((x for x in graph.subgraph.operators if tensor in list(x.outputs)), None)


def with_outputs(model: Any, layers: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The file with tensors of layers among its outputs, so that every delegate gives them.

    Args:
        model: Its objects, which are changed.
        layers: Name to ``calls``: ``tensors_of`` each, in order.
    """
    graph = model.subgraphs[0]
    there = [int(index) for index in (*graph.outputs, *graph.inputs)]
    calls = (call for layer in layers.values() for call in layer["calls"])
    wanted = dict.fromkeys(index for call in calls for index in call.values())
    graph.outputs = np.array([*graph.outputs, *(x for x in wanted if x not in there)], np.int32)
    return written_model(model)


def layer_tensors(
    interpreter: Any, layers: Mapping[str, Mapping[str, Any]], share: float
) -> dict[str, Tensor]:
    """``INPUT`` and ``OUTPUT`` with a call's name to its numbers, as ``traced`` has them.

    Args:
        interpreter: Of a file as ``with_outputs`` gives it, which has run.
        layers: Name to ``calls`` and the weight's ``shape``.
        share: Of the rows, those that are examples.
    """
    details = {entry["index"]: entry for entry in interpreter.get_tensor_details()}
    found: dict[str, Tensor] = {}
    for name, layer in layers.items():
        for number, call in enumerate(layer["calls"], 1):
            for what, index in call.items():
                numbers = _decoded(interpreter.get_tensor(index), details[index])
                numbers = numbers[: round(share * len(numbers))]
                found[what + call_name(name, number)] = _as_in_torch(numbers, layer["shape"])
    return found


def _as_in_torch(numbers: Tensor, shape: Sequence[int]) -> Tensor:
    """With channels where the layer of a weight has them, which come last in the file."""
    if len(shape) > 2:  # of a convolution
        numbers = numbers.movedim(-1, 1)
    if len(shape) == 3:  # of a line, whose height or width is 1
        numbers = numbers.flatten(2)
    return numbers.contiguous()


def _decoded(stored: Any, detail: Mapping[str, Any]) -> Tensor:
    """float32, also of a tensor of codes, which has one scale."""
    scale, zero = detail["quantization"]
    if not scale:
        return torch.from_numpy(stored.astype(np.float32))
    return torch.from_numpy((stored.astype(np.float64) - zero) * scale).float()
