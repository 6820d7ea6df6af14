"""What workers measure for a solver, told as one process tells it; with a stand-in for them."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq._support.events import Callback, Event, listening, unheard
from mpq.callbacks.results import Measured
from mpq.quantization.precision import Precision
from mpq.workflows.evaluator import Evaluator
from mpq.workflows.losses_by_workers import LossesByWorkers
from mpq.workflows.score import Score
from mpq.workflows.setup import Prepared

ASKED = np.array([[0, 1], [2, 0], [1, 1], [3, 3], [0, 1]])
"""Of two layers; the last candidate is the original, and one assignment is asked twice."""


@final
class Elsewhere:
    """Does tasks here, the last one first, where nobody listens; what they give is sent."""

    count = 2

    def sent(
        self, shared: Any, call: Callable[[Any, Any], Any]
    ) -> Callable[[Sequence[Any]], Iterator[Any]]:
        def results(tasks: Sequence[Any]) -> Iterator[Any]:
            for task in reversed(tasks):
                with unheard():
                    found = pickle.dumps(call(shared, pickle.loads(pickle.dumps(task))))
                yield pickle.loads(found)

        return results


@final
class Heard(Callback):
    """What was told of measurements."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def on(self, event: Event) -> None:
        """Kept, as JSON has it."""
        if isinstance(event, Measured):
            self.events.append(event.to_dict())


def prepared(score: Any = None, cache: Path | None = None) -> Prepared:
    """Two layers, targets, four candidates."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    data = [(torch.randn(8, 4), torch.randint(0, 3, (8,)))]
    candidates = ("w2", "w4", "w8", "w32")
    return Prepared.of(
        mpq.Task(
            model, data, data, score=score, candidates=candidates, rounding="nearest", cache=cache
        )
    )


def size(network: nn.Module) -> Tensor:
    """Some number that quantizing changes."""
    return sum((p.detach().abs().sum() for p in network.parameters()), torch.zeros(()))


def told(losses: Callable[[Any], Any]) -> tuple[list[float], list[dict[str, Any]]]:
    """Losses of what is asked, and events in an order of their own."""
    heard = Heard()
    with listening([heard]):
        found = losses(ASKED).tolist()
    return found, sorted(heard.events, key=lambda event: str(event["precisions"]))


def both(score: Any, **options: Any) -> list[tuple[list[float], list[dict[str, Any]]]]:
    """By one process, and by workers; each asks networks of its own."""

    def asked() -> tuple[Evaluator, Sequence[Precision]]:
        made = prepared(score)
        return replace(made.on_calibration, **options), made.candidates

    evaluator, candidates = asked()
    return [told(evaluator.losses_of(candidates)), told(LossesByWorkers(Elsewhere(), *asked()))]


@pytest.mark.parametrize("score", [None, Score.of(size, higher_is_better=True)])
def test_workers_tell_what_one_process_tells(score: Any) -> None:
    """The divergence in its unit, accuracy and score; each network once, and not the original."""
    expected, found = both(score)

    assert found == expected
    losses, events = found
    assert [event["unit"] for event in events] == ["nats"] * 3
    assert all(event["accuracy"] is not None for event in events)
    assert [event["score"] is None for event in events] == [score is None] * 3
    assert losses[3] == 0
    if score is None:
        assert sorted({*losses} - {0.0}) == sorted(event["loss"] for event in events)


def test_nobody_is_told_of_examples_without_a_name() -> None:
    """Whoever measures."""
    expected, found = both(None, examples="")

    assert found == expected
    assert found[1] == []


def test_what_workers_measured_is_not_measured_again() -> None:
    """The evaluator knows it as if it had measured it itself."""
    made = prepared()
    losses = LossesByWorkers(Elsewhere(), made.on_calibration, made.candidates)(ASKED[:2])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, "_measured", None)
        again = made.on_calibration.losses_of(made.candidates)(ASKED[:2])

    assert again.tolist() == losses.tolist()


def test_a_score_that_a_killed_search_kept_is_not_asked_again(tmp_path: Path) -> None:
    """Of the original neither; what workers were told is kept here."""
    calls: list[nn.Module] = []

    def counted(network: nn.Module) -> Tensor:
        calls.append(network)
        return size(network)

    score = Score.of(counted, higher_is_better=True)
    found = []
    for _ in range(2):
        made = prepared(score, cache=tmp_path)
        losses = LossesByWorkers(Elsewhere(), made.on_calibration, made.candidates)
        found.append((losses(ASKED).tolist(), len(calls)))

    assert found[0][1] == 4  # three networks and the original
    assert found[1] == found[0]
