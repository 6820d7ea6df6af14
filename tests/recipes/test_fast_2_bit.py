"""Fast 2-bit: the groups of the largest range and curvature have 4 bits."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import mpq

SHAPES = ((12, 32), (8, 12), (3, 8))


class Net(nn.Module):
    """Without gradients, so that second moments are those of inputs alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layers = nn.ModuleList(nn.Linear(k, o) for o, k in SHAPES)
        self.eval()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, 3]``."""
        for layer in self.layers:
            x = layer(x).tanh()
        return x


def data() -> Iterator[Tensor]:
    """Inputs that differ by orders of magnitude."""
    generator = torch.Generator().manual_seed(3)
    yield torch.randn(64, 32, generator=generator) * torch.logspace(-1, 1, 32)


def salience() -> list[tuple[float, int, int, int]]:
    """Of every group: squared range x inverse d^2, for a bit; layer, row, and block of inputs."""
    x, found = next(data()).double(), []
    for i, layer in enumerate(Net().double().layers):
        assert isinstance(layer, nn.Linear)
        w, h = layer.weight.detach(), x.mT @ x / len(x)
        h = h + 0.01 * h.diagonal().mean() * torch.eye(len(h))
        order = h.diagonal().argsort(descending=True)
        inverse = torch.linalg.inv(h[order][:, order])
        d = torch.empty(len(h)).double()
        d[order] = torch.linalg.cholesky(inverse, upper=True).diagonal()
        for row in range(len(w)):
            for block, start in enumerate(range(0, w.shape[1], 16)):
                own, some = w[row, start : start + 16], d[start : start + 16]
                reach = own.max().clamp(min=0) - own.min().clamp(max=0)
                gain = reach.square() * some.square().reciprocal().sum() / len(own)
                found.append((float(gain), i, row, block))
        x = layer(x).tanh().detach()
    return sorted(found, reverse=True)


@pytest.mark.parametrize("count", [4, 11, 30])
def test_the_first_groups_have_4_bits(count: int) -> None:
    """As many as a limit on codes' bits holds, of all layers together."""
    first = {(i, row, block) for _, i, row, block in salience()[:count]}
    size = {0: 16, 1: 12, 2: 8}
    total = sum(2 * o * k for o, k in SHAPES) + sum(2 * size[i] for i, _, _ in first)

    found = mpq.search(
        mpq.Task(Net(), data, data, candidates=["w2zg16", "w4zg16"]),
        {"bit_operations": total * 24}, recipe="fast-2-bit",
    )  # fmt: skip

    for i, (rows, inputs) in enumerate(SHAPES):
        weight = found.assignment.precisions[f"layers.{i}"].weight
        blocks = -(-inputs // 16)
        at = {(row, block) for layer, row, block in first if layer == i}
        expected = [[4 if (r, b) in at else 2 for b in range(blocks)] for r in range(rows)]
        own = [[weight.number.bits] * blocks] * rows
        if weight.channels is not None:
            widths = [f.number.bits for f in weight.by_channel]
            cells = weight.channels.cells[:, ::16]
            own = [[widths[c] for c in row] for row in cells.tolist()]
        assert own == expected
