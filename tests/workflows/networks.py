"""A network of several kinds of layers and images for it, for tests of how weights are rounded."""

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Convolutions, one of them grouped, BatchNorm, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, groups=4, stride=2)
        self.hidden = nn.Linear(32, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        found: Tensor = self.head(torch.relu(self.hidden(torch.relu(self.grouped(x)).flatten(1))))
        return found


def batches(count: int) -> list[Tensor]:
    """So many batches of 16 images; a few directions are strong, as in real inputs."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(72, 72, generator=generator) / 8
    return [
        (torch.randn(16, 72, generator=generator) @ mix).view(16, 2, 6, 6) for _ in range(count)
    ]
