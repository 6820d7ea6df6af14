"""BAQ: bits of columns by its closed form, for one loss that all columns share."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpq

SHAPES = ((8, 6), (6, 8), (3, 6))


class Net(nn.Module):
    """Without gradients, so that second moments are those of inputs alone.

    The least number of every row is minus 1, 2 or so on, and the others are small: each bit more
    makes a step half as large.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        layers = [nn.Linear(k, o) for o, k in SHAPES]
        with torch.no_grad():
            for layer in layers:
                layer.weight.clamp_(-0.3, 0.3)
                layer.weight[:, 0] = -(1 + torch.arange(layer.out_features) % 3.0)
        self.layers = nn.ModuleList(layers)
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
    yield torch.randn(64, 6, generator=generator) * torch.logspace(-2, 1, 6)


def best(common: float) -> list[list[tuple[int, int]]]:
    """Of every column the bits that are worth it, and ``round(-1/2 log2(12 L d_j^2))``.

    With ranges and ``d`` in units of each layer's own. One bit more is worth 3/2 of the common loss
    ``L``: so much does it gain where both are even, as each quarters the loss.
    """
    x, found = next(data()).double(), []
    for layer in Net().double().layers:
        assert isinstance(layer, nn.Linear)
        w, h = layer.weight.detach(), x.mT @ x / len(x)
        h = h + 0.01 * h.diagonal().mean() * torch.eye(len(h))
        order = h.diagonal().argsort(descending=True)
        inverse = torch.linalg.inv(h[order][:, order])
        d = torch.empty(len(h)).double()
        d[order] = torch.linalg.cholesky(inverse, upper=True).diagonal()
        d = d / d.log().mean().exp()
        top = w.abs().amax(1, keepdim=True)
        ends = w.amax(1).clamp(min=0) - w.amin(1)
        w, top = (x / ends.square().mean().sqrt() for x in (w, top))
        lost = [w, w - w.sign() * top, *(2 * top / 2**b / 12**0.5 + 0 * w for b in range(2, 9))]
        worth = [e.square().mean(0) / d**2 + 1.5 * common * b for b, e in enumerate(lost)]
        s = (2 * top).square().mean()
        closed = (-0.5 * torch.log2(12 * common * d.square() / s)).round().clamp(2, 8)
        bits = torch.stack(worth).argmin(0)
        found.append([(int(b), int(c)) for b, c in zip(bits, closed, strict=True)])
        x = layer(x).tanh().detach()
    return found


@pytest.mark.parametrize("common", [1e-2, 3e-3, 1e-3])
def test_bits_of_columns(common: float) -> None:
    """Within the bits of a common loss: the closed form, but where 0 or 1 bits lose less."""
    expected = [[bits for bits, _ in layer] for layer in best(common)]
    assert {0, 1} < {bits for layer in expected for bits in layer}
    assert all(bits in (0, 1, closed) for layer in best(common) for bits, closed in layer)
    total = sum(o * sum(bits) for (o, _), bits in zip(SHAPES, expected, strict=True))

    found = mpq.search(
        mpq.Task(Net(), data, data, candidates=["w0", "wbinary", *(f"w{b}" for b in range(2, 9))]),
        {"bit_operations": total * 24}, recipe="baq",
    )  # fmt: skip

    for i, bits in enumerate(expected):
        weight = found.assignment.precisions[f"layers.{i}"].weight
        own = [weight.number.bits] * len(bits)
        if weight.channels is not None:
            widths = np.array([f.number.bits for f in weight.by_channel])
            own = widths[weight.channels.cells[0]].tolist()
        assert own == bits
