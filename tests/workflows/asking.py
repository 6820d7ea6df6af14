"""A network, a score that counts its calls and may be killed, and all that asks it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mpq
from mpq.callbacks import Callback
from mpq.workflows.compare_recipes import compare_recipes
from mpq.workflows.score import Score

Heard = Sequence[Callback]
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


def task(cache: Path | None = None, call_s: float | None = None, **options: Any) -> mpq.Task:
    """With weights to nearest."""
    draws = torch.Generator().manual_seed(1)
    data = [torch.randn(2, 12, 4, generator=draws) for _ in range(2)]
    score = Score.of(judge, higher_is_better=False, call_s=call_s)
    asked = {"candidates": ("w2", "w4", "w8"), "rounding": "nearest", **options}
    return mpq.Task(net(), [data[0][0]], [data[1][0]], score=score, cache=cache, **asked)


def search(asked: mpq.Task, heard: Heard, **options: Any) -> Any:
    """Which precisions were found, and their scores."""
    limits = [] if options.get("objective") else ["weight_bytes=0.85x:w8"]
    options = {"sensitivity": "weight-error", "callbacks": heard, **options}
    result = mpq.search(asked, limits, **options)
    return result.assignment.layers, [row.measured.score for row in result.comparisons]


def frontier(asked: mpq.Task, heard: Heard) -> Any:
    """Costs and scores of its points."""
    found = mpq.frontier(
        asked, "weight_bytes", num_points=6, measure=True, sensitivity="weight-error",
        callbacks=heard,
    )  # fmt: skip
    return [(x.cost, x.measured and x.measured.score) for x in found.points]


def compared(asked: mpq.Task, heard: Heard) -> Any:
    """What estimators predict, and what is measured; kept in a folder, not in a cache."""
    found = mpq.compare(
        replace(asked, cache=None), ["weight_bytes=0.85x:w8"], num_random=4, folder=asked.cache,
        estimators=["measured:score=own", "decoupled:groups=*=own"], callbacks=heard,
    )  # fmt: skip
    return [score.predicted for score in found.scores], [x.divergence for x in found.trials]


def recipes(asked: mpq.Task, heard: Heard) -> Any:
    """What they lose beside the default; one of them cannot be."""
    names, limits = ["layer-wise-quantization", "hawq"], ["weight_bytes=0.85x:w8"]
    found = compare_recipes(asked, limits, names, heard)
    return [(row.recipe, row.divergence, row.error) for row in found.rows]


ASKING: dict[str, Callable[[mpq.Task, Heard], Any]] = {
    "prices": lambda x, heard: search(x, heard, sensitivity="measured:score=own"),
    "a group": lambda x, heard: search(x, heard, sensitivity="decoupled:groups=0=own;*=decibels"),
    "a solver": lambda x, heard: search(
        x, heard, solver="evolutionary:is_measured=true,num_trials=12"
    ),
    "a drop": lambda x, heard: search(
        x, heard, objective=mpq.Objective("weight_bytes", max_score_drop=0.001)
    ),
    "biases": lambda x, heard: search(replace(x, bias_correction=True), heard),
    "a tuning": lambda x, heard: search(replace(x, tune="scales:epochs=1"), heard),
    "refinement": lambda x, heard: search(x, heard, sensitivity="sketch", refine=2),
    "a frontier": frontier,
    "a comparison": compared,
    "recipes": recipes,
}
"""What asks a score, and what it finds."""
