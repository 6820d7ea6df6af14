"""A search that was killed asks its score only what is missing, wherever it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq.workflows.score import Score

CALLS: list[int] = []
"""One for every call of ``judge``; a call that is killed counts as none."""
MOST = {"calls": 10**6}
"""After so many calls whoever asks is killed."""


def net() -> nn.Sequential:
    """Three layers, of four inputs and three classes."""
    torch.manual_seed(0)
    layers = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)
    return nn.Sequential(*layers).eval()


X = torch.randn(16, 4, generator=torch.Generator().manual_seed(3))
KNOWN = net()(X).detach()


def judge(network: nn.Module) -> Tensor:
    """How far outputs are from the original's."""
    if len(CALLS) >= MOST["calls"]:
        raise KeyboardInterrupt
    found: Tensor = (network(X) - KNOWN).square().mean()
    CALLS.append(1)
    return found


def task(cache: Path | None, **options: Any) -> mpq.Task:
    """With weights to nearest."""
    draws = torch.Generator().manual_seed(1)
    data = [torch.randn(2, 12, 4, generator=draws) for _ in range(2)]
    score = Score.of(judge, higher_is_better=False)
    return mpq.Task(
        net(), [data[0][0]], [data[1][0]], candidates=("w2", "w4", "w8"), rounding="nearest",
        score=score, cache=cache, **options,
    )  # fmt: skip


def search(cache: Path | None, **options: Any) -> Any:
    """Which precisions were found, and their scores."""
    objective = options.get("objective")
    limits = [] if objective else ["weight_bytes=0.85x:w8"]
    result = mpq.search(task(cache), limits, **{"sensitivity": "weight-error"} | options)
    return result.assignment.layers, [row.measured.score for row in result.comparisons]


def frontier(cache: Path | None) -> Any:
    """Costs and scores of its points."""
    found = mpq.frontier(task(cache), "weight_bytes", num_points=6, measure=True,
                         sensitivity="weight-error")  # fmt: skip
    return [(x.cost, x.measured and x.measured.score) for x in found.points]


def compared(folder: Path | None) -> Any:
    """What estimators predict, and what is measured."""
    found = mpq.compare(
        task(None), ["weight_bytes=0.85x:w8"], num_random=4, folder=folder,
        estimators=["measured:score=own", "decoupled:groups=*=own"],
    )  # fmt: skip
    return [score.predicted for score in found.scores], [x.divergence for x in found.trials]


ASKING: dict[str, Callable[[Path | None], Any]] = {
    "prices": lambda cache: search(cache, sensitivity="measured:score=own"),
    "a group": lambda cache: search(cache, sensitivity="decoupled:groups=0=own;*=decibels"),
    "a solver": lambda cache: search(cache, solver="evolutionary:is_measured=true,num_trials=12"),
    "a drop": lambda cache: search(
        cache, objective=mpq.Objective("weight_bytes", max_score_drop=0.001)
    ),
    "refinement": lambda cache: search(cache, sensitivity="sketch", refine=2),
    "a frontier": frontier,
    "a comparison": compared,
}


def counted(ask: Callable[[Path | None], Any], folder: Path | None) -> tuple[Any, int]:
    """What is found, and by how many calls."""
    CALLS.clear()
    return ask(folder), len(CALLS)


@pytest.mark.parametrize("name", ASKING)
def test_what_was_killed_asks_what_is_missing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed halfway, together both ask as often as one that was not; a third asks nothing."""
    ask = ASKING[name]
    expected, calls = counted(ask, None)
    assert calls >= 5
    monkeypatch.setitem(MOST, "calls", calls // 2)
    with pytest.raises(KeyboardInterrupt):
        counted(ask, tmp_path)
    monkeypatch.undo()
    again, left = counted(ask, tmp_path)
    third, none = counted(ask, tmp_path)

    # A comparison keeps drops, so that the original is asked again.
    assert left == calls - calls // 2 + (name == "a comparison")
    assert none == 0
    assert again == third == expected


def test_each_network_is_asked_once() -> None:
    """Original, answer, uniform precisions and what a solver tried, on whatever examples."""
    networks: list[tuple[float, ...]] = []

    def noted(network: nn.Module) -> float:
        weights = torch.cat([p.detach().flatten() for p in network.parameters()])
        networks.append(tuple(weights.tolist()))
        return float((network(X) - KNOWN).square().mean())

    asked = mpq.Task(
        net(), [X[:8]], [X[8:]], candidates=("w2", "w4", "w8"), rounding="nearest",
        score=Score.of(noted, higher_is_better=False),
    )  # fmt: skip
    mpq.search(asked, ["weight_bytes=0.85x:w8"], sensitivity="measured:score=own",
               solver="evolutionary:is_measured=true,num_trials=12")  # fmt: skip

    assert len(networks) == len(set(networks))
