"""How large ``model.safetensors`` is going to be: its writer's own tensors, without their numbers.

A file is eight bytes, a header in JSON, and the tensors. What a layer's tensors are called, and
their shapes and dtypes, say the very functions that write them, run on torch's ``meta`` device.
"""

import json
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import Final

import torch
from torch import Tensor, nn

from mpq.backends.file_size import FileSize
from mpq.backends.fused_experts import is_expert
from mpq.backends.hugging_face import FORMAT, other_tensors
from mpq.backends.target import LayerShape, rows_of
from mpq.network.tensor_entries import KINDS
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.codes import Codes
from mpq.quantization.observer import needs_range
from mpq.quantization.precision import Precision
from mpq.quantization.range_method import ActivationRange
from mpq.quantization.tensor_format import Granularity

ALIGNMENT: Final = 8
"""The header is filled up to a multiple of so many bytes."""
LARGEST_NUMBER: Final = 8
"""Bytes that a number of the network takes at most, with its share of scales and of whole words."""
LARGEST_BESIDES: Final = 4096
"""Bytes that a layer takes at most beside its numbers, for shapes and scales of inputs."""
MOST_TENSORS: Final = 6
"""Of one layer: those of two matrices of an expert; else packed codes, shape, and four scales."""

LayerTensors = Callable[[AssignedLayer, Codes], Mapping[str, Tensor]]
"""A layer's tensors as they are written, by their names in the file."""
Tensors = Mapping[str, Tensor]
Laid = Callable[[Tensors], tuple[Tensors, Mapping[str, str]]]
"""Makes of tensors those that the file has, and what its header says of them besides."""


def as_they_are(tensors: Tensors) -> tuple[Tensors, Mapping[str, str]]:
    """Of a file whose header has nothing but its tensors' names, shapes and dtypes."""
    return tensors, {}


def unchanged(tensors: Tensors) -> Tensors:
    """Of a file whose names are those of the network."""
    return tensors


def safetensors_size(
    model: nn.Module,
    names: Collection[str],
    written: LayerTensors,
    laid: Laid = as_they_are,
    renamed: Callable[[Tensors], Tensors] = unchanged,
    metadata: Mapping[str, str] | None = None,
) -> FileSize:
    """The size of ``model.safetensors``; no other file of the folder counts.

    Offsets in the header have as many digits as those of the largest file that there could be, and
    the header is as long as before it was filled up to whole 8 bytes, and 7: the file is smaller
    than what is said by ``FileSize.slack_bytes`` at most.

    Args:
        model: The user's own.
        names: Of the layers whose weights are counted by themselves.
        written: What is written of a layer; it is given codes without numbers.
        laid: See ``Laid``.
        renamed: What the file calls tensors that stay, where some assignments have other names.
        metadata: In the header besides ``FORMAT``, whatever the precisions.
    """
    state = model.state_dict()
    # Other layers are bare parameters, parts of one, or computed: the file has all of it, always.
    alone = {name: key for name in names if (key := f"{name}.weight") in state}
    parts = {name: part for name in names if (part := _part(state, name)) is not None}
    stacked = {_parameter(name) for name in parts}
    rest = dict(other_tensors(model, {*alone.values(), *stacked}))
    places = set(map(_place, rest.values()))
    numbers = sum(tensor.numel() for tensor in state.values())
    digits = len(str(LARGEST_NUMBER * numbers + LARGEST_BESIDES * (len(state) + len(names))))

    def size(tensors: Tensors) -> int:
        return _size(*laid(tensors), digits)

    def by_itself(name: str) -> dict[str, Tensor]:
        return {name: state[name].detach().to("meta")}

    def stays(name: str) -> list[int]:
        """By both names."""
        return sorted((size(by_itself(name)), size(renamed(by_itself(name)))))

    @cache
    def quantized(name: str, kind: str, shape: tuple[int, ...], precision: Precision) -> int:
        # A range, and codes, that have the right shapes: nobody looks at the numbers.
        reads = needs_range(precision.activation) and kind != "embedding"
        ends = ActivationRange(-1.0, 1.0) if reads else None
        layer = AssignedLayer(name, kind, shape, precision, ends)
        with torch.device("meta"):
            return size(written(layer, _codes(layer)))

    def layer_bytes(layer: LayerShape, precision: Precision) -> int:
        if not precision.weight.is_exact:
            return quantized(layer.name, layer.kind, layer.weight_shape, precision)
        if layer.name in parts:
            return parts[layer.name].nbytes
        key = alone.get(layer.name, "")
        # Nothing where what is left out has the same parameter, which the file has once.
        is_there = not key or _place(state[key]) in places
        return 0 if is_there else stays(key)[1]

    both = [stays(name) for name in rest]
    either = [*both, *map(stays, alone.values())]
    # Of experts that stay, the entry of the parameter: it is there or not, and always counted.
    entries = [size(by_itself(name)) - state[name].nbytes for name in stacked]
    left = sum(state[name].nbytes for name in stacked) - sum(t.nbytes for t in parts.values())
    constant = header_bytes({**FORMAT, **(metadata or {})}) + ALIGNMENT - 1
    constant += sum(more for _, more in both) + sum(entries) + left
    num_tensors = len(rest) + len(stacked) + MOST_TENSORS * len(names)
    slack = ALIGNMENT - 1 + 2 * (digits - 1) * num_tensors
    slack += sum(more - less for less, more in either) + sum(entries)
    return FileSize(constant, layer_bytes, slack)


