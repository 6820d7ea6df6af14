"""COMET: bits of blocks of a tiny network, by Fisher's information of each number."""

import numpy as np
import torch
from torch import Tensor

import mpq
from tests.recipes.reference import LAYERS, least, tiny

BLOCK, BITS = 4, (4, 8)
X = torch.randn(4000, 6, generator=torch.Generator().manual_seed(2)) * 2


def error(x: Tensor, bits: int) -> Tensor:
    """Of rows with a scale and a zero point each."""
    low, high = x.amin(1, keepdim=True).clamp(max=0), x.amax(1, keepdim=True).clamp(min=0)
    scale: Tensor = (high - low) / (2**bits - 1)
    zero: Tensor = (-low / scale).round()
    return (((x / scale).round() + zero).clamp(0, 2**bits - 1) - zero) * scale - x


def fisher(layer: int, read: Tensor) -> Tensor:
    """``[N, K]`` of what a layer reads, of probabilities softened by 1.5."""
    read = read.clone().requires_grad_()
    logits = tiny()[layer:](read)
    p, found = (logits / 1.5).softmax(1).detach(), torch.zeros_like(read)
    for c in range(3):
        one = torch.eye(3)[c] - p
        (g,) = torch.autograd.grad((logits * one).sum(), read, retain_graph=True)
        found += p[:, c, None] * g**2
    return found


def test_bits_of_blocks_of_a_tiny_network() -> None:
    """The least sum over blocks, of all choices."""
    net, losses, costs = tiny(), [], []
    for name in map(int, LAYERS):
        read = net[:name](X).detach()
        for start in range(0, read.shape[1], BLOCK):
            some = slice(start, start + BLOCK)
            weights = fisher(name, read)[:, some]
            losses.append([float((error(read[:, some], b) ** 2 * weights).sum()) for b in BITS])
            size = read[:, some].shape[1] * len(net[name].weight)  # type: ignore[arg-type]
            costs.append([4.0 * size * b for b in BITS])
    loss, cost = np.array(losses), np.array(costs)
    limit = 1.3 * cost[:, 0].sum()
    task = mpq.Task(net, [X[:2000], X[2000:]], [X[:16]], candidates=["w4a4dg4", "w4a8dg4"],
                    split="activations:4", rounding="nearest")  # fmt: skip

    found = mpq.search(task, {"bit_operations": limit}, recipe="comet", keep=["rounding"])

    reads = [found.assignment.precisions[name].activation for name in LAYERS]
    bits = [b for x in reads for b in ([x.number.bits] * 2 if x.channels is None else
            [x.channels.numbers[c].bits for c in x.channels.codes])]  # fmt: skip
    assert bits == [BITS[c] for c in least(loss, cost, limit)]
