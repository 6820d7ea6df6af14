"""A network whose biases are worth correcting, and what it reads."""

import torch
from torch import Tensor, nn


class Shifted(nn.Module):
    """A hidden layer whose inputs are far from 0, so that rounding moves its mean output."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(24, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.relu(self.hidden(x + 2)))
        return found


def vectors(count: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, 24, generator=generator) for _ in range(count)]
