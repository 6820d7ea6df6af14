"""A tiny network, and what references of recipes are made of: torch and numpy, nothing of mpq."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, product

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Floats = npt.NDArray[np.float64]
LAYERS = ("0", "2", "4", "6", "8")


def tiny() -> nn.Sequential:
    """Five linear layers, of 42 to 56 weights each."""
    torch.manual_seed(0)
    sizes = (6, 8, 7, 8, 7, 3)
    parts = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.Tanh())]
    net = nn.Sequential(*parts[:-1]).eval()
    with torch.no_grad():  # layers of the same size would weigh the same
        for name, factor in zip(LAYERS, (3.0, 1.5, 0.7, 2.0, 4.0), strict=True):
            net.get_submodule(name).weight.mul_(factor)  # type: ignore[operator]
    return net


def data() -> Iterator[tuple[Tensor, Tensor]]:
    """Two batches of 16 examples with labels, most of them those that the network says."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        x = torch.randn(16, 6, generator=generator)
        labels = tiny()(x).argmax(dim=1)
        labels[:3] = torch.randint(3, (3,), generator=generator)
        yield x, labels


def weights_of(net: nn.Module, layers: Sequence[str] = LAYERS) -> list[Tensor]:
    """Weights of some layers."""
    return [net.get_parameter(f"{name}.weight").detach() for name in layers]


def rounded(w: Tensor, bits: int) -> Tensor:
    """To nearest, symmetric, a scale per output channel that covers all."""
    rows, most = w.flatten(1), 2 ** (bits - 1)
    scale = torch.maximum(rows.amin(1) / -most, rows.amax(1) / (most - 1))
    scale = scale.reshape(-1, *[1] * (w.ndim - 1))
    return (w / scale).round().clamp(-most, most - 1) * scale


def squared_errors(weights: Sequence[Tensor], bits: Sequence[int]) -> Floats:
    """``[L, B]`` of rounding each weight."""
    return np.array([[float((rounded(w, b) - w).double().square().sum()) for b in bits]
                     for w in weights])  # fmt: skip


def hessians(net: nn.Module, examples: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Every layer's own block ``[n, n]`` of the Hessian of the mean cross entropy."""
    x, labels = (torch.cat(parts) for parts in zip(*examples, strict=True))
    loss, blocks = F.cross_entropy(net(x), labels), []
    for name in LAYERS:
        weight = net.get_parameter(f"{name}.weight")
        (slope,) = torch.autograd.grad(loss, weight, create_graph=True)
        rows = [torch.autograd.grad(each, weight, retain_graph=True)[0] for each in slope.flatten()]
        blocks.append(torch.stack(rows).flatten(1).detach())
    return blocks


def least(
    loss: Floats,
    cost: Floats,
    limit: float,
    keeps: Callable[[tuple[int, ...]], bool] = lambda _: True,
) -> tuple[int, ...]:
    """Columns of the least loss within a limit, of all that there are."""
    rows = range(len(loss))
    every = (c for c in product(range(loss.shape[1]), repeat=len(loss)) if keeps(c))
    within = [c for c in every if sum(cost[i, j] for i, j in zip(rows, c, strict=True)) <= limit]
    return min(within, key=lambda c: sum(loss[i, j] for i, j in zip(rows, c, strict=True)))
