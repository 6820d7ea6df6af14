"""A float ``.tflite`` file whose weights become integer codes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import prod
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor

from mpq.backends.litert.capabilities import CONTAINERS
from mpq.backends.litert.graph import Graph
from mpq.errors import ModelError
from mpq.quantization.codes import Codes, packed, unpacked

DEQUANTIZE_VERSION: Final = 6
"""Of the operator that decodes 2 and 4 bits by channel."""
IDENTIFIER: Final = b"TFL3"


@final
@dataclass(frozen=True)
class Place:
    """Where a layer's weight is in the file.

    Args:
        index: Of the tensor in the first subgraph.
        order: Axes of the weight in the order in which the file stores them.
        axis: Of the stored tensor, along which the output channels lie.
    """

    index: int
    order: tuple[int, ...]
    axis: int


def read_model(content: bytes) -> Any:
    """The file as objects that can be changed."""
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromPackedBuf(content, 0)


def written_model(model: Any) -> bytes:
    """The file of changed objects."""
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def constant_bytes(file: Path) -> int:
    """Bytes of a file's constants, without scales and names."""
    buffers = read_model(file.read_bytes()).buffers
    return sum(len(x.data) for x in buffers if x.data is not None)


def find_weight(model: Any, name: str, weight: Tensor) -> Place:
    """The one float constant with a weight's numbers, in whatever order of its axes.

    Args:
        model: Of a converted network.
        name: The layer's, for the message.
        weight: ``[O, ...]`` with numbers that no other constant has.

    Raises:
        ModelError: If there is none, or more than one: the converter made something else of it.
    """
    from ai_edge_litert import schema_py_generated as schema

    found = []
    for index, tensor in enumerate(model.subgraphs[0].tensors):
        data = model.buffers[tensor.buffer].data
        if tensor.type != schema.TensorType.FLOAT32 or data is None:
            continue
        if len(data) != 4 * weight.numel():
            continue
        stored = torch.from_numpy(np.frombuffer(bytes(data), np.float32).copy())
        order = next((x for x in _orders(weight) if _is_stored(stored, weight, x)), None)
        axis = None if order is None else _axis(weight, order, [int(x) for x in tensor.shape])
        if order is not None and axis is not None:
            found.append(Place(index, order, axis))
    if len(found) != 1:
        raise ModelError(
            f"litert: the converted network has {len(found)} constants that are the weight of "
            f"{name!r}, and not one: its converter made another one of it; leave the layer out"
        )
    return found[0]


def _orders(weight: Tensor) -> list[tuple[int, ...]]:
    return list(permutations(range(weight.ndim)))


def _is_stored(stored: Tensor, weight: Tensor, order: tuple[int, ...]) -> bool:
    return torch.equal(stored, weight.permute(order).flatten())


def _axis(weight: Tensor, order: tuple[int, ...], shape: list[int]) -> int | None:
    """Which axis of a stored shape, that may have more axes of 1, is that of the channels."""
    before = prod(weight.shape[axis] for axis in order[: order.index(0)])
    count = weight.shape[0]
    return next(
        (i for i, size in enumerate(shape) if size == count and prod(shape[:i]) == before), None
    )


def store_codes(model: Any, place: Place, codes: Codes, shape: tuple[int, ...]) -> None:
    """Puts a layer's codes where its float weight was; what reads it is still the same.

    Args:
        model: Changed in place.
        place: Of the weight.
        codes: Of a symmetric format without groups.
        shape: ``[O, ...]`` of the weight.
    """
    from ai_edge_litert import schema_py_generated as schema

    tensor = model.subgraphs[0].tensors[place.index]
    bits = CONTAINERS[codes.tensor_format.number.bits]
    ordered = codes.integers().reshape(shape).permute(place.order).reshape(1, -1)
    size = -(-ordered.numel() * bits // 8)
    stream = packed(ordered & (2**bits - 1), bits)[0, :size]
    # A buffer of its own: the converter may have used one for two tensors.
    tensor.buffer = len(model.buffers)
    model.buffers.append(schema.BufferT())
    model.buffers[tensor.buffer].data = stream.numpy()
    tensor.type = getattr(schema.TensorType, f"INT{bits}")
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale = codes.scale[:, 0].numpy()
    tensor.quantization.zeroPoint = np.zeros(shape[0], np.int64)
    tensor.quantization.quantizedDimension = place.axis


def decode_for(graph: Graph, index: int, readers: Sequence[Any]) -> None:
    """Gives the numbers that codes stand for to operators that compute in floating point.

    Args:
        graph: Changed in place.
        index: Of the tensor that holds the codes.
        readers: Operators that read it.
    """
    decoded = graph.add(index, "_decoded", "FLOAT32")
    for reader in readers:
        reader.inputs = np.array([decoded if i == index else i for i in reader.inputs], np.int32)
    decoding = graph.operator("DEQUANTIZE", DEQUANTIZE_VERSION, index, decoded)
    graph.subgraph.operators.insert(0, decoding)


def decoded_weights(model: Any, layers: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """``[O, K]`` of every layer by the format's formula, from the file alone.

    Args:
        model: Of a written file.
        layers: Name to ``index``, ``order`` and ``shape`` of the weight.
    """
    return {name: _decoded(model, entry) for name, entry in layers.items()}


def stored_types(model: Any, layers: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Layer name to the element type of its weight, such as ``INT4``."""
    tensors = model.subgraphs[0].tensors
    return {name: f"INT{_bits_of(tensors[x['index']].type)}" for name, x in layers.items()}


def _decoded(model: Any, entry: Mapping[str, Any]) -> Tensor:
    tensor = model.subgraphs[0].tensors[entry["index"]]
    data = np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.uint8).copy()
    shape, order = entry["shape"], entry["order"]
    bits = _bits_of(tensor.type)
    codes = unpacked(torch.from_numpy(data)[None], bits, prod(shape))[0]
    codes = torch.where(codes >= 2 ** (bits - 1), codes - 2**bits, codes)
    stored = codes.reshape([shape[axis] for axis in order])
    rows = stored.permute(tuple(np.argsort(order))).reshape(shape[0], -1)
    return rows * torch.from_numpy(np.array(tensor.quantization.scale, np.float32))[:, None]


def _bits_of(tensor_type: int) -> int:
    from ai_edge_litert import schema_py_generated as schema

    return {getattr(schema.TensorType, f"INT{bits}"): bits for bits in (2, 4, 8)}[tensor_type]
