"""Key-value caches whose salient tokens have more bits, beside caches of one format.

    python benchmarks/salient_tokens.py llama > benchmarks/salient_tokens_llama.json
    python benchmarks/salient_tokens.py smollm2 > benchmarks/salient_tokens_smollm2.json

A token is salient by the attention that it gets, on average over the queries that see it (ZipCache,
He et al. 2024, arXiv:2405.14256), in the network as it came and over the whole sequence: more than
a runtime can know that has to decide when the token comes. Every attention gives a share of its
tokens the wider format and all others the narrower one, with a scale for every token of every head
in both. A row has the KL divergence in nats on fresh examples, beside that of one format with as
many bits of codes on average, with a 95 % interval by paired bootstrap over examples; and the same
with as many tokens that are drawn. Weights stay as they came. Needs what ``kv_cache.py`` does.
"""

import argparse
import json
import sys
from typing import Any, Final

import numpy as np
import torch
from kv_cache import NETWORKS
from rounding_search import ratio
from torch import Tensor, nn
from transformers import AttentionInterface

from mpq._support.arrays import Array
from mpq.quantization.cached_rows import quantize_cached
from mpq.quantization.numerics import OWN
from mpq.quantization.precision import Precision

MIXES: Final = ((4, 2, 0.5), (8, 2, 1 / 6), (8, 3, 0.2), (6, 3, 1 / 3), (16, 3, 1 / 13))
"""Bits of salient tokens, of all others, and the share of salient ones: 3 and 4 bits on average."""
NAME: Final = "salient_tokens"
Rule = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network", choices=list(NETWORKS))
    parser.add_argument("--sequences", type=int, default=64)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, _, batches = NETWORKS[given.network]()
    ids = torch.cat([batch["input_ids"] for batch in batches])[: given.sequences]
    original = said(model, ids)
    rule: Rule = {}
    AttentionInterface.register(NAME, lambda *args, **kwargs: attend(rule, *args, **kwargs))
    model.set_attn_implementation(NAME)
    rows = [row(model, ids, original, rule, *mix) for mix in MIXES]
    header = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__}
    print(json.dumps({**header, "num_sequences": len(ids), "rows": rows}, indent=1))


def row(
    model: nn.Module, ids: Tensor, original: list[Tensor], rule: Rule, *mix: float
) -> dict[str, Any]:
    """One mix, beside one format with as many bits, and beside tokens that are drawn."""
    high, low, share = mix
    bits = round(share * high + (1 - share) * low)
    losses = {}
    for chosen in ("salient", "drawn", "alike"):
        rule.clear()
        rule.update(high=high, low=low, share=share, chosen=chosen)
        if chosen == "alike":
            rule.update(high=bits, low=bits)
        rule["draws"] = torch.Generator().manual_seed(0)
        losses[chosen] = divergences(said(model, ids), original)
    found = {"high_bits": high, "low_bits": low, "share": share, "mean_bits": bits}
    found |= {"alike_kl_nats": float(losses["alike"].mean())}
    found |= {"salient": ratio(losses["salient"], losses["alike"])}
    found |= {"drawn": ratio(losses["drawn"], losses["alike"])}
    print(found, file=sys.stderr)
    return found


def said(model: nn.Module, ids: Tensor) -> list[Tensor]:
    """Logarithms of probabilities, of every sequence, in half precision."""
    with torch.no_grad():
        return [model(input_ids=x[None]).logits[0].log_softmax(-1).half() for x in ids]


def divergences(found: list[Tensor], original: list[Tensor]) -> Array:
    """``[N]`` nats, a mean over positions."""
    pairs = ((a.float(), b.float()) for a, b in zip(found, original, strict=True))
    return np.array([float((b.exp() * (b - a)).sum(-1).mean()) for a, b in pairs])


def attend(
    rule: Rule,
    _: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    __: Tensor | None,
    scaling: float,
    **___: Any,
) -> tuple[Tensor, None]:
    """Causal attention to keys and values of which some tokens have more bits."""
    sees = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
    groups = query.shape[1] // key.shape[1]
    weights = probabilities(query, key, groups, scaling, sees)
    if rule:
        is_salient = chosen_tokens(rule, weights, sees)
        key, value = (held(rule, x, is_salient) for x in (key, value))
        weights = probabilities(query, key, groups, scaling, sees)
    mixed = weights @ value.repeat_interleave(groups, dim=1)
    return mixed.transpose(1, 2).contiguous(), None


def probabilities(query: Tensor, key: Tensor, groups: int, scaling: float, sees: Tensor) -> Tensor:
    """``[1, H, Q, T]`` whom each query attends to."""
    scores = scaling * query @ key.repeat_interleave(groups, dim=1).transpose(2, 3)
    return scores.masked_fill(~sees, -torch.inf).softmax(dim=-1)


def chosen_tokens(rule: Rule, weights: Tensor, sees: Tensor) -> Tensor:
    """``[T]`` which tokens of one sequence have more bits, of all heads alike."""
    count = round(rule["share"] * len(sees))
    score = weights.sum(dim=(0, 1, 2)) / sees.sum(dim=0)
    if rule["chosen"] == "drawn":
        score = torch.rand(len(sees), generator=rule["draws"])
    return torch.zeros(len(sees), dtype=torch.bool).scatter(0, score.topk(count).indices, True)


def held(rule: Rule, x: Tensor, is_salient: Tensor) -> Tensor:
    """``[1, H, T, D]`` as a cache holds it."""
    rows = x.transpose(1, 2).flatten(2)
    wide, narrow = (rounded(rows, x.shape[1], int(rule[kind])) for kind in ("high", "low"))
    mixed = torch.where(is_salient[:, None], wide, narrow)
    return mixed.reshape(len(x), -1, x.shape[1], x.shape[3]).transpose(1, 2)


def rounded(rows: Tensor, num_heads: int, bits: int) -> Tensor:
    """With a scale for every token of every head; 16 bits are kept as they came."""
    if bits == 16:
        return rows
    tensor_format = Precision.parse(f"w32a{bits}d").activation
    return quantize_cached(rows, tensor_format, None, num_heads, OWN)


if __name__ == "__main__":
    main()
