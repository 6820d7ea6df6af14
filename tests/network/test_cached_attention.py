"""Keys and values of attention as layers: the same function, and each query sees what is kept."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpq.errors import InputError, ModelError
from mpq.network.cache_store import CacheStore
from mpq.network.cached_tokens import Cached, mask_of
from mpq.network.kept_tokens import CacheLayers, KeptTokens
from mpq.network.layer import KEYS, VALUES, weighted
from mpq.network.network import Network
from mpq.network.operand import CacheShape, Operand

transformers = pytest.importorskip("transformers", minversion="5")

KEPT = (KeptTokens(), KeptTokens(first=2), KeptTokens(window=3), KeptTokens(1, 4))


def llama(kind: str = "sdpa", **options: Any) -> Any:
    """Two blocks of four query heads, which share two heads of keys and values."""
    torch.manual_seed(0)
    plain = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, vocab_size=64, initializer_range=0.3,
        attn_implementation=kind, **plain | options,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def examples(length: int = 12) -> list[dict[str, Tensor]]:
    """Two batches of token ids."""
    draws = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(0, 64, (3, length), generator=draws)} for _ in range(2)]


def halving(kind: str = "k_cache", num_heads: int = 2, head_size: int = 4) -> Operand:
    """A layer that halves what it reads: a rounding that nobody takes for none."""
    found = Operand(CacheShape(kind, num_heads, head_size), torch.zeros(1))
    found.register_forward_pre_hook(lambda _, args: (args[0] / 2,))
    return found


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("tokens", KEPT, ids=str)
def test_caches_as_layers_change_nothing(kind: str, tokens: KeptTokens) -> None:
    """Where nothing is rounded, the network says what it said; the user's stays as it is."""
    model, data = llama(kind), examples()
    keys = list(model.state_dict())

    network = Network.of(model, data, caches=CacheLayers(tokens))

    with torch.no_grad():
        found, expected = network.module(**data[0]).logits, model(**data[0]).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert list(network.module.state_dict()) == list(model.state_dict()) == keys
    assert model.config._attn_implementation == kind
    assert not any(isinstance(part, Operand) for part in model.modules())


def test_every_attention_has_two_layers_without_weights() -> None:
    """They are named within it, read heads side by side, and take no byte."""
    model, data = llama(), examples()

    network, plain = Network.of(model, data, caches=CacheLayers()), Network.of(model, data)

    found = {x.name: x for x in network.layers if x.is_cache}
    names = [f"model.layers.{i}.self_attn.{kind}" for i in (0, 1) for kind in (KEYS, VALUES)]
    assert list(found) == names
    keys = found[names[0]]
    assert (keys.weight_shape, keys.input_shape, keys.num_weights) == ((2, 8, 0), (12, 16), 0)
    assert (keys.macs, keys.calls, keys.original_bits) == (0, 1, 32)
    assert network.constant_bytes == plain.constant_bytes
    assert [x.name for x in weighted(network.layers)] == [x.name for x in plain.layers]


def test_a_sliding_window_is_known() -> None:
    """How many tokens it keeps is said of the layer."""
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        hidden_size=32, intermediate_size=48, vocab_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=5,
    )  # fmt: skip
    model = transformers.MistralForCausalLM(config).eval()

    network = Network.of(model, examples(), caches=CacheLayers())

    assert [x.most_tokens for x in network.layers if x.is_cache] == [5, 5]


