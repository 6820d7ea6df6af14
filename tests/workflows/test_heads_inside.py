"""Searches whose layers are divided by heads of attention."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mpq
from mpq.errors import InputError
from mpq.workflows.heads_inside import heads_of
from mpq.workflows.setup import Prepared

HEADS, SIZE = 4, 4


class Net(nn.Module):
    """Attention whose four query heads share two of keys and values, some of which matter more."""

    def __init__(self) -> None:
        super().__init__()
        width = HEADS * SIZE
        self.q, self.out = nn.Linear(width, width), nn.Linear(width, 6)
        self.k, self.v = (nn.Linear(width, width // 2) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, 6]``."""
        q, k, v = (
            layer(x).unflatten(-1, (-1, SIZE)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.out(mixed.transpose(1, 2).flatten(2).mean(dim=1))  # type: ignore[no-any-return]


def network() -> nn.Module:
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        net.v.weight.mul_(torch.tensor([0.05, 3.0]).repeat_interleave(SIZE)[:, None])
        net.out.weight.mul_(3)
    return net


def data() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    yield from (torch.randn(8, 5, HEADS * SIZE, generator=generator) for _ in range(3))


@cache
def searched(split: str) -> mpq.SearchResult:
    task = mpq.Task(
        network(), list(data()), list(data()),
        candidates=["w2", "w4", "w8"], rounding="nearest", split=split,
    )  # fmt: skip
    return mpq.search(task, {"weight_bytes": "1x:w4"})


def bits(found: mpq.SearchResult, name: str) -> list[int]:
    """Of every channel."""
    weight = found.assignment.precisions[name].weight
    count = len(network().get_parameter(f"{name}.weight"))
    if weight.channels is None:
        return [weight.number.bits] * count
    return [weight.channels.numbers[column].bits for column in weight.channels.columns]


@pytest.mark.parametrize("split", ["heads", "heads:tied"])
def test_heads_have_bits_of_their_own(split: str, tmp_path: Path) -> None:
    """All channels of one have the same; saved, read and evaluated as it was found."""
    found = searched(split)

    found.save(tmp_path)

    for name in "qkv":
        own = torch.tensor(bits(found, name)).view(-1, SIZE)
        assert (own == own[:, :1]).all()
    assert any(found.assignment.precisions[name].weight.channels for name in "qkv")
    assert found.assignment.precisions["out"].weight.channels is None
    again = mpq.load(tmp_path)
    assert again.assignment == found.assignment
    assert again.problem.precisions_of(again.columns) == found.assignment.precisions
    assert again.problem.ties == found.problem.ties
    lost = mpq.evaluate(network(), again.assignment, list(data()))["quantized"].divergence
    assert lost == pytest.approx(found.measured.divergence, rel=1e-6)
    (budget,) = found.problem.budgets
    assert found.comparison("result").costs["weight_bytes"] <= budget.limit


def test_tied_heads_share_their_bits() -> None:
    """Two query heads, and the head of keys and values that they share."""
    found = searched("heads:tied")

    q, k, v = (bits(found, name)[::SIZE] for name in "qkv")
    assert k == v
    assert q == [k[0], k[0], k[1], k[1]]
    assert found.problem.ties == (
        ("q[0]", "q[1]", "k[0]", "v[0]"), ("q[2]", "q[3]", "k[1]", "v[1]"),
    )  # fmt: skip
    free = searched("heads")
    assert not free.problem.ties
    least, lost = (x.problem.loss_of(x.columns) for x in (free, found))
    assert least <= lost + 1e-12


def test_no_attention_is_said_at_once() -> None:
    """Before anything takes long."""
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    task = mpq.Task(net, [torch.randn(8, 4)] * 2, candidates=["w2", "w8"], split="heads")

    with pytest.raises(InputError, match="no attention with more than one was found"):
        mpq.search(task, {"effective_bits": "1x:w8"})

    assert heads_of(Prepared.untransformed(task), None) is None
