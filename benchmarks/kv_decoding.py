"""Decoding with a quantized key-value cache, token by token, beside one pass over the sequence.

    python benchmarks/kv_decoding.py > benchmarks/kv_decoding.json

The small Llama and SmolLM2-135M in transformers, weights as they came, all keys and values at one
format. A row has the largest difference of logits between a pass over all tokens and the same
tokens decoded with ``mpq.backends.quantized_cache``, after a prompt of 8; and, for its size,
between that pass and the network's own. In float32 another order of sums may turn a number to the
next code; in float64 it does not. Needs the published network (MPQ_DATA, or ../shared/data) and
``loaders.py``.
"""

import json
import shlex
import sys
from collections.abc import Iterator
from typing import Any, Final

import torch
from kv_cache import llama
from loaders import loader
from torch import Tensor, nn

import mpq
from mpq.backends.quantized_cache import quantized_cache
from mpq.network.kept_tokens import CacheLayers, KeptTokens
from mpq.network.network import Network
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.precision import Precision

PROMPT: Final = 8
TOKENS: Final = 40
FORMATS: Final = (("a8d", KeptTokens()), ("a4d", KeptTokens()), ("a4d", KeptTokens(4, 8)))


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for name, (model, ids) in networks():
        for spelled, tokens in FORMATS:
            assignment = of_caches(model, ids, Precision.parse(f"w32{spelled}"), tokens)
            for dtype in (torch.float32, torch.float64):
                network: Any = mpq.quantize(model, assignment).to(dtype)
                row = {"network": name, "cache": spelled, "first": tokens.first}
                row |= {"window": tokens.window, "dtype": str(dtype).removeprefix("torch.")}
                row |= differences(network, model, ids)
                rows.append(row)
                print(*row.values(), file=sys.stderr)
    header = {"command": shlex.join(["python", *sys.argv]), "torch": torch.__version__}
    print(json.dumps({**header, "rows": rows}, indent=1))


def networks() -> Iterator[tuple[str, tuple[nn.Module, Tensor]]]:
    """Name, network, and a sequence."""
    model, _, fresh = llama()
    yield "llama", (model, fresh[0]["input_ids"][:1, :TOKENS])
    own = loader("smollm2")
    yield "smollm2", (own.model(), own.held_out(1, TOKENS, 1)[0])


def of_caches(
    model: nn.Module, ids: Tensor, precision: Precision, tokens: KeptTokens
) -> Assignment:
    """Every key-value cache at one precision, and nothing else."""
    found = Network.of(model, [{"input_ids": ids}], caches=CacheLayers(tokens)).layers
    layers = (AssignedLayer(x.name, x.kind, x.weight_shape, precision) for x in found if x.is_cache)
    return Assignment(tuple(layers), tokens_kept=tokens)


@torch.no_grad()
def differences(network: Any, model: Any, ids: Tensor) -> dict[str, float]:
    """Largest ones of logits."""
    whole, store = network(input_ids=ids).logits, quantized_cache(network)
    steps = [ids[:, :PROMPT], *ids[:, PROMPT:].split(1, dim=1)]
    decoded = torch.cat([network(input_ids=step, cache=store).logits for step in steps], dim=1)
    plain = model(input_ids=ids).logits
    return {
        "decoded": float((decoded - whole).abs().max()),
        "rounded": float((whole - plain).abs().max()),
        "largest_logit": float(whole.abs().max()),
    }


if __name__ == "__main__":
    main()
