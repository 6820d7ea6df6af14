"""Output channels by heads of attention, in networks whose heads are known."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.network.examples import Calibration
from mpq.network.heads import Heads, find_heads
from mpq.network.network import Network

HEADS, SIZE, TOKENS = 4, 3, 5
WIDTH = HEADS * SIZE


class Attention(nn.Module):
    """Queries of four heads, keys and values of fewer; ``how`` says what computes it.

    Args:
        how: ``fused``: torch's function; ``repeated``: after keys were repeated; ``products``: two
            products and a softmax; ``normed``: of queries that a norm over all heads has mixed.
        num_keys: Heads of keys and values.
    """

    def __init__(self, how: str, num_keys: int = 2) -> None:
        super().__init__()
        self.how, self.num_keys = how, num_keys
        self.q, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)
        self.k, self.v = (nn.Linear(WIDTH, num_keys * SIZE) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH if how == "normed" else SIZE)

    def forward(self, x: Tensor) -> Tensor:
        q = self.norm(self.q(x)) if self.how == "normed" else self.q(x)
        q, k, v = (t.unflatten(-1, (-1, SIZE)).transpose(1, 2) for t in (q, self.k(x), self.v(x)))
        q, k = (q, k) if self.how == "normed" else (self.norm(q), k.roll(1, dims=-1))
        if self.how == "fused":
            found = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            k, v = (t.repeat_interleave(HEADS // self.num_keys, dim=1) for t in (k, v))
            if self.how == "repeated":
                found = F.scaled_dot_product_attention(q, k, v)
            else:
                found = (q @ k.mT / SIZE**0.5).softmax(dim=-1) @ v
        return self.out(found.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Joined(nn.Module):
    """One layer for queries, keys and values, whose heads come first, and for three gates."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH + 3), nn.Linear(WIDTH + 3, 4)

    def forward(self, x: Tensor) -> Tensor:
        made, gates = self.qkv(x).split([3 * WIDTH, 3], dim=-1)
        q, k, v = made.unflatten(-1, (HEADS, 3, SIZE)).permute(3, 0, 2, 1, 4)
        mixed = (q @ k.mT).softmax(dim=-1) @ v
        return self.out(torch.cat([mixed.transpose(1, 2).flatten(2), gates], -1))  # type: ignore[no-any-return]


def found_in(net: nn.Module) -> Heads:
    torch.manual_seed(0)
    data = Calibration.of([torch.randn(2, TOKENS, WIDTH)])
    network = Network.of(net.eval(), data)
    return find_heads(network, next(network.batches(data)).slice(0, 1))


def in_blocks(count: int, size: int) -> list[int]:
    return [part for part in range(count) for _ in range(size)]


@pytest.mark.parametrize("how", ["fused", "repeated", "products"])
def test_heads_of_queries_that_share_keys(how: str) -> None:
    """Every query head is a part, and meets the head of keys and values that it shares."""
    found = found_in(Attention(how))

    assert found.parts["q"].tolist() == in_blocks(HEADS, SIZE)
    assert found.parts["k"].tolist() == found.parts["v"].tolist() == in_blocks(2, SIZE)
    assert set(found.parts) == {"q", "k", "v"}
    assert found.together == tuple((("q", h), ("k", h // 2), ("v", h // 2)) for h in range(HEADS))
    assert found.block("q") == SIZE


def test_queries_keys_and_values_of_one_layer() -> None:
    """Each has heads of its own; channels of no head are a part as well."""
    found = found_in(Joined())

    assert found.parts["qkv"].tolist() == in_blocks(3 * HEADS, SIZE) + [3 * HEADS] * 3
    assert found.together == tuple(
        tuple(("qkv", 3 * head + role) for role in range(3)) for head in range(HEADS)
    )
    assert found.block("qkv") == SIZE


def test_torchs_own_attention() -> None:
    """Opened into its projections; the other network has a layer between, where heads end."""
    attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.attention = nn.Linear(WIDTH, WIDTH), attention

        def forward(self, x: Tensor) -> Tensor:
            x = self.before(x)
            return self.attention(x, x, x, need_weights=False)[0]  # type: ignore[no-any-return]

    found = found_in(Net())

    assert set(found.parts) == {f"attention.{name}_proj" for name in "qkv"}
    assert len(found.together) == HEADS


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (Attention("normed"), {"k", "v"}),
        (Attention("fused", num_keys=1), {"q"}),
        (nn.Sequential(nn.Linear(WIDTH, 8), nn.Softmax(-1), nn.Linear(8, 3)), set()),
    ],
)
def test_what_has_no_heads(net: nn.Module, expected: set[str]) -> None:
    """Where a norm is over all of them; one head that all share; no attention at all."""
    found = found_in(net)

    assert set(found.parts) == expected
    names: Sequence[str] = [name for met in found.together for name, _ in met]
    assert set(names) == (expected if len(expected) > 1 else set())


def test_learned_queries_are_of_no_layer() -> None:
    """Only what layers make has heads."""

    class Net(Attention):
        def forward(self, x: Tensor) -> Tensor:
            q = self.q.weight.unflatten(-1, (-1, SIZE)).transpose(0, 1)[None]
            mixed = F.scaled_dot_product_attention(q, q, q)
            k, v = (
                layer(x).unflatten(-1, (-1, SIZE)).transpose(1, 2) for layer in (self.k, self.v)
            )
            mixed = mixed + F.scaled_dot_product_attention(q, k, v)
            return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    assert set(found_in(Net("fused", HEADS)).parts) == {"k", "v"}


def test_channels_of_a_head_that_are_no_neighbours() -> None:
    """Then each says for itself which head it has."""

    class Net(Attention):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (
                layer(x).unflatten(-1, (SIZE, -1)).permute(0, 3, 1, 2)
                for layer in (self.q, self.k, self.v)
            )
            mixed = F.scaled_dot_product_attention(q, k, v)
            return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    found = found_in(Net("fused", HEADS))

    assert found.parts["q"].tolist() == list(range(HEADS)) * SIZE
    assert found.block("q") == 1
