"""KVQuant: bits of keys and values of a small Llama, by Fisher information of the data."""

from itertools import product
from math import ceil

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import mpq
from mpq.errors import InputError

pytest.importorskip("transformers")
BITS = (4, 3, 2)
PAIRS = list(product(BITS, BITS))


def affine(x: Tensor, bits: int, axes: tuple[int, ...], half: bool) -> Tensor:
    """To nearest, from the least to the largest over some axes, and 0."""
    low, high = x.amin(axes, keepdim=True).clamp(max=0), x.amax(axes, keepdim=True).clamp(min=0)
    scale = (high - low) / ((1 << bits) - 1)
    scale = scale.half().float() if half else scale
    zero: Tensor = (-low / scale).round()
    return (((x / scale).round() + zero).clamp(0, (1 << bits) - 1) - zero) * scale


def losses() -> dict[str, list[float]]:
    """Of all keys and of all values at each number of bits, the first token left out."""
    from tests.recipes.small_llama import data, model

    ((inputs, labels),) = data()
    net, kept = model(), dict[str, Tensor]()
    for name, module in net.named_modules():
        if name.endswith(("k_proj", "v_proj")):
            module.register_forward_hook(lambda _, __, y, name=name: kept.setdefault(name, y))
    logits = net(**inputs).logits
    loss = F.cross_entropy(logits.mT, labels, reduction="none").sum() / 9  # of 9 labels a text
    found = {"k": [0.0] * 3, "v": [0.0] * 3}
    for name, y in kept.items():
        (slope,) = torch.autograd.grad(loss, y, retain_graph=True)
        x, slope = (t.detach().unflatten(-1, (2, 8))[:, 1:] for t in (y, slope))  # [N, T, H, D]
        for i, bits in enumerate(BITS):
            of_keys = affine(x, bits, (0, 1), half=False)
            rounded = of_keys if "k_proj" in name else affine(x, bits, (3,), half=True)
            change = ((rounded - x) * slope).square().sum()
            found[name[-6]][i] += float(change)
    return found


def cache_bytes(keys: int, values: int) -> int:
    """Of 2 blocks with 2 heads of 8: 99 tokens in codes, the first in 32 bits, and scales."""
    of_keys = 2 * (99 * 8 * keys + 8 * (32 + keys))
    of_values = 2 * 99 * (8 * values + 16 + values)
    return 2 * sum(ceil((bits + 2 * 8 * 32) / 8) for bits in (of_keys, of_values))


def expected(limit: int) -> tuple[int, int]:
    """Of keys and values, the least loss within so many bytes."""
    found = losses()
    sums = {(k, v): found["k"][BITS.index(k)] + found["v"][BITS.index(v)] for k, v in PAIRS}
    return min((pair for pair in PAIRS if cache_bytes(*pair) <= limit), key=sums.__getitem__)


@pytest.mark.parametrize("pair", PAIRS[1:8:3])
def test_bits_of_keys_and_values(pair: tuple[int, int]) -> None:
    """Within what one pair of them takes."""
    from tests.recipes.small_llama import data, model

    task = mpq.Task(model(), data, data, kv_cache=mpq.KVCache(tokens=100))
    limit = cache_bytes(*pair)

    found = mpq.search(task, {"kv_cache_bytes": limit}, recipe="kvquant")

    chosen = {
        (name.rpartition(".")[2], str(p.activation.granularity.value), p.activation.number.bits)
        for name, p in found.assignment.precisions.items() if name.endswith("cache")
    }  # fmt: skip
    keys, values = expected(limit)
    assert chosen == {
        ("unrotated_k_cache", "per_input_channel", keys), ("v_cache", "per_token", values),
    }  # fmt: skip


def test_the_length_is_the_users() -> None:
    """Without it nothing is searched; a cache of the user's own stands."""
    from tests.recipes.small_llama import data, model

    with pytest.raises(InputError, match=r"recipe kvquant .*how many tokens.*--kv-tokens"):
        mpq.search(mpq.Task(model(), data), ["kv_cache_bytes=1MB"], recipe="kvquant")

    own = mpq.KVCache(tokens=100, candidates=["a8d", "a4d"])
    task = mpq.Task(model(), data, data, kv_cache=own, rules=mpq.Rules(allow={"lm_head": ["w8"]}))
    found = mpq.search(task, ["kv_cache_bytes=1MB"], recipe="kvquant")

    assert found.provenance.recipe is not None
    assert found.provenance.recipe.overrides == (
        "allow: lm_head=w8a32 instead of *k_cache=w32a4c,w32a3c,w32a2c,*v_cache=w32a4d,w32a3d,"
        "w32a2d",
        "kv_cache: w32a8d,w32a4d instead of w32a4c,w32a3c,w32a2c,w32a4d,w32a3d,w32a2d",
    )
