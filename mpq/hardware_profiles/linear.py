"""Resources that need no device: sums over layers of something that the format alone decides."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Final

import numpy as np

from mpq.errors import UnknownNameError
from mpq.network.layer import Layer
from mpq.problem.cost_table import CostTable
from mpq.quantization.formats import NUMBER_FORMATS
from mpq.quantization.precision import Precision

StoredBits = Callable[[Layer, Precision], int]
"""Bits of a layer's weight with its scales, at a precision that is not fp32."""
Formula = Callable[[Layer, Precision, Sequence[Layer], StoredBits], float]


def packed_bits(layer: Layer, precision: Precision) -> int:
    """Stored bits of a weight with its scales, packed as tightly as can be."""
    return precision.weight.stored_bits(layer.num_weights, layer.num_channels)


def weight_bits(layer: Layer, precision: Precision, stored_bits: StoredBits = packed_bits) -> int:
    """Stored bits of a weight with its scales; 0 if another layer stores it, or there is none.

    At fp32 it stays as it came, in the model's own dtype.
    """
    # A shared parameter is stored once, and counted for the first layer that uses it.
    if layer.weight_of is not None or not layer.has_weights:
        return 0
    if precision.weight.is_exact:
        return layer.num_weights * layer.original_bits
    return stored_bits(layer, precision)


def weight_bytes(
    layer: Layer, precision: Precision, _: Sequence[Layer], stored_bits: StoredBits = packed_bits
) -> float:
    """Bytes of the weight, packed, scales included; all else is in the table's constant."""
    # Rounded up, as the last byte of a packed weight may not be full.
    return -(-weight_bits(layer, precision, stored_bits) // 8)


def activation_bytes(
    layer: Layer, precision: Precision, _: Sequence[Layer], __: StoredBits
) -> float:
    """Bytes of the inputs of one example, read once each; token ids are not counted."""
    # Ids are integers, whatever the precision of the layer's activations.
    if layer.kind == "embedding":
        return 0.0
    return layer.input_elements * precision.activation.mean_bits / 8


def bit_operations(layer: Layer, precision: Precision, _: Sequence[Layer], __: StoredBits) -> float:
    """MACs of one example times the bits that are multiplied, of weight and activation.

    Of integers all bits, as HAWQ-V3 counts BOPs (Yao et al. 2021, arXiv:2011.10680). Of floats the
    significand, mantissa and leading 1, whose product is what a multiplier makes of them (IEEE
    754); HAWQ-V3 counts the 32 bits of fp32, 1024 for a product, where this is 24 times 24. The
    sum of exponents and the shifts of an accumulator are not counted: in hardware floats of 8 bits
    cost more than integers of as many (van Baalen et al. 2023, arXiv:2303.17951). An integer times
    a float is the product of its bits and of the float's significand.

    A product of two tensors takes ``a b`` for each of its MACs, which is no sum over both. Each
    operand is counted for half of the MACs, at the square of its own bits: ``(a^2 + b^2) / 2`` is
    the same where both have the same bits, and more elsewhere, so that no limit is passed.

    A branch beside a weight's codes has MACs of its own, of weights in fp16; of an embedding, which
    multiplies nothing else, they are not counted.
    """
    weight, activation = precision.weight, precision.activation
    if not layer.has_weights:
        return float(layer.macs * activation.multiplied_bits**2)
    found = float(layer.macs * prod(f.multiplied_bits for f in (weight, activation)))
    if weight.branch is not None:
        macs = weight.branch.macs(layer.macs, layer.num_weights, layer.num_channels)
        found += macs * NUMBER_FORMATS["fp16"].multiplied_bits * activation.multiplied_bits
    return found


def effective_bits(
    layer: Layer, precision: Precision, layers: Sequence[Layer], stored_bits: StoredBits
) -> float:
    """The layer's share of the mean stored bits per weight of the whole network."""
    # Over the whole network, so that the layers' shares add up to the mean.
    stored = sum(x.num_weights for x in layers if x.weight_of is None)
    # Key-value caches may be all that is searched: no weight, no bits of one.
    return weight_bits(layer, precision, stored_bits) / stored if stored else 0.0


WEIGHT_BYTES: Final = "weight_bytes"

LINEAR_RESOURCES: Final[dict[str, tuple[str, Formula]]] = {
    WEIGHT_BYTES: ("bytes", weight_bytes),
    "activation_bytes": ("bytes", activation_bytes),
    "bit_operations": ("bitops", bit_operations),
    "effective_bits": ("bits", effective_bits),
}
"""Name to unit and formula."""


def linear_amounts(
    resource: str,
    layers: Sequence[Layer],
    chosen: Sequence[Precision],
    stored_bits: StoredBits = packed_bits,
) -> list[float]:
    """``[L]`` what each layer takes of a resource in the precision chosen for it.

    Args:
        resource: One of ``LINEAR_RESOURCES``.
        layers: ``L`` layers.
        chosen: Their precisions.
        stored_bits: As in ``linear_cost``.
    """
    _, formula = LINEAR_RESOURCES[resource]
    pairs = zip(layers, chosen, strict=True)
    return [formula(layer, precision, layers, stored_bits) for layer, precision in pairs]


def linear_cost(
    resource: str,
    layers: Sequence[Layer],
    candidates: Sequence[Precision],
    stored_bits: StoredBits = packed_bits,
) -> CostTable:
    """``[L, B]`` of a resource that needs no device.

    Args:
        resource: One of ``LINEAR_RESOURCES``.
        layers: ``L`` layers.
        candidates: ``B`` precisions.
        stored_bits: How large a weight is at a precision, as a deployment target stores it.

    Raises:
        UnknownNameError: If there is no such resource without a device.
    """
    if resource not in LINEAR_RESOURCES:
        raise UnknownNameError("resource without a device", resource, LINEAR_RESOURCES)
    unit, formula = LINEAR_RESOURCES[resource]
    rows = [[formula(layer, p, layers, stored_bits) for p in candidates] for layer in layers]
    names = tuple(layer.name for layer in layers)
    return CostTable(resource, unit, names, tuple(candidates), np.array(rows, dtype=np.float64))
