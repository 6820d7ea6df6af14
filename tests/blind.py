"""Networks that gradients say nothing true about."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Inner = Callable[[Tensor], Tensor]


class Blocked(nn.Module):
    """Three linear layers; behind the first one something that gradients do not pass.

    Args:
        between: What the first layer's output goes through.
    """

    def __init__(self, between: Inner) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.between = between
        self.a, self.b, self.c = nn.Linear(16, 64), nn.Linear(64, 64), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of five classes."""
        hidden = self.between(torch.relu(self.a(x)))
        found: Tensor = self.c(torch.relu(self.b(hidden)))
        return found


def no_grad(x: Tensor) -> Tensor:
    """As a frozen backbone is written."""
    with torch.no_grad():
        return x * 1.0


BETWEEN: dict[str, Inner] = {
    "round": lambda x: torch.round(x * 4) / 4,
    "sign": lambda x: torch.sign(x - 0.5),
    "comparison": lambda x: (x > 0.3).float(),
    "detach": lambda x: x.detach(),
    "no_grad": no_grad,
    "numpy": lambda x: torch.from_numpy(x.detach().numpy().copy()),
    "argmax": lambda x: nn.functional.one_hot(x.argmax(dim=1), 64).float(),
}


def examples(count: int = 128, seed: int = 0) -> list[Tensor]:
    """Batches of 32."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(32, 16, generator=generator) for _ in range(count // 32)]
