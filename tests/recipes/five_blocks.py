"""A network of blocks that turn their inputs more and less."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Adds to its input what two layers make of it."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.up, self.down, self.strength = nn.Linear(6, 8), nn.Linear(8, 6), strength

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 6]`` to ``[N, 6]``."""
        return x + self.strength * self.down(self.up(x).relu())  # type: ignore[no-any-return]


class Net(nn.Module):
    """Five blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.blocks = nn.ModuleList([Block(s) for s in (0.5, 3.0, 0.1, 1.5, 0.8)])
        self.head = nn.Linear(6, 3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, 3]``."""
        for block in self.blocks:
            x = block(x)
        return self.head(x)  # type: ignore[no-any-return]


def data() -> Iterator[Tensor]:
    """One batch of 32."""
    yield torch.randn(32, 6, generator=torch.Generator().manual_seed(2))
