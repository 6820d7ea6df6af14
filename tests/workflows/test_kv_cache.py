"""Key-value caches among the layers of a search: found, priced, measured, saved, and used."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mpq
from mpq.errors import InputError
from mpq.network.operand import Operand
from mpq.sensitivity import ESTIMATORS
from mpq.workflows.setup import Prepared

transformers = pytest.importorskip("transformers", minversion="5")

KV_CACHE = mpq.KVCache(1000, ["a8d", "a4d", "a2d", "a4c"], first=1, window=2)
LIMITS = ["weight_and_cache_bytes=0.7x:w8a8", "kv_cache_bytes=40KB"]


def llama() -> Any:
    """Two blocks with random weights."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, vocab_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def examples(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Batches of four sequences."""
    draws = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(0, 64, (4, 16), generator=draws)} for _ in range(count)]


def task(**options: Any) -> mpq.Task:
    """With weights to nearest, as it is caches that are asked about."""
    known: dict[str, Any] = {
        "candidates": ["w4a32", "w8a32"], "kv_cache": KV_CACHE, "rounding": "nearest",
    }  # fmt: skip
    return mpq.Task(llama(), examples(3, 1), examples(2, 2), **known | options)


@cache
def found() -> mpq.SearchResult:
    """A search with both budgets."""
    return mpq.search(task(), LIMITS, sensitivity="sketch")


def caches(precisions: dict[str, mpq.Precision]) -> dict[str, mpq.Precision]:
    """Those that are chosen for keys and values."""
    return {name: p for name, p in precisions.items() if name.endswith("_cache")}


def test_a_search_keeps_both_budgets_with_the_candidates_of_each() -> None:
    """Caches take what they may, other layers what these may."""
    result = found()

    columns = result.solution.columns
    assert columns is not None
    assert all(budget.is_met(columns) for budget in result.problem.budgets)
    chosen = result.assignment.precisions
    assert len(caches(chosen)) == 4
    assert set(caches(chosen).values()) <= set(KV_CACHE.precisions)
    assert {p.activation.is_exact for n, p in chosen.items() if n not in caches(chosen)} == {True}


def test_a_saved_assignment_does_what_was_measured(tmp_path: Path) -> None:
    """Formats, ranges of channels and kept tokens are in the file; the network has the layers."""
    found().save(tmp_path)

    loaded = mpq.load(tmp_path).assignment
    measured = mpq.evaluate(llama(), loaded, examples(2, 2))["quantized"].divergence

    assert loaded == mpq.Assignment.load(tmp_path)
    assert (loaded.tokens_kept.first, loaded.tokens_kept.window) == (1, 2)
    assert measured == pytest.approx(found().measured.divergence, rel=1e-6)
    assert sum(isinstance(m, Operand) for m in mpq.quantize(llama(), loaded).modules()) == 4


@pytest.mark.parametrize("name", sorted(e.name for e in ESTIMATORS))
def test_an_estimator_prices_caches_or_is_refused(name: str) -> None:
    """Fewer bits cost more, at the same scales; no estimator says that they cost nothing."""
    few = mpq.Rules(include=["*.0.*_cache", "*.0.*.q_proj"])
    estimator = ESTIMATORS.build(name)
    asked = task(kv_cache=mpq.KVCache(9, ["a6d", "a2d"]), rules=few)
    if not estimator.prices_caches:
        with pytest.raises(InputError, match=f"estimator '{name}' prices weights"):
            mpq.search(asked, ["kv_cache_bytes=1MB"], sensitivity=estimator)
        return

    table = estimator.estimate(Prepared.of(asked).asked).table

    rows = [row for row, layer in enumerate(table.layers) if layer.endswith("_cache")]
    six, two = (table.index_of(mpq.Precision.parse(f"w32a{bits}d")) for bits in (6, 2))
    assert (table.values[rows, two] > table.values[rows, six]).all()
    assert (table.values[rows, six] > 0).all()


def test_the_sketch_prices_what_is_measured() -> None:
    """Where little is lost, to within a half, kept tokens included."""
    on = Prepared.of(task(kv_cache=mpq.KVCache(9, ["a6d", "a5d"], first=1, window=3))).asked

    tables = (ESTIMATORS.build(name).estimate(on).table for name in ("sketch", "measured"))
    sketch, measured = tables

    rows = [row for row, layer in enumerate(sketch.layers) if layer.endswith("_cache")]
    ratio = sketch.values[rows][:, 2:] / measured.values[rows][:, 2:]
    assert np.abs(np.log(ratio)).max() < np.log(2)
    assert np.abs(np.log(ratio).mean()) < np.log(1.5)


def test_uniform_precisions_leave_caches_what_they_may_take() -> None:
    """A row of the comparison is called by what all other layers have."""
    rows = {row.label: row.costs for row in found().comparisons}
    assert list(rows) == ["original", "result", "w4a32", "w8a32"]
    least = 2 * 2 * (3 * 16 * 4 + 997 * (16 * 8 + 2 * 24) / 8)
    assert rows["w4a32"]["kv_cache_bytes"] == rows["w8a32"]["kv_cache_bytes"] == least
    assert rows["original"]["kv_cache_bytes"] == 2 * 2 * 1000 * 16 * 4


