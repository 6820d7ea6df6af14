"""How compressed-tensors stores one layer: its tensors, and the scheme that its group states."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from mpq.backends.fused_experts import ExpertMatrix
from mpq.backends.half_precision import SCALE_DTYPES
from mpq.backends.input_grid import input_grid
from mpq.backends.target import Shipped
from mpq.backends.vllm import fused
from mpq.errors import ModelError
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.codes import Codes, packed
from mpq.quantization.microscaling import (
    block_scale_bits,
    element_bits,
    fits_tensor_scale,
    tensor_scale,
)
from mpq.quantization.numerics import Numerics
from mpq.quantization.precision import Precision
from mpq.quantization.tensor_format import Granularity, TensorFormat

MICROSCALING: Final = {
    "mxfp4": "mxfp4-pack-quantized",
    "mxfp8": "mxfp8-quantized",
    "nvfp4": "nvfp4-pack-quantized",
}
"""What the tool calls the layouts of number formats that have their own blocks."""
CHANNELS_AT_ONCE: Final = 1024
"""Of a weight, that are decoded together."""
_STRATEGIES: Final = {
    Granularity.TENSOR: "tensor",
    Granularity.CHANNEL: "channel",
    Granularity.GROUP: "group",
    Granularity.TOKEN: "token",
}


def layout_of(precision: Precision) -> str:
    """How the tool calls the layout of one layer's tensors."""
    if precision.weight.number.name in MICROSCALING:
        return MICROSCALING[precision.weight.number.name]
    if precision.weight.number.is_float:
        return "float-quantized"
    is_int8 = precision.weight.number.bits == 8 and not precision.activation.is_exact
    return "int-quantized" if is_int8 else "pack-quantized"


def scheme_of(precision: Precision, names: list[str]) -> dict[str, Any]:
    """One of the ``config_groups``: the layers of one precision, by their whole names."""
    read = precision.activation
    return {
        "targets": names,
        "weights": arguments_of(precision.weight, dynamic=False),
        "input_activations": None
        if read.is_exact
        else arguments_of(read, dynamic=read.granularity is Granularity.TOKEN),
        "format": layout_of(precision),
    }


def arguments_of(tensor_format: TensorFormat, dynamic: bool) -> dict[str, Any]:
    """A format as the tool's ``QuantizationArgs``."""
    number = tensor_format.number
    found = {
        "num_bits": number.bits,
        "type": "float" if number.is_float else "int",
        "symmetric": tensor_format.symmetric,
        "strategy": _STRATEGIES[tensor_format.granularity],
        "group_size": tensor_format.group_size,
        "dynamic": dynamic,
    }
    if number.has_tensor_scale:
        return found | {"strategy": "tensor_group", "scale_dtype": "torch.float8_e4m3fn"}
    return found | ({"scale_dtype": "torch.uint8"} if number.is_microscaling else {})


def tensor_scales(shipped: Shipped) -> dict[str, float]:
    """The scale of every whole weight in nvfp4, by layer; one for the layers that vLLM fuses.

    It takes the largest of those that it finds in a fused layer for all of it, without a word.

    Raises:
        ModelError: If fused layers are too far apart for one: names them.
    """
    # Not all codes at once: of those that are fused they are looked at twice.
    scaled = {x.name: x for x in shipped.quantized if x.precision.weight.number.has_tensor_scale}
    found = {name: tensor_scale(shipped.codes(layer)) for name, layer in scaled.items()}
    for names in fused(scaled):
        smallest = min(found[name] for name in names)
        for name in names:
            if not fits_tensor_scale(shipped.codes(scaled[name]), smallest):
                raise ModelError(
                    f"compressed-tensors: {', '.join(names)} are fused by readers and share a "
                    f"scale, below which those of {name!r} are no fp8 numbers: give these another "
                    "precision than nvfp4"
                )
        found |= dict.fromkeys(names, smallest)
    return found


