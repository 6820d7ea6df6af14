"""Attention of one new token: reading the key-value cache, and multiplying with it.

A token that is decoded meets the keys and the values of all tokens before it, ``H_q D T`` products
with each, and reads them once. At long contexts that is what decoding waits for (Pope et al. 2022,
arXiv:2211.05102, section 3.3).
"""

from dataclasses import dataclass, replace
from typing import final

from mpq.hardware_profiles.kv_cache_bytes import cache_bytes, tokens_held
from mpq.network.layer import VALUES, Layer
from mpq.quantization.kv_cache import KVCache
from mpq.quantization.precision import Precision


@final
@dataclass(frozen=True)
class AttentionPrice:
    """What a device takes for it, in the unit of one resource.

    Codes are decoded when they are read, and the products are of floating point numbers. One kernel
    does both of a layer, so that scores are never written. The new token's own row, which is
    written, and the softmax are left out.

    Args:
        per_mac: Of one multiply-accumulate.
        per_byte: Of one byte that is read.
        per_kernel: Of each kernel, whatever it does.
        is_overlapping: Whether the longer one of products and reading counts, or their sum.
    """

    per_mac: float
    per_byte: float
    per_kernel: float = 0.0
    is_overlapping: bool = False

    def of(self, layer: Layer, precision: Precision, cache: KVCache, batch_size: int) -> float:
        """Of one new token of every sequence.

        Args:
            layer: Keys or values; the kernel's share is that of the keys.
            precision: What they are stored in.
            cache: How many tokens there are.
            batch_size: Sequences that are decoded at once.
        """
        _, head_size, _ = layer.weight_shape
        macs = batch_size * layer.query_heads * head_size * tokens_held(layer, cache)
        read = cache_bytes(layer, precision, replace(cache, batch_size=batch_size))
        both = self.per_mac * macs, self.per_byte * read
        kernel = self.per_kernel if layer.kind != VALUES else 0.0
        return (max(both) if self.is_overlapping else sum(both)) + kernel
