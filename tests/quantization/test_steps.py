"""Clusters of steps: where their borders are, and that every example has its cluster's range."""

import copy
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from mpq._support.arrays import Array
from mpq.errors import DataError, InputError, ModelError
from mpq.network.running_steps import RunningSteps
from mpq.quantization.range_method import ActivationRange
from mpq.quantization.running_clusters import RunningClusters
from mpq.quantization.step_borders import FEWEST, step_borders
from mpq.quantization.steps import StepClusters, Steps

BORDERS = StepClusters("t", (1.5, 3.0))


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"argument": ""}, "its name, such as 'timestep'"),
        ({"argument": -1}, "got -1"),
        ({"argument": True}, "got True"),
        ({"argument": "t", "clusters": 0}, "got 0"),
        ({"argument": "t", "clusters": 1.5}, "got 1.5"),
        ({"argument": "t", "within": (5, 5)}, "got 5 to 5"),
        ({"argument": "t", "within": (0, float("inf"))}, "got 0 to inf"),
        ({"argument": "t", "within": ("0",)}, r"such as \(0, 999\)"),
    ],
)
def test_steps_that_mean_nothing_are_refused(given: dict[str, Any], match: str) -> None:
    """At once, in words that say what was expected and what came."""
    with pytest.raises(InputError, match=match):
        Steps(**given)


@pytest.mark.parametrize("borders", [(), (2.0, 2.0), (3.0, 1.0), (float("nan"),)])
def test_borders_rise(borders: tuple[float, ...]) -> None:
    """Clusters are contiguous and not empty."""
    with pytest.raises(InputError, match="finite and rise"):
        StepClusters("t", borders)


def _within(steps: Array, logs: Array, borders: tuple[float, ...]) -> float:
    """Sum of squared distances from the cluster's mean, as it is written down; or infinite."""
    cluster = np.searchsorted(borders, steps, side="right")
    parts = [logs[cluster == t] for t in range(len(borders) + 1)]
    if any(len(part) < FEWEST for part in parts):
        return np.inf
    return float(sum(((part - part.mean(axis=0)) ** 2).sum() for part in parts))


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_borders_are_the_best_of_all(count: int, seed: int) -> None:
    """Every way to part ten steps into clusters of enough examples is tried."""
    random = np.random.default_rng(seed)
    steps: Array = random.integers(0, 10, size=60).astype(np.float64)
    noise, slopes = random.normal(size=(60, 3)), random.normal(size=3)
    logs: Array = np.asarray(noise + 1000 + steps[:, None] * slopes, dtype=np.float64)
    between = [step + 0.5 for step in range(9)]
    best = min(_within(steps, logs, chosen) for chosen in combinations(between, count - 1))

    found = step_borders(steps.tolist(), logs, count)

    assert _within(steps, logs, found) == pytest.approx(best)


def test_borders_are_where_ranges_jump() -> None:
    """Between the steps on both sides of a jump, in the middle of them."""
    steps = [*range(20), *range(60, 90)]
    logs: Array = np.where(np.arange(50) < 20, 0.0, 2.0)[:, None]

    found = step_borders(steps, logs, 2)

    assert found == ((19 + 60) / 2,)


def test_many_steps_are_looked_at_together() -> None:
    """A thousand different steps take no million of comparisons, and the jump is found nearly."""
    steps = np.linspace(0.0, 1.0, 5000)
    logs: Array = np.where(steps > 0.3, 1.0, 0.0)[:, None]

    (border,) = step_borders(steps.tolist(), logs, 2)

    assert border == pytest.approx(0.3, abs=1 / 256)


@pytest.mark.parametrize(
    ("steps", "match"),
    [
        ([1.0] * 20, "there are 1 steps in 20 examples"),
        ([1.0, 2.0, 3.0], "there are 3 steps in 3 examples"),
        ([1.0] * 19 + [2.0], "cannot be parted into 2 clusters of 4"),
    ],
)
def test_too_few_examples_for_so_many_clusters(steps: list[float], match: str) -> None:
    """Says how many there are, and what to do."""
    with pytest.raises(DataError, match=f"{match}.*step-clusters"):
        step_borders(steps, np.zeros((len(steps), 1)), 2)


def _running(*steps: float) -> RunningClusters:
    running = RunningSteps("t")
    running.values = steps
    return RunningClusters(running, BORDERS)


def _halved(x: torch.Tensor, own: ActivationRange) -> torch.Tensor:
    """A rounding that shows whose range it was: no more than the range's end."""
    return x.clamp(max=own.high)


ENDS = tuple(ActivationRange(0.0, high) for high in (1.0, 2.0, 3.0))


@pytest.mark.parametrize("shape", [(4, 5), (4, 2, 3), (12, 5), (4, 1, 2, 2)])
def test_every_example_has_the_range_of_its_cluster(shape: tuple[int, ...]) -> None:
    """Also where an example is several rows, and in any order of steps."""
    x, highs = torch.full(shape, 9.0), [3.0, 1.0, 2.0, 1.0]

    found = _running(3.0, 1.0, 2.0, 0.0).rounded("layer", x, ENDS, _halved)

    expected = torch.tensor(highs).repeat_interleave(shape[0] // 4)
    assert torch.equal(found, expected.view(-1, *[1] * (len(shape) - 1)).expand(shape))


def test_examples_of_one_step_may_have_any_rows() -> None:
    """One number for the whole batch, or equal ones, leave nothing to tell apart."""
    x = torch.full((7, 2), 9.0)

    alone, alike = (_running(*s).rounded("l", x, ENDS, _halved) for s in ((2.0,), (2.0, 2.9)))

    assert torch.equal(alone, torch.full((7, 2), 2.0))
    assert torch.equal(alike, alone)


def test_rows_that_are_nobodys_are_refused() -> None:
    """Seven rows of two examples at different steps are not guessed about; nor is no step."""
    x = torch.ones(7, 2)

    with pytest.raises(ModelError, match="'mid' reads 7 rows for 2 examples"):
        _running(0.0, 2.0).rounded("mid", x, ENDS, _halved)
    with pytest.raises(ModelError, match="the network was not called as a whole"):
        _running().rounded("mid", x, ENDS, _halved)


def test_the_next_batch_has_steps_of_its_own() -> None:
    """What was sorted for one batch is not used for another; copies are of the same steps."""
    running = _running(0.0, 2.0)
    running.rounded("l", torch.ones(2, 1), ENDS, _halved)
    running.running.values = (3.0, 0.0)

    found = copy.deepcopy(running).rounded("l", torch.full((2, 1), 9.0), ENDS, _halved)

    assert found.flatten().tolist() == [3.0, 1.0]


def test_gradients_pass_mixed_batches() -> None:
    """Each example's gradient is that of its own rounding."""
    x = torch.tensor([[0.5], [9.0]], requires_grad=True)

    _running(0.0, 2.0).rounded("l", x, ENDS, _halved).sum().backward()

    assert x.grad is not None
    assert x.grad.flatten().tolist() == [1.0, 0.0]
