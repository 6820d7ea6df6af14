"""Networks whose layers are worth dividing: of channels and of inputs of very different size."""

import torch
from torch import Tensor, nn

from tests.workflows.networks import Net

CANDIDATES = ["w2", "w3", "w4", "w8"]
IN_GROUPS = [f"{text}g4" for text in CANDIDATES]


def network() -> nn.Module:
    """Channels of very different size: some matter a lot more than others."""
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        for layer in (net.conv, net.hidden, net.head):
            scale = torch.logspace(-1.5, 0.5, len(layer.weight))
            layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.ndim - 1)))
    return net


class Shared(nn.Module):
    """Two layers read one tensor, of which some channels are large."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(16, 12), nn.Linear(16, 12)
        self.head = nn.Linear(12, 4)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, 4]``."""
        found: Tensor = self.head(torch.tanh(self.left(x)) * torch.sigmoid(self.right(x)))
        return found


def examples(count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    scale = torch.ones(16)
    scale[4:8] = 6
    return [torch.randn(16, 16, generator=generator) * scale for _ in range(count)]
