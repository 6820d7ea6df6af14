"""Layers by whose output something is chosen: routers, gates, thresholds."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq.network.network import Network

CHOICES: dict[str, Callable[[Tensor], Tensor]] = {
    "top-k": lambda s: torch.zeros_like(s).scatter(1, s.softmax(1).topk(2, dim=1).indices, 1.0),
    "argmax": lambda s: nn.functional.one_hot(s.argmax(1), s.shape[1]).float(),
    "place of the maximum": lambda s: nn.functional.one_hot(s.max(1).indices, s.shape[1]).float(),
    "comparison": lambda s: (s.sigmoid() > 0.5).float(),
    "rounding, straight through": lambda s: s + (s.round() - s).detach(),
}
NONE: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda s: s.softmax(1),
    "maximum": lambda s: s / s.abs().max(dim=1, keepdim=True).values,
    "shape of the places": lambda s: s / s.abs().max(dim=1).indices.shape[0],
    "relu": torch.relu,
}


class Routed(nn.Module):
    """Experts, weighted by what a router says of the features before."""

    def __init__(self, choose: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.router, self.experts = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 16)
        self.head, self.choose = nn.Linear(4, 5), choose

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        h = torch.relu(self.stem(x)) + 0.1
        said = self.experts(h).view(-1, 4, 4) * self.choose(self.router(h)).unsqueeze(-1)
        logits: Tensor = self.head(said.sum(1))
        return logits


def choosing(choose: Callable[[Tensor], Tensor]) -> list[str]:
    """Names of the layers that choose."""
    torch.manual_seed(0)
    network = Network.of(Routed(choose).eval(), [torch.randn(32, 6)])
    return [layer.name for layer in network.layers if layer.is_choosing]


@pytest.mark.parametrize("name", CHOICES)
def test_a_router_is_found_and_nobody_else(name: str) -> None:
    """Also behind a softmax; not the layers before it, nor the experts."""
    assert choosing(CHOICES[name]) == ["router"]


@pytest.mark.parametrize("name", NONE)
def test_smooth_functions_choose_nothing(name: str) -> None:
    """A maximum jumps in its place, and not in its value."""
    assert choosing(NONE[name]) == []


def test_what_feeds_a_router_lies_before_a_choice() -> None:
    """Not the router itself, the experts beside it or the head; also where it is left out."""
    torch.manual_seed(0)
    model, data = Routed(CHOICES["top-k"]).eval(), [torch.randn(32, 6)]

    for excluded in ((), ("router",)):
        network = Network.of(model, data, exclude=excluded)
        assert [x.name for x in network.layers if x.is_before_choice] == ["stem"]


def test_nothing_lies_before_a_choice_that_nobody_makes() -> None:
    """A smooth network has no such layers, so that nothing of it is measured for them."""
    torch.manual_seed(0)
    network = Network.of(Routed(NONE["softmax"]).eval(), [torch.randn(32, 6)])

    assert not any(x.is_before_choice for x in network.layers)


def test_a_router_that_fails_is_measured() -> None:
    """No gradient tells of another expert: the check looks at it first, and says so."""
    torch.manual_seed(0)
    model, data = Routed(CHOICES["top-k"]).eval(), [torch.randn(64, 6)]
    task = mpq.Task(model, data, data, candidates=["w3", "w4", "w8"])

    found = mpq.search(task, {"effective_bits": "0.8x:w8"})

    check = found.spot_check
    assert check is not None
    assert {"router", "stem"} <= set(check.repaired)
    assert any(told.startswith("stem can turn such a choice: measured") for told in check.sentences)
    rows = found.problem.loss.layers
    measured = mpq.search(task, {"effective_bits": "0.8x:w8"}, sensitivity="measured")
    for row in (rows.index("router"), rows.index("stem")):
        assert found.problem.loss.values[row] == pytest.approx(measured.problem.loss.values[row])