@pytest.mark.parametrize("tokens", KEPT, ids=str)
@pytest.mark.parametrize("is_additive", [False, True])
def test_every_query_sees_what_is_kept_for_it(tokens: KeptTokens, is_additive: bool) -> None:
    """Beside a loop over queries: the first tokens and its own window as they came, others not."""
    torch.manual_seed(0)
    keys, queries, length = torch.randn(2, 2, 9, 4), torch.randn(2, 2, 9, 4), 9
    cached = Cached.of(keys, halving(), tokens)
    causal = torch.ones(length, length).tril().bool()[None, None]
    additive = torch.zeros(causal.shape).masked_fill(~causal, -math.inf)

    mask = mask_of(cached, length, tokens, additive if is_additive else None)

    scores = queries @ cached.all.transpose(2, 3)
    scores = scores + mask if is_additive else scores.masked_fill(~mask, -math.inf)
    found = scores.softmax(dim=-1) @ cached.all
    for t in range(length):
        is_kept = [j < tokens.first or t - j < tokens.window for j in range(t + 1)]
        seen = torch.stack([keys[:, :, j] / (1 if is_kept[j] else 2) for j in range(t + 1)], dim=2)
        weights = (queries[:, :, t, None] @ seen.transpose(2, 3)).softmax(dim=-1)
        torch.testing.assert_close(found[:, :, t], (weights @ seen)[:, :, 0])


@pytest.mark.parametrize("tokens", KEPT, ids=str)
@pytest.mark.parametrize("steps", [(9,), (1,) * 9, (4, 1, 3, 1)], ids=str)
def test_what_comes_step_by_step_is_seen_alike(tokens: KeptTokens, steps: tuple[int, ...]) -> None:
    """A cache that rounds a token once shows every query what a pass over all shows it."""
    torch.manual_seed(0)
    keys = torch.randn(1, 2, 9, 4)
    store, whole, at = CacheStore(halving(), tokens, keys), Cached.of(keys, halving(), tokens), 0

    for count in steps:
        found, start = store.add(keys[:, :, at : at + count]), at
        at += count
        mask = mask_of(found, count, tokens, None)[0, 0]
        expected = mask_of(whole, 9, tokens, None)[0, 0, start:at]

        for query in range(count):
            seen = torch.cat([found.kept_at, found.held_at])[mask[query]]
            order = seen.argsort()
            numbers = found.all[:, :, mask[query]][:, :, order]
            places = torch.cat([whole.kept_at, whole.held_at])[expected[query]]
            known = whole.all[:, :, expected[query]][:, :, places.argsort()]
            assert seen[order].tolist() == list(range(start + query + 1))
            torch.testing.assert_close(numbers, known)
    assert len(store) == store.whole.shape[2] == 9


def test_gradients_go_through_what_is_rounded_alone() -> None:
    """The share of a layer's input is that of queries that see it as the cache holds it."""
    keys = torch.randn(1, 2, 6, 4, requires_grad=True)
    tokens, operand = KeptTokens(1, 2), halving()
    read: list[Tensor] = []
    operand.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    cached = Cached.of(keys, operand, tokens)

    mask = mask_of(cached, 6, tokens, None)
    (cached.all[0, 0, :, 0] * mask[0, 0].float()).sum().backward()

    assert read[0].shape == (1, 5, 8)
    assert keys.grad is not None
    # As it came a token is seen by its window, or by all; half as large by all later ones.
    assert keys.grad[0, 0, :, 0].tolist() == [6, 2 + 3 / 2, 2 + 2 / 2, 2 + 1 / 2, 2, 1]


def test_a_network_without_such_an_attention_is_refused() -> None:
    """It says what is looked for, and which option to leave out."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    with pytest.raises(ModelError, match=r"no attention was found.*--kv-cache"):
        Network.of(model, [torch.randn(3, 4)], caches=CacheLayers())


def test_an_encoder_has_no_cache() -> None:
    """It attends to later tokens as well: nothing is kept for them."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        vocab_size=64,
    )  # fmt: skip
    with pytest.raises(ModelError, match="a causal one"):
        Network.of(transformers.BertModel(config).eval(), examples(), caches=CacheLayers())


def test_examples_that_are_kept_as_a_whole_are_refused() -> None:
    """Every format would lose nothing on them."""
    with pytest.raises(ModelError, match="have 6 tokens, and the key-value cache keeps"):
        Network.of(llama(), examples(6), caches=CacheLayers(KeptTokens(2, 4)))


