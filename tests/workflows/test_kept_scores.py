"""A search that was killed asks its score only what is missing, wherever it was."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mpq
from mpq.workflows.score import Score
from tests.workflows.asking import ASKING, CALLS, KNOWN, MOST, X, net, task


def counted(name: str, folder: Path | None) -> tuple[Any, int]:
    """What is found, and by how many calls."""
    CALLS.clear()
    return ASKING[name](task(folder), ()), len(CALLS)


@pytest.mark.parametrize("name", ASKING)
def test_what_was_killed_asks_what_is_missing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed halfway, together both ask as often as one that was not; a third asks nothing."""
    expected, calls = counted(name, None)
    assert calls >= 5
    monkeypatch.setitem(MOST, "calls", calls // 2)
    with pytest.raises(KeyboardInterrupt):
        counted(name, tmp_path)
    monkeypatch.undo()
    again, left = counted(name, tmp_path)
    third, none = counted(name, tmp_path)

    # A comparison keeps drops, so that the original is asked again.
    of_original = int(name == "a comparison")
    assert left == calls - calls // 2 + of_original
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
