"""Bytes of the key-value cache at a stated context: a resource that no device is needed for."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from mpq.network.layer import Layer
from mpq.problem.cost_table import CostTable
from mpq.quantization.cache_bits import shared_bits, token_bits
from mpq.quantization.kv_cache import KVCache
from mpq.quantization.precision import Precision

KV_CACHE_BYTES: Final = "kv_cache_bytes"
WEIGHT_AND_CACHE_BYTES: Final = "weight_and_cache_bytes"
CACHE_RESOURCES: Final = (KV_CACHE_BYTES, WEIGHT_AND_CACHE_BYTES)
NO_CACHE: Final = (
    "needs a key-value cache that is searched: say what it may be stored in and for how many "
    "tokens, kv_cache=mpq.KVCache(tokens=32768) (--kv-cache a8d,a4d --kv-tokens 32768)"
)


def cache_bytes(layer: Layer, precision: Precision, cache: KVCache) -> float:
    """Bytes of a layer's keys, or values, of all sequences, with their scales; 0 of other layers.

    Tokens that are kept, and all at an exact format, have the bits that they came in. A sliding
    window holds no more than its tokens.
    """
    if not layer.is_cache:
        return 0.0
    num_heads, head_size, _ = layer.weight_shape
    as_given, held = num_heads * head_size * layer.original_bits, precision.activation
    length = tokens_held(layer, cache)
    kept = length if held.is_exact else min(length, cache.first + cache.window)
    bits = kept * as_given + (length - kept) * token_bits(held, num_heads, head_size)
    bits = cache.batch_size * bits + shared_bits(held, num_heads * head_size)
    return float(-(-bits // 8))


def tokens_held(layer: Layer, cache: KVCache) -> int:
    """Of one sequence: the whole context, or a sliding window of it."""
    return min(cache.tokens, layer.most_tokens or cache.tokens)


def cache_table(
    layers: Sequence[Layer], candidates: Sequence[Precision], cache: KVCache
) -> CostTable:
    """``[L, B]`` bytes.

    Args:
        layers: ``L`` layers.
        candidates: ``B`` precisions.
        cache: How many tokens, and which of them are kept.
    """
    rows = [[cache_bytes(layer, p, cache) for p in candidates] for layer in layers]
    values = np.array(rows, dtype=np.float64).reshape(len(layers), len(candidates))
    names = tuple(layer.name for layer in layers)
    return CostTable(KV_CACHE_BYTES, "bytes", names, tuple(candidates), values)


def weight_and_cache_table(weights: CostTable, caches: CostTable) -> CostTable:
    """``[L, B]`` bytes of both together; what no precision changes is the weights' constant."""
    return replace(weights, name=WEIGHT_AND_CACHE_BYTES, values=weights.values + caches.values)


def with_caches(
    table: CostTable, layers: Sequence[Layer], price: Callable[[Layer, Precision], float]
) -> CostTable:
    """A table of the layers that have weights, with rows for caches, whose cells have a price."""
    places = [place for place, layer in enumerate(layers) if layer.has_weights]
    values = np.zeros((len(layers), len(table.precisions)))
    values[places] = table.values
    for row, layer in enumerate(layers):
        if layer.is_cache:
            values[row] = [price(layer, precision) for precision in table.precisions]
    return replace(table, layers=tuple(layer.name for layer in layers), values=values)