def header_bytes(metadata: Mapping[str, str]) -> int:
    """Bytes of a file without tensors, its header not filled up.

    >>> header_bytes({"format": "pt"})  # 8, and {"__metadata__":{"format":"pt"}}
    40
    """
    return 8 + len(_json({"__metadata__": dict(metadata)}))


def entry_bytes(name: str, tensor: Tensor, digits: int) -> int:
    """Bytes of a tensor's entry in the header, with offsets of so many digits, and a comma.

    >>> entry_bytes("a", torch.empty(2, 3), 1)  # ,"a":{"dtype":"F32","shape":[2,3],...[0,9]}
    55
    """
    stated = {"dtype": KINDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": []}
    return len(_json({name: stated})) - len("{}") + len(",") + 2 * digits + len(",")


def _size(tensors: Tensors, metadata: Mapping[str, str], digits: int) -> int:
    """Bytes of tensors, with what the header has because of them."""
    entries = (t.nbytes + entry_bytes(name, t, digits) for name, t in tensors.items())
    told = (len(_json({key: text})) - len("{}") + len(",") for key, text in metadata.items())
    return sum(entries) + sum(told)


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _parameter(name: str) -> str:
    """Of an expert: the parameter that it is a part of."""
    return name.rpartition(".")[0]


def _part(state: Tensors, name: str) -> Tensor | None:
    """An expert's part of a parameter."""
    if not is_expert(name) or _parameter(name) not in state:
        return None
    return state[_parameter(name)][int(name.rpartition(".")[2])]


def _place(tensor: Tensor) -> tuple[int, int]:
    """The same for all names of a parameter."""
    return tensor.data_ptr(), tensor.numel()


def _codes(layer: AssignedLayer) -> Codes:
    """Codes of a layer without numbers: their shapes alone."""
    weight = layer.precision.weight
    num_channels, num_inputs = rows_of(layer)
    num_scales = weight.num_scales(num_channels * num_inputs, num_channels)
    is_group = weight.granularity is Granularity.GROUP
    num_groups = num_scales // num_channels if is_group else 1
    width = num_groups * (weight.group_size or num_inputs) if is_group else num_inputs
    scale = torch.empty(num_channels, num_groups)
    points = torch.empty(num_channels, num_groups, dtype=torch.int32)
    return Codes(weight, torch.empty(num_channels, width), scale, points, num_inputs)
