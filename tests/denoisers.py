"""Networks that are told a step: what layers read is larger at later ones."""

from typing import Any

import torch
from torch import Tensor, nn


class Scaled(nn.Module):
    """Multiplies what it reads by its step before the first layer; in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.double().eval()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scale = torch.as_tensor(t, dtype=x.dtype).expand(len(x))
        found: Tensor = self.last(self.first(x * scale[:, None]).relu())
        return found


class WithTable(nn.Module):
    """Adds what a layer makes of five rows that all examples share."""

    def __init__(self) -> None:
        super().__init__()
        self.scaled, self.table = Scaled(), nn.Linear(6, 6)
        self.rows = nn.Buffer(torch.eye(6)[:5])
        self.double().eval()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        found: Tensor = self.scaled(x + self.table(self.rows).sum(0), t)
        return found


def with_table() -> WithTable:
    """The same network every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return WithTable()


def scaled(seed: int = 0) -> Scaled:
    """The same network every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Scaled()


def stepped_batches(num_examples: int, seed: int = 0, size: int = 16) -> list[dict[str, Any]]:
    """Examples at steps 1 to 4 and 100 to 104 in random order, between which ranges jump."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_examples, 6, generator=generator, dtype=torch.float64)
    late = torch.arange(num_examples) % 3 == 0
    steps = torch.where(late, 100, 1) + torch.arange(num_examples) % 4
    order = torch.randperm(num_examples, generator=generator)
    pairs = zip(x.split(size), steps[order].split(size), strict=True)
    return [{"x": a, "t": b} for a, b in pairs]
