"""What LiteRT's kernels take: which layers, in which formats, and what they refuse or garble."""

from enum import Enum
from math import prod
from typing import Final

from mpq.backends.target import LayerShape, rows_of
from mpq.quantization.precision import Precision
from mpq.quantization.tensor_format import Granularity, TensorFormat

KINDS: Final = ("linear", "conv1d", "conv2d", "embedding")
CONTAINERS: Final = {2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}
"""Bits of a code, and of the element type that holds it."""
SCALE_AND_ZERO: Final = 32 + 64
"""Bits beside the codes of a channel: the format stores zero points as int64."""


class Way(Enum):
    """How a layer with integer weights computes."""

    FLOAT = "weights are decoded, and the layer computes in floating point"
    DYNAMIC = "integers, with inputs that are rounded while running"
    STATIC = "integers, inputs and outputs with a calibrated scale"


def way_of(layer: LayerShape, precision: Precision) -> Way:
    """How a layer computes at a precision that is not refused; ids of an embedding stay ids."""
    if layer.kind == "embedding" or precision.activation.is_exact:
        return Way.FLOAT
    is_dynamic = precision.activation.granularity is Granularity.TOKEN
    return Way.DYNAMIC if is_dynamic else Way.STATIC


def refusal(layer: LayerShape, precision: Precision) -> str:
    """See ``Target.refusal``."""
    weight, read = precision.weight, precision.activation
    if layer.kind not in KINDS or layer.is_transposed:
        found = "a matrix [I, O]" if layer.is_transposed else f"a layer of kind {layer.kind}"
        return f"it holds {', '.join(KINDS)} in fewer bits, and this is {found}"
    is_held = weight.is_scaled_integer and weight.number.bits in CONTAINERS
    if not is_held or not weight.symmetric:
        return "it holds symmetric integers of 2 to 8 bits"
    if weight.granularity is Granularity.GROUP:
        return "its scales are of a channel, or of a whole weight"
    if layer.kind == "embedding" or read.is_exact:
        return ""
    if not read.is_scaled_integer or read.number.bits not in (8, 16):
        return (
            "its layers read integers of 8 bits (a8, a8s, a8d) or 16 (aint16s), or floating point "
            "(a32)"
        )
    if read.number.bits == 16:
        return _refusal_of_16(layer, precision)
    if way_of(layer, precision) is Way.DYNAMIC:
        return _dynamic_refusal(layer, weight, read)
    return _convolution_refusal(layer, weight)


def _refusal_of_16(layer: LayerShape, precision: Precision) -> str:
    """Of inputs in integers of 16 bits, as the format's specification has them (int16x8)."""
    read = precision.activation
    if way_of(layer, precision) is Way.DYNAMIC or not read.symmetric:
        return "inputs of 16 bits are static and symmetric: aint16s"
    bits = CONTAINERS[precision.weight.number.bits]
    if bits == 2:
        return "beside inputs of 16 bits weights have 3 to 8 bits"
    if layer.kind != "linear" and bits < 8 and _is_depthwise(layer):
        return "beside inputs of 16 bits a depthwise convolution of 4 bits computes garbage"
    return ""


def _dynamic_refusal(layer: LayerShape, weight: TensorFormat, read: TensorFormat) -> str:
    if read.symmetric:
        return "inputs that are rounded while running have a zero point: a8d"
    if layer.kind == "linear":
        return ""
    why = _convolution_refusal(layer, weight)
    if why:
        return why
    bits = CONTAINERS[weight.number.bits]
    if bits < 8 and _is_depthwise(layer):
        return "a dynamic convolution with one input channel a group takes weights of 8 bits"
    num_channels, _ = rows_of(layer)
    if bits < 8 and (weight.granularity is Granularity.TENSOR or num_channels == 1):
        return (
            "a dynamic convolution of 4 bits with one scale rounds inputs without a zero point, "
            "which is not a8d"
        )
    if bits == 8 and prod(layer.weight_shape[2:]) == 1 and not _is_depthwise(layer):
        return (
            "a dynamic convolution of 8 bits with a kernel of 1 rounds every position by itself, "
            "and a8d every example"
        )
    return ""


def _convolution_refusal(layer: LayerShape, weight: TensorFormat) -> str:
    """Of weights that a convolution's kernel reads as integers."""
    if layer.kind == "linear" or CONTAINERS[weight.number.bits] > 2:
        return ""
    return "a convolution in integers takes weights of 4 and 8 bits: of 2 it computes garbage"


def _is_depthwise(layer: LayerShape) -> bool:
    """Whether it becomes a ``DEPTHWISE_CONV_2D``: so does one that reads a single channel."""
    return layer.weight_shape[1] == 1


def stored_bits(layer: LayerShape, precision: Precision) -> int:
    """See ``Target.stored_bits``: the bias of a static layer has scales of its own."""
    num_channels, num_inputs = rows_of(layer)
    bits = num_channels * num_inputs * CONTAINERS[precision.weight.number.bits]
    per_channel = SCALE_AND_ZERO
    if way_of(layer, precision) is Way.STATIC:
        # A bias of 64 bits beside inputs of 16: the network's own has 32.
        per_channel += SCALE_AND_ZERO + (32 if precision.activation.number.bits == 16 else 0)
    return -(-bits // 8) * 8 + num_channels * per_channel
