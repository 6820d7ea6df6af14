"""A Llama of 260,000 parameters on TinyStories: a model and two functions that yield data, for mpq.

Give mpq the trained weights with ``--weights ../shared/data/llm/stories260K.fp32.safetensors``;
run this file to measure the network as it is, in float. The environment variable ``MPQ_DATA``
names the data folder where it is not ``../shared/data``.

The classifier ``output`` and the embedding are one parameter (they are tied), which the weights
file holds once, as ``tok_embeddings.weight``. The missing ``output.weight`` is no error to
``safetensors.torch.load_model``, which knows that the two names share a tensor. With
``load_state_dict``, copy the entry first, or strict loading refuses the file. Whoever rounds
``output.weight`` in place rounds the embedding too.

Reference: Touvron et al. (2023), LLaMA: open and efficient foundation language models.
arXiv:2302.13971.
"""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.nn import functional as F

DATA = Path(
    os.environ.get("MPQ_DATA") or Path(__file__).resolve().parents[1].parent / "shared" / "data"
)
BATCH_SIZE = 16
CONTEXT = 128  # tokens per sequence


@dataclass(frozen=True)
class Config:
    """The sizes of a Llama, under the names of ``config.json``."""

    dim: int
    hidden: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab: int
    max_seq: int
    shared_classifier: bool
    norm_eps: float
    rope_theta: float

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.dim // self.n_heads


class Attention(nn.Module):
    """Causal self-attention in which several query heads share one key and value head."""

    def __init__(self, config: Config) -> None:
        """Make the four linear layers."""
        super().__init__()
        kv_dim = config.n_kv_heads * config.head_dim
        self.wq = nn.Linear(config.dim, config.dim, bias=False)
        self.wk = nn.Linear(config.dim, kv_dim, bias=False)
        self.wv = nn.Linear(config.dim, kv_dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)
        self.head_dim = config.head_dim
        self.queries_per_key = config.n_heads // config.n_kv_heads

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map ``x [N, T, dim]``, with a rotation ``[T, head_dim / 2]``, to ``[N, T, dim]``."""
        q = rotate(self._heads(self.wq(x)), cos, sin)
        k = rotate(self._heads(self.wk(x)), cos, sin).repeat_interleave(self.queries_per_key, 1)
        v = self._heads(self.wv(x)).repeat_interleave(self.queries_per_key, 1)
        # Written out, because PyTorch's fused attention cannot be differentiated twice, which
        # estimators that read the Hessian need.
        scores = q @ k.transpose(-2, -1) / self.head_dim**0.5  # [N, heads, T, T]
        future = torch.ones_like(scores, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        out: Tensor = self.wo((weights @ v).transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        return x.view(n, t, -1, self.head_dim).transpose(1, 2)  # [N, heads, T, head_dim]


class FeedForward(nn.Module):
    """The gated feed-forward network SwiGLU."""

    def __init__(self, config: Config) -> None:
        """Make the three linear layers."""
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.hidden, bias=False)
        self.w2 = nn.Linear(config.hidden, config.dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, T, dim]`` to ``[N, T, dim]``."""
        out: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


class Block(nn.Module):
    """Attention and a feed-forward network, each on normalised input and beside a shortcut."""

    def __init__(self, config: Config) -> None:
        """Make one of the network's ``n_layers`` blocks."""
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map ``x [N, T, dim]``, with a rotation ``[T, head_dim / 2]``, to ``[N, T, dim]``."""
        x = x + self.attention(self.attention_norm(x), cos, sin)
        out: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return out


class Llama(nn.Module):
    """A decoder that predicts the next token at every position."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: Config) -> None:
        """Make the network with random weights, tied where the configuration says so."""
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab, bias=False)
        if config.shared_classifier:
            self.output.weight = self.tok_embeddings.weight
        angles = rotary_angles(config)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids ``[N, T]`` to logits ``[N, T, vocab]``, with ``T`` at most ``max_seq``."""
        length = tokens.shape[1]
        x = self.tok_embeddings(tokens)
        for block in self.layers:
            x = block(x, self.cos[:length], self.sin[:length])
        logits: Tensor = self.output(self.norm(x))
        return logits


def rotary_angles(config: Config) -> Tensor:
    """Return the angle, in radians, of each position and pair: ``[max_seq, head_dim / 2]``."""
    exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    return torch.outer(torch.arange(config.max_seq).float(), config.rope_theta**-exponents)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channels ``2i`` and ``2i + 1`` of ``x [N, heads, T, head_dim]`` as one plane."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def make_net() -> Llama:
    """Return the network in eval mode with random weights; the trained ones are in a file."""
    sizes = json.loads((DATA / "llm" / "config.json").read_text(encoding="utf-8"))
    return Llama(Config(**sizes)).eval()


def calibration() -> Iterator[tuple[Tensor, Tensor]]:
    """Yield 64 sequences of training stories: token ids ``[N, 128]`` int64 and the next ones."""
    return _batches("calib64", max_sequences=64)


def held_out() -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all 109 whole sequences of the held-out stories, in the form of :func:`calibration`."""
    return _batches("valid_excerpt")


def _batches(split: str, max_sequences: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    with np.load(DATA / "llm" / "tokens.npz") as arrays:
        ids = torch.from_numpy(arrays[split].astype(np.int64))
    # Side by side, across the ends of stories; the last, shorter sequence is left out.
    windows = ids.unfold(0, CONTEXT + 1, CONTEXT)[:max_sequences]  # [sequences, CONTEXT + 1]
    for window in torch.split(windows, BATCH_SIZE):
        yield window[:, :-1].contiguous(), window[:, 1:].contiguous()


@torch.no_grad()
def perplexity(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> float:
    """Return ``exp`` of the mean cross-entropy per token."""
    nats = [
        F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), reduction="none")
        for tokens, targets in batches
    ]
    return math.exp(torch.cat(nats).double().mean().item())


if __name__ == "__main__":
    net = make_net()
    load_model(net, DATA / "llm" / "stories260K.fp32.safetensors")
    found = {
        "calibration_perplexity": perplexity(net, calibration()),
        "held_out_perplexity": perplexity(net, held_out()),
    }
    print(json.dumps({"model": "llama_stories", **found}))
