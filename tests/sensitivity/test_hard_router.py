"""Layers before a choice (argmax) lose what no gradient sees: the default measures them."""

import pytest
import torch
from torch import Tensor, nn

import mpq

pytestmark = pytest.mark.filterwarnings("ignore")


class Routed(nn.Module):
    """Each row by the one expert that its router chooses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.router, self.head = nn.Linear(16, 32), nn.Linear(32, 8), nn.Linear(32, 6)
        self.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.stem(x))
        chosen = self.router(hidden).argmax(-1)
        every = torch.stack([expert(hidden) for expert in self.experts], 1)
        found: Tensor = self.head(torch.relu(every[torch.arange(len(x)), chosen] * 3))
        return found


def test_the_default_measures_layers_before_a_hard_router_at_w8() -> None:
    """The sketch says a thousandth for the layer before the router, and nothing for the router."""
    draws = torch.Generator().manual_seed(1)
    data = [torch.randn(64, 16, generator=draws) for _ in range(4)]
    loss = {}
    for sensitivity in ("sketch", "auto"):
        task = mpq.Task(Routed().eval(), data[:3], data[3:], candidates=["w8"])
        found = mpq.search(task, {"effective_bits": 10}, sensitivity=sensitivity)
        loss[sensitivity] = dict(
            zip(found.assignment.precisions, found.problem.loss.values[:, 0], strict=True)
        )

    assert loss["sketch"]["router"] == 0 < 1e-4 < loss["auto"]["router"]
    assert loss["auto"]["stem"] > 100 * loss["sketch"]["stem"]
