"""Bytes of a deployment target's files: a resource that only a search for a target has.

One sum over layers, whose constant is all that no precision changes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np

from mpq.network.layer import Layer
from mpq.problem.budget import FILE_BYTES
from mpq.problem.cost_table import CostTable
from mpq.quantization.cache_bits import cache_file_bytes
from mpq.quantization.precision import Precision

NO_TARGET: Final = (
    f"{FILE_BYTES} is the size of a deployment target's file: say which target, --to gguf "
    "(`mpq targets` lists them), or limit weight_bytes"
)


@final
@dataclass(frozen=True)
class FilePrices:
    """What a target says of its files before they are written; never less than they are.

    Args:
        constant_bytes: What no precision changes: headers, vocabulary, tensors that stay.
        layer_bytes: Of a layer at any precision; as it came where the target does not hold it.
    """

    constant_bytes: int
    layer_bytes: Callable[[Layer, Precision], int]


def file_table(
    layers: Sequence[Layer], candidates: Sequence[Precision], prices: FilePrices
) -> CostTable:
    """``[L, B]`` bytes; a layer whose weight is another's takes none.

    Args:
        layers: ``L`` layers.
        candidates: ``B`` precisions.
        prices: The target's.
    """

    def row(layer: Layer) -> list[int]:
        if layer.weight_of is not None:
            return [0] * len(candidates)
        if layer.is_operand:
            return [0] * len(candidates)
        if layer.is_cache:
            return [cache_file_bytes(layer.name, precision) for precision in candidates]
        return [prices.layer_bytes(layer, precision) for precision in candidates]

    rows = [row(layer) for layer in layers]
    values = np.array(rows, dtype=np.float64).reshape(len(layers), len(candidates))
    names = tuple(layer.name for layer in layers)
    constant = float(prices.constant_bytes)
    return CostTable(FILE_BYTES, "bytes", names, tuple(candidates), values, constant)
