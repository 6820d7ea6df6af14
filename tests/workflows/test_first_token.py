"""First tokens with activations a hundred times as large as all others, in a small transformer."""

import pytest
import torch
from torch import Tensor, nn

import mpq

VOCABULARY, WIDTH, LENGTH = 13, 16, 12


class Block(nn.Module):
    """Causal attention of one head, and an MLP; both read normalized numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](x)).chunk(3, dim=-1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed)
        hidden = nn.functional.gelu(self.up(self.norms[1](x)))
        out: Tensor = x + self.down(hidden)
        return out


class Sink(nn.Module):
    """Its first position is large in one channel of what the projection reads."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.project = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.register_buffer("sink", torch.zeros(LENGTH, WIDTH))
        self.sink: Tensor
        self.sink[0, 3] = size

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.project(self.words(tokens) + self.sink)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.norm(x))
        return out


def lost(size: float, text: str) -> float:
    """On held-out texts, all layers at one precision."""
    torch.manual_seed(0)
    net = Sink(size).eval()
    tokens = torch.randint(VOCABULARY, (64, LENGTH), generator=torch.Generator().manual_seed(1))
    task = mpq.Task(
        net, [tokens[:24], tokens[24:48]], [tokens[48:]], candidates=[text], rounding="nearest"
    )
    found = mpq.search(task, {"weight_bytes": 100_000}).assignment.metadata.measured_loss
    assert found is not None
    return found


@pytest.mark.parametrize("bits", [6, 8])
def test_outliers_of_first_tokens_cost_the_others_nothing(bits: int) -> None:
    """A range of both has few levels for all others; apart they lose no more than without."""
    without = lost(0.0, f"w8a{bits}")
    together, apart = (lost(400.0, f"w8a{bits}{flag}") for flag in ("", "f"))

    assert together > 5 * without
    assert apart < together / 5
