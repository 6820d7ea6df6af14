"""Bytes of a key-value cache, beside sums by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mpq.errors import InputError
from mpq.hardware_profiles import Pricing, Workload, load_device
from mpq.network.layer import Layer
from mpq.quantization.kv_cache import KVCache
from mpq.quantization.precision import Precision

LINEAR = Layer("q", "linear", (8, 8), 8, (12, 8), (12, 8), 96, 96, 768)
KEYS = Layer(
    "a.k_cache", "k_cache", (2, 16, 0), 2, (12, 32), (12, 32), 384, 384, 0, original_bits=16
)
READ = replace(KEYS, query_heads=64)
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


@pytest.mark.parametrize("phase", [None, "prefill"])
def test_only_a_token_that_is_decoded_reads_a_cache(phase: str | None) -> None:
    """Else seconds are those of the layers that have weights."""
    columns, on = (Precision.parse("w8a8"),), (load_device("nvidia-t4"), Workload(phase=phase))
    alone = Pricing((LINEAR,), *on).table("latency", columns)

    both = Pricing((LINEAR, READ), *on, kv_cache=KVCache(100)).table("latency", columns)

    assert both.values.tolist() == [*alone.values.tolist(), [0.0]]


def test_a_decoded_token_waits_for_the_cache_or_its_products() -> None:
    """Three sequences on a T4, by its datasheet: 320 GB/s, and 65 TFLOPS in fp16."""
    values = replace(READ, name="a.v_cache", kind="v_cache")
    cache = KVCache(32768, batch_size=8)
    on = load_device("nvidia-t4"), Workload(batch_size=3, phase="decode")

    keys, other = (
        Pricing((LINEAR, layer), *on, kv_cache=cache)
        .table("latency", (ORIGINAL, TOKEN, CHANNEL))
        .values[1]
        for layer in (READ, values)
    )

    products = 2 * 3 * 64 * 16 * 32768 / 65e12
    read = np.array([3 * 32768 * 32 * 2, 3 * 32768 * 21, 3 * 32768 * 16 + 144]) / 320e9
    np.testing.assert_allclose(other, np.maximum(read, products))
    np.testing.assert_allclose(keys, other + 2.7e-6)


def test_energy_of_a_decoded_token_adds_reading_and_products() -> None:
    """60 pJ a byte and 2.154 pJ a product; a sliding window bounds both."""
    layer, on = replace(READ, most_tokens=50), Workload(phase="decode")
    pricing = Pricing((LINEAR, layer), load_device("nvidia-t4"), on, kv_cache=KVCache(100))

    joules = pricing.table("energy", (TOKEN,)).values[1, 0]

    assert joules == pytest.approx(64 * 16 * 50 * 2.154e-12 + 50 * 21 * 6e-11)
    assert pricing.amount("energy", {"q": ORIGINAL, "a.k_cache": TOKEN}) == pytest.approx(
        pricing.table("energy", (ORIGINAL,)).values[0, 0] + joules
    )


def test_a_device_without_floating_point_says_nothing_of_attention() -> None:
    """Its codes would have to be multiplied some other way; the search warns."""
    pricing = Pricing(
        (LINEAR, READ),
        load_device("bismo-pynq-z1"),
        Workload(phase="decode"),
        kv_cache=KVCache(100),
    )
    assert not pricing.decodes
    assert not pricing.table("latency", (Precision.parse("w8a8"),)).values[1].any()


def test_no_more_sequences_are_decoded_than_the_cache_holds() -> None:
    """It says how to give it as many."""
    with pytest.raises(InputError, match=r"4 sequences are decoded.*holds 1.*--kv-batch-size 4"):
        Pricing((LINEAR, KEYS), workload=Workload(4, phase="decode"), kv_cache=KVCache(100))


def test_without_a_cache_there_are_no_such_bytes() -> None:
    """It says what to give."""
    with pytest.raises(InputError, match=r"kv_cache_bytes needs a key-value cache.*--kv-tokens"):
        Pricing((LINEAR,)).table("kv_cache_bytes", (ORIGINAL,))
    assert "kv_cache_bytes" not in Pricing((LINEAR,)).resources