def layer_tensors(
    layer: AssignedLayer, codes: Codes, numerics: Numerics, whole: float
) -> dict[str, Tensor]:
    """One layer's tensors, by their names within its module."""
    precision = layer.precision
    if precision.weight.number.name in MICROSCALING:
        return _block_tensors(codes, whole)
    is_whole = precision.weight.granularity is Granularity.TENSOR
    scale = codes.scale[:1, 0] if is_whole else codes.scale
    is_group = precision.weight.granularity is Granularity.GROUP
    stored = SCALE_DTYPES[numerics.group_scale if is_group else numerics.scale]
    found: dict[str, Tensor] = {"weight_scale": scale.to(stored)}
    layout = layout_of(precision)
    if layout == "float-quantized":
        found["weight"] = codes.codes.to(torch.float8_e4m3fn)
    elif layout == "int-quantized":
        found["weight"] = codes.integers().to(torch.int8)
    else:
        bits = precision.weight.number.bits
        found["weight_packed"] = packed(codes.unsigned(), bits).view(torch.int32)
        found["weight_shape"] = torch.tensor([len(codes.codes), codes.num_inputs])
    return found | _input_tensors(layer)


def expert_tensors(
    layer: AssignedLayer, codes: Codes, matrices: Sequence[ExpertMatrix]
) -> dict[str, Tensor]:
    """The tensors of one expert's matrices, by their names in the checkpoint.

    Scales are float32, rounded as everywhere: the loader decodes to their dtype.
    """
    found: dict[str, Tensor] = {}
    for matrix in matrices:
        rows = replace(
            codes,
            codes=codes.codes[matrix.rows],
            scale=codes.scale[matrix.rows],
            zero_point=codes.zero_point[matrix.rows],
        )
        own = layer_tensors(layer, rows, Numerics(group_scale="fp32"), 1.0)
        found |= {f"{matrix.name}.{key}": value for key, value in own.items()}
    return found


def _block_tensors(codes: Codes, whole: float) -> dict[str, Tensor]:
    """The same of a microscaling format."""
    number = codes.tensor_format.number
    stream = packed(element_bits(codes), number.bits)
    if number.name == "mxfp8":
        return {"weight": stream.view(torch.float8_e4m3fn), "weight_scale": block_scale_bits(codes)}
    if not number.has_tensor_scale:
        return {"weight_packed": stream, "weight_scale": block_scale_bits(codes)}
    return {
        "weight_packed": stream,
        "weight_scale": block_scale_bits(codes, whole).view(torch.float8_e4m3fn),
        # The tool divides by it: by a power of two, which is exact in bf16, in which it decodes.
        "weight_global_scale": torch.tensor([whole]),
    }


def _input_tensors(layer: AssignedLayer) -> dict[str, Tensor]:
    """Scale and zero point of a static input."""
    if layer.activation_range is None:
        return {}
    grid = input_grid(layer)
    found: dict[str, Tensor] = {"input_scale": grid.scale.clone()}
    if not layer.precision.activation.symmetric:
        found["input_zero_point"] = grid.signed_zero_point.to(torch.int8)
    return found


def input_bits(precision: Precision) -> int:
    """Bits of a static input's scale and zero point; 0 of other inputs."""
    if precision.activation.granularity is not Granularity.TENSOR:
        return 0
    return 32 if precision.activation.symmetric else 40


def decoded_in_parts(
    decode: Callable[[dict[str, Tensor]], Mapping[str, Tensor]], tensors: Mapping[str, Tensor]
) -> Tensor:
    """``[O, K]`` of a layer, as the tool decodes it: some channels after the other.

    The tool makes several copies of what it decodes.

    Args:
        decode: The tool's own function.
        tensors: Of the layer, by their names within its module; codes lie channel by channel.
    """
    num_channels = len(tensors["weight_packed" if "weight_packed" in tensors else "weight"])
    num_inputs = tensors["weight_shape"][1] if "weight_shape" in tensors else 0
    found = []
    for start in range(0, num_channels, CHANNELS_AT_ONCE):
        some = slice(start, min(start + CHANNELS_AT_ONCE, num_channels))
        part = {
            name: tensor[some] if tensor.ndim == 2 and len(tensor) == num_channels else tensor
            for name, tensor in tensors.items()
        }
        if "weight_shape" in tensors:
            part["weight_shape"] = torch.tensor([some.stop - some.start, int(num_inputs)])
        found.append(decode(part)["weight"])
    return torch.cat(found)
