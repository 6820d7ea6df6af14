"""A network whose loss bends downwards: its curvature is negative."""

import torch
from torch import Tensor, nn


class Bent(nn.Module):
    """``log(1 + exp(-h^2))`` of the first of two classes bends downwards near 0."""

    def __init__(self, num_inputs: int = 1, weight: float = 0.3) -> None:
        super().__init__()
        self.fc = nn.Linear(num_inputs, 1, bias=False)
        nn.init.constant_(self.fc.weight, weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        h = self.fc(x) ** 2
        return torch.cat([h, torch.zeros_like(h)], dim=1)
