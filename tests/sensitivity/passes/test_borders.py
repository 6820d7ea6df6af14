"""Passes that keep what blocks read: the gradients of a plain pass, with less in memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpq._support.pages import can_stream
from mpq.errors import ModelError
from mpq.network.blocks import blocks_of
from mpq.network.mapped import streaming
from mpq.sensitivity.passes.borders import SHARE, kept_at_borders


class Block(nn.Module):
    """A residual block with a second, fixed input and an answer of several parts."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 24), nn.Linear(24, 6)

    def forward(self, x: Tensor, pair: tuple[Tensor, Any], scale: float = 1.0) -> Any:
        factor, _ = pair
        return {"x": x + scale * self.down(torch.tanh(self.up(x)) * factor), "pair": pair}


class Deep(nn.Module):
    """Three of them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        pair: Any = (torch.full((24,), 0.5), "constant")
        for block in self.blocks:
            found = block(x, pair, scale=0.7)
            x, pair = found["x"], found["pair"]
        return x


@pytest.fixture
def deep() -> Deep:
    """In float64, its parameters with gradients."""
    torch.manual_seed(0)
    return Deep().double()


def gradients(deep: Deep, x: Tensor, is_kept_at_borders: bool) -> tuple[list[Tensor], int]:
    """Of input and parameters; and how many numbers autograd held between the two passes."""
    held = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal held
        held += tensor.numel()
        return tensor

    x = x.clone().requires_grad_()
    blocks = blocks_of(deep) if is_kept_at_borders else ()
    with kept_at_borders(blocks, len(x)):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = deep(x).square().sum()
        loss.backward()
    assert x.grad is not None
    found = [x.grad, *(p.grad.clone() for p in deep.parameters() if p.grad is not None)]
    deep.zero_grad()
    return found, held


def test_gradients_are_those_of_a_plain_pass(deep: Deep) -> None:
    """Bit by bit, with less kept; forwards are the blocks' own again."""
    x = torch.randn(5, 6, dtype=torch.float64)

    plain, all_kept = gradients(deep, x, False)
    found, kept = gradients(deep, x, True)

    assert len(found) == len(plain) == 13
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
    assert kept < all_kept / 3
    assert all("forward" not in vars(block) for block in deep.blocks)


@pytest.mark.skipif(not can_stream(), reason="only Linux says which pages are a file's")
def test_what_is_much_of_the_memory_lies_in_files(
    deep: Deep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three blocks read 240 bytes each: the same gradients, with nothing of it kept by autograd."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    x = torch.randn(5, 6, dtype=torch.float64)
    with streaming(allowed=int(720 / SHARE)):
        expected, in_memory = gradients(deep, x, True)

    with streaming(allowed=int(720 / SHARE) - 24):
        found, in_files = gradients(deep, x, True)

    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    fixed = 24  # the second input of a block, which has no gradient, and is one for all
    assert in_memory - in_files == 3 * (30 + fixed)
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_reads_no_gradient(deep: Deep) -> None:
    """Its parameters get theirs all the same."""
    with kept_at_borders(blocks_of(deep), 5):
        deep(torch.randn(5, 6, dtype=torch.float64)).sum().backward()

    assert all(p.grad is not None for p in deep.parameters())


def test_without_gradients_a_block_runs_once(deep: Deep) -> None:
    """Nothing is kept for a backward pass that does not come."""
    calls: list[int] = []
    deep.blocks[0].register_forward_hook(lambda *_: calls.append(1))

    with kept_at_borders(blocks_of(deep), 5), torch.no_grad():
        found = deep(torch.zeros(5, 6, dtype=torch.float64))

    assert calls == [1]
    assert not found.requires_grad


def test_what_a_second_run_would_change_is_refused(deep: Deep) -> None:
    """A cache of keys and values, to which a block adds its own."""
    x = torch.zeros(5, 6, dtype=torch.float64)

    with (
        kept_at_borders(blocks_of(deep), 5),
        pytest.raises(ModelError, match="reads a object, which the first time may change"),
    ):
        deep.blocks[0](x, (torch.ones(24), object()))


def test_what_all_examples_share_is_refused(deep: Deep) -> None:
    """Its gradient for each example is lost where blocks are cut."""
    bias = torch.ones(24, dtype=torch.float64, requires_grad=True)
    x = torch.zeros(5, 6, dtype=torch.float64)

    with (
        kept_at_borders(blocks_of(deep), 5),
        pytest.raises(ModelError, match=r"computed once for all examples of a batch \(\(24,\)\)"),
    ):
        deep.blocks[0](x, (bias, None))