def test_kept_tokens_are_counted_from_0_on() -> None:
    """A number below means nothing."""
    with pytest.raises(InputError, match="0 or more; got window=-1"):
        KeptTokens(window=-1)


FAMILIES: dict[str, dict[str, Any]] = {
    "Mistral": {}, "Mixtral": {"num_local_experts": 2}, "Qwen2": {}, "Qwen3": {"head_dim": 8},
    "Gemma": {"head_dim": 8}, "Gemma2": {"head_dim": 8, "attn_implementation": "eager"},
    "Phi": {}, "GPT2": {"n_head": 4, "n_layer": 2, "n_embd": 32}, "OPT": {"ffn_dim": 48},
    "GPTNeoX": {}, "Granite": {},
    "GptOss": {"num_local_experts": 4, "num_experts_per_tok": 2, "attn_implementation": "eager"},
}  # fmt: skip
"""Models of transformers by the beginning of their classes' names, and what they are made with."""


def family(name: str) -> Any:
    """Two blocks of one of them, with random weights."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 48, "vocab_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip
    heads = {} if name in ("GPTNeoX", "OPT", "GPT2") else {"num_key_value_heads": 2}
    config = getattr(transformers, f"{name}Config")(**sizes | heads | FAMILIES[name])
    kind = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    return getattr(transformers, kind)(config).eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_models_of_transformers_have_caches(name: str) -> None:
    """With soft caps, sinks and sliding windows of theirs; of others the page says so."""
    model, data = family(name), examples()

    network = Network.of(model, data, caches=CacheLayers(KeptTokens(1, 3)))

    assert sum(layer.is_cache for layer in network.layers) == 4
    with torch.no_grad():
        torch.testing.assert_close(network.module(**data[0]).logits, model(**data[0]).logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_keys_are_found_before_their_rotation(name: str) -> None:
    """Rotated back and forth they are as they were; a network without it, or of a part, says so."""
    model, data = family(name), examples()

    if name in ("GPT2", "OPT", "Phi"):
        why = "cannot be undone" if name == "Phi" else "no cosines and sines"
        with pytest.raises(ModelError, match=f"{why}.*--kv-before-rotation"):
            Network.of(model, data, caches=CacheLayers(before_rotation=True))
        return
    network = Network.of(model, data, caches=CacheLayers(KeptTokens(1, 3), before_rotation=True))

    kinds = [layer.kind for layer in network.layers if layer.is_cache]
    assert kinds == ["unrotated_k_cache", "v_cache"] * 2
    with torch.no_grad():
        found, expected = network.module(**data[0]).logits, model(**data[0]).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["Mistral", "Qwen3", "GptOss", "Gemma2"])
def test_a_layer_reads_keys_as_they_were_made(name: str) -> None:
    """By the projection, or by the norm after it."""
    model, data = family(name), examples()
    network = Network.of(model, data, caches=CacheLayers(before_rotation=True))
    made, read = list[Tensor](), list[Tensor]()
    for path, part in network.module.named_modules():
        if path.endswith("k_norm" if name == "Qwen3" else "k_proj"):
            part.register_forward_hook(lambda _, __, output: made.append(output.flatten(2)))
        if isinstance(part, Operand) and part.is_unrotated:
            part.register_forward_pre_hook(lambda _, args: read.append(args[0]))

    with torch.no_grad():
        network.module(**data[0])

    assert len(made) == len(read) == 2
    torch.testing.assert_close(read, made, atol=1e-5, rtol=1e-4)


def test_positions_are_forgotten_after_a_pass() -> None:
    """No tensor of a batch stays in our copy."""
    network = Network.of(llama(), examples(), caches=CacheLayers(before_rotation=True))
    kept = [vars(part).get("_mpq_positions") for part in network.module.modules()]
    assert set(kept) == {None}
