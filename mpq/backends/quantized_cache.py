"""A cache of transformers that holds keys and values as an assignment says. Needs transformers."""

from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from mpq.errors import ModelError
from mpq.network.cache_store import CacheStore
from mpq.network.cached_attention import rotations_of, tokens_kept_by
from mpq.network.cached_tokens import told
from mpq.network.operand import operands_of


def quantized_cache(quantized: nn.Module) -> Cache:
    """An empty cache for one generation of a network that ``mpq.quantize`` made.

    Every token's keys and values are rounded once, when they leave the window that is kept, and
    nothing else is held of them. What is decoded with it, in steps of any length, is what a pass
    over the whole sequence gives, up to the order of sums: scales are of a token, or calibrated.
    Numbers are held in the network's own dtype, so that it saves no memory: it is the reference for
    caches that do.

    Args:
        quantized: Its attention has layers ``k_cache`` or ``v_cache``.

    Raises:
        ModelError: If it has none, or a cache that forgets: a sliding window.
    """
    layers: dict[int, CacheLayerMixin] = {}
    for name, part in quantized.named_modules():
        if not any(operands_of(part)):
            continue
        if vars(part).get("sliding_window") is not None:
            raise ModelError(
                f"{name!r} attends within a sliding window, which this cache does not: use the "
                "cache of transformers, whose keys and values are rounded whenever they are read"
            )
        layers[vars(part)["layer_idx"]] = _HeldLayer(part)
    if not layers:
        raise ModelError(
            "the network has no quantized key-value cache: quantize it with an assignment of a "
            "search with kv_cache (--kv-cache)"
        )
    count = max(layers) + 1
    return Cache(layers=[layers.get(index) or DynamicLayer() for index in range(count)])


class _HeldLayer(CacheLayerMixin):  # type: ignore[misc]
    """The cache of one attention, as transformers asks for it."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self._attention = attention
        self._stores: tuple[CacheStore, ...] = ()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        operands, tokens = operands_of(self._attention), tokens_kept_by(self._attention)
        pairs = zip(operands, (key_states, value_states), strict=True)
        self._stores = tuple(CacheStore(operand, tokens, x) for operand, x in pairs)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, ...]:
        if not self._stores:
            self.lazy_initialization(key_states, value_states)
        states, rotations = (key_states, value_states), rotations_of(self._attention)
        known = zip(self._stores, states, rotations, strict=True)
        cached = [(store, store.add(x, rotation)) for store, x, rotation in known]
        # As many tokens as there are, for who asks; our attention reads what is told of them.
        return tuple(told(store.whole, found) for store, found in cached)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return len(self._stores[0]) if self._stores else 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self._stores, self.is_initialized = (), False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        for store in self._stores:
            store.reorder(beam_idx)