@cache
def decoder(first: int, window: int, before_rotation: bool = False) -> Any:
    """A quantized network in double precision."""
    kinds = ["a4d", "a4c", "a3d"]
    formats = mpq.KVCache(9, kinds, 1, first, window, before_rotation)
    asked = task(kv_cache=formats, candidates=["w8a32"])
    result = mpq.search(asked, ["kv_cache_bytes=1MB"], sensitivity="sketch")
    return mpq.quantize(llama(), result.assignment).double()


@pytest.mark.parametrize("steps", [(1,) * 16, (9, 3, 1, 1, 2)], ids=str)
@pytest.mark.parametrize("kept", [(0, 0), (2, 0), (1, 4), (0, 0, True), (1, 4, True)], ids=str)
def test_decoding_with_a_cache_is_the_pass_over_all(
    steps: tuple[int, ...], kept: tuple[Any, ...]
) -> None:
    """Every token is rounded once; in double precision no other sum turns a number to its next."""
    from mpq.backends.quantized_cache import quantized_cache

    network: Any = decoder(*kept)
    ids, store, at, parts = examples(1, 3)[0]["input_ids"], quantized_cache(network), 0, []

    with torch.no_grad():
        whole = network(input_ids=ids).logits
        for count in steps:
            said = network(ids[:, at : at + count], **{_cache_argument(network): store})
            parts.append(said.logits)
            at += count

    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-9, rtol=0)
    assert store.get_seq_length() == 16


def _cache_argument(network: Any) -> str:
    """Its name has changed in transformers."""
    return "cache" if "cache" in network.forward.__annotations__ else "past_key_values"


def test_generating_takes_a_cache_of_ours_or_any_other() -> None:
    """With transformers' own, keys and values are rounded whenever they are read: alike."""
    from mpq.backends.quantized_cache import quantized_cache

    network: Any = mpq.quantize(llama(), found().assignment)
    ids = examples(1, 3)[0]["input_ids"][:, :6]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}

    ours = network.generate(ids, **{_cache_argument(network): quantized_cache(network)}, **options)

    assert torch.equal(ours, network.generate(ids, **options))


def test_keys_before_their_rotation_are_rounded_as_the_projection_makes_them(
    tmp_path: Path,
) -> None:
    """Beside the network itself, whose projections of keys round their outputs in a hook."""
    from mpq.quantization.cached_rows import quantize_cached
    from mpq.quantization.numerics import OWN

    held = mpq.Precision.parse("w32a4d").activation
    formats = mpq.KVCache(9, ["a4d"], before_rotation=True)
    asked = task(kv_cache=formats, rules=mpq.Rules(include=["*unrotated_k_cache"]))
    result = mpq.search(asked, ["kv_cache_bytes=1MB"], sensitivity="sketch")
    result.save(tmp_path)
    assert mpq.load(tmp_path).assignment == result.assignment
    ids, plain = examples(1, 3)[0]["input_ids"], llama()
    for path, part in plain.named_modules():
        if path.endswith("k_proj"):
            part.register_forward_hook(lambda _, __, x: quantize_cached(x, held, None, 2, OWN))

    with torch.no_grad():
        found = mpq.quantize(llama(), result.assignment)(input_ids=ids).logits
        expected = plain(input_ids=ids).logits

    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_other_caches_know_no_positions_of_earlier_tokens() -> None:
    """Those of transformers have rotated keys alone: it says which cache does."""
    network: Any = decoder(0, 0, before_rotation=True)
    with pytest.raises(InputError, match="1 of 7 tokens are known: decode with"):
        network.generate(examples(1, 3)[0]["input_ids"][:, :6], max_new_tokens=2, pad_token_id=0)


def test_a_cache_is_for_a_network_that_has_one() -> None:
    """It says where one comes from."""
    from mpq.backends.quantized_cache import quantized_cache

    with pytest.raises(InputError, match="search with kv_cache"):
        quantized_cache(llama())


def test_processes_that_do_not_share_ours_are_refused() -> None:
    """Others know no attention of ours."""
    with pytest.raises(InputError, match="leave out --workers ray"):
        task(workers="ray")


def decoding(**options: Any) -> mpq.Task:
    """One new token at a time, on a device that is estimated."""
    known: dict[str, Any] = {"device": "nvidia-t4", "candidates": ["w4a8", "w8a8"]}
    return task(**known | {"workload": mpq.Workload(phase="decode")} | options)


def test_a_latency_of_decoding_counts_the_cache() -> None:
    """Where it binds, keys and values get fewer bits."""
    asked = decoding(kv_cache=mpq.KVCache(1 << 20, ["a8d", "a4d"]))

    found = mpq.search(asked, ["latency=0.9x:w8a8"], sensitivity="sketch")

    bits = {p.activation.number.bits for p in caches(found.assignment.precisions).values()}
    assert 4 in bits


def test_a_latency_without_the_cache_is_said() -> None:
    """Of a pass as it was traced it is not known."""
    with pytest.warns(UserWarning, match="latency leave out the key-value cache"):
        mpq.search(decoding(workload=mpq.Workload()), ["latency=1s"], sensitivity="sketch")


def test_a_cache_of_more_sequences_than_are_decoded_is_said() -> None:
    """Bytes are of all of them, seconds of those that are decoded."""
    with pytest.warns(UserWarning, match="holds 8 sequences.*latency are of decoding 1 at once"):
        mpq.search(
            decoding(kv_cache=mpq.KVCache(9, batch_size=8)), ["latency=1s"], sensitivity="sketch"
        )
