"""Bytes of a key-value cache, beside sums by hand."""

from dataclasses import replace
from typing import Any

import pytest

from mpq.errors import InputError
from mpq.hardware_profiles import Pricing, load_device
from mpq.network.layer import Layer
from mpq.quantization.kv_cache import KVCache
from mpq.quantization.precision import Precision

LINEAR = Layer("q", "linear", (8, 8), 8, (12, 8), (12, 8), 96, 96, 768)
KEYS = Layer(
    "a.k_cache", "k_cache", (2, 16, 0), 2, (12, 32), (12, 32), 384, 384, 0, original_bits=16
)
ORIGINAL, HALF, TOKEN, CHANNEL = map(Precision.parse, ("w32a32", "w32a16", "w32a4d", "w32a4c"))


def prices(layer: Layer = KEYS, **options: Any) -> list[float]:
    """Of one layer, at the four precisions."""
    cache = KVCache(**{"tokens": 100, **options})
    table = Pricing((LINEAR, layer), kv_cache=cache).table(
        "kv_cache_bytes", (ORIGINAL, HALF, TOKEN, CHANNEL)
    )
    assert not table.values[0].any()
    return [float(x) for x in table.values[1]]


def test_every_token_has_codes_and_scales_of_its_own() -> None:
    """100 tokens of two heads of 16 numbers, whose scales and zero points take 20 bits a head."""
    whole = 100 * 32 * 16 / 8
    assert prices() == [whole, whole, 100 * (32 * 4 + 2 * 20) / 8, (100 * 128 + 32 * 36) / 8]


def test_sequences_are_as_many_caches_with_the_same_calibrated_scales() -> None:
    """Three sequences take three times as much, but for what was calibrated."""
    one, three = prices(), prices(batch_size=3)
    shared = 32 * 36 / 8
    assert three == [3 * one[0], 3 * one[1], 3 * one[2], 3 * (one[3] - shared) + shared]


@pytest.mark.parametrize("kept", [{"first": 4}, {"window": 4}, {"first": 1, "window": 3}])
def test_kept_tokens_have_the_bits_they_came_in(kept: dict[str, Any]) -> None:
    """Four of the hundred stay in half precision."""
    assert prices(**kept)[2] == 4 * 32 * 16 / 8 + 96 * (32 * 4 + 2 * 20) / 8


def test_no_more_is_kept_than_there_is() -> None:
    """A window longer than the context leaves nothing to be rounded."""
    assert prices(window=1000)[2] == prices()[0]


def test_a_sliding_window_bounds_the_context() -> None:
    """Ten tokens are held of a hundred."""
    assert prices(replace(KEYS, most_tokens=10)) == prices(tokens=10)


def test_both_together_are_one_budget() -> None:
    """Bytes of weights, with all that no precision changes, and bytes of the cache."""
    pricing = Pricing((LINEAR, KEYS), kv_cache=KVCache(100), constant_bytes=7)
    columns = (Precision.parse("w4a32"), TOKEN)

    table = pricing.table("weight_and_cache_bytes", columns)

    weights = 64 * 4 / 8 + 8 * 4
    assert table.values.tolist() == [[weights, 64 * 4], [6400.0, 2100.0]]
    assert table.constant == 7
    chosen = {"q": columns[0], "a.k_cache": TOKEN}
    assert pricing.amount("weight_and_cache_bytes", chosen) == weights + 2100 + 7
    assert pricing.amount("kv_cache_bytes", chosen) == 2100


@pytest.mark.parametrize("resource", ["weight_bytes", "effective_bits", "bit_operations", "flash"])
def test_a_cache_has_no_weight(resource: str) -> None:
    """Neither bytes nor operations of a layer that multiplies nothing by itself."""
    pricing = Pricing((LINEAR, KEYS), kv_cache=KVCache(100))
    assert not pricing.table(resource, (Precision.parse("w4a8"), TOKEN)).values[1].any()


def test_a_device_knows_of_no_cache() -> None:
    """Its seconds are those of the layers that have weights."""
    columns, device = (Precision.parse("w8a8"),), load_device("cortex-m7")
    alone = Pricing((LINEAR,), device).table("latency", columns)

    both = Pricing((LINEAR, KEYS), device, kv_cache=KVCache(100)).table("latency", columns)

    assert both.values.tolist() == [*alone.values.tolist(), [0.0]]


def test_without_a_cache_there_are_no_such_bytes() -> None:
    """It says what to give."""
    with pytest.raises(InputError, match=r"kv_cache_bytes needs a key-value cache.*--kv-tokens"):
        Pricing((LINEAR,)).table("kv_cache_bytes", (ORIGINAL,))
    assert "kv_cache_bytes" not in Pricing((LINEAR,)).resources
