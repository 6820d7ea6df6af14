"""A score of answers whose biases were corrected, or that were tuned: of what is shipped."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq.callbacks import Planned
from mpq.workflows.score import Score
from tests.callbacks.listeners import Kept
from tests.workflows.networks import Net, batches
from tests.workflows.shifted import Shifted, vectors

QUICK = "all:epochs=3,lr=0.01,code_lr=0.01,batch_size=16"


def shifted() -> nn.Module:
    """A network whose biases are worth correcting."""
    torch.manual_seed(0)
    return Shifted().eval()


def plain() -> nn.Module:
    """A network that is worth tuning."""
    torch.manual_seed(0)
    return Net().eval()


X = vectors(1)[0]
IMAGES = batches(1)[0]


def apart(network: nn.Module) -> Tensor:
    """How far its answers are from the original's."""
    has_images = any(isinstance(part, nn.Conv2d) for part in network.modules())
    makes, x = (plain, IMAGES) if has_images else (shifted, X)
    found: Tensor = (network(x).softmax(-1) - makes()(x).softmax(-1)).square().mean()
    return found


def task(kind: str, **options: Any) -> mpq.Task:
    """A search whose answer is corrected, or tuned."""
    if kind == "biases":
        return mpq.Task(shifted(), vectors, candidates=["w2"], rounding="nearest",
                        bias_correction=True, **options)  # fmt: skip
    return mpq.Task(plain(), batches(12), candidates=["w2", "w3", "w8"], rounding="nearest",
                    tune=QUICK, **options)  # fmt: skip


def search(asked: mpq.Task, **options: Any) -> mpq.SearchResult:
    """By the estimator that takes no pass."""
    bits = 32 if asked.bias_correction else 3.5
    limits = [] if "objective" in options else [f"effective_bits={bits}"]
    return mpq.search(asked, limits, sensitivity="weight-error", safeguard=False, **options)


def record(result: mpq.SearchResult) -> Any:
    """Of what was tried."""
    return result.provenance.bias_correction or result.provenance.tuning


KINDS = ["biases", "tuning"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_score_is_that_of_what_is_shipped(kind: str, tmp_path: Path) -> None:
    """As evaluated by itself; kept, it is not asked again."""
    calls: list[nn.Module] = []

    def counted(network: nn.Module) -> Tensor:
        calls.append(network)
        return apart(network)

    asked = task(kind, score=Score.of(counted, higher_is_better=False), cache=tmp_path)
    before = search(replace(asked, tune=None, bias_correction=False)).measured.score

    found = search(asked)

    assert record(found).is_kept, record(found).why
    assert found.measured.score is not None
    assert before is not None
    assert found.measured.score < before
    told = found.assignment.metadata
    assert told.measured_score == found.measured.score
    by_itself = mpq.evaluate(asked.model, found.assignment, [X if kind == "biases" else IMAGES],
                             score=asked.score)  # fmt: skip
    assert by_itself["quantized"].score == pytest.approx(found.measured.score)
    calls.clear()
    assert search(asked).measured.score == found.measured.score
    assert not calls


@pytest.mark.parametrize("kind", KINDS)
def test_its_calls_are_planned(kind: str) -> None:
    """As many as are made where the answer is changed and judged again."""
    calls: list[nn.Module] = []

    def counted(network: nn.Module) -> Tensor:
        calls.append(network)
        return apart(network)

    kept = Kept()
    score = Score.of(counted, higher_is_better=False, call_s=1.0)

    found = search(task(kind, score=score), callbacks=[kept])

    assert record(found).is_kept, record(found).why
    (told,) = kept.of(Planned)
    # Of one candidate the answer is the uniform precision, which is asked about once.
    spare = 1 if kind == "biases" else 0
    assert f"is asked at most {len(calls) + spare} times" in told.calls


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_score_says_is_worse_is_not_kept(kind: str) -> None:
    """Though examples lose less by it; a score that is better the further away."""
    asked = task(kind, score=Score.of(apart, higher_is_better=True, name="apart"))
    other = search(replace(asked, tune=None, bias_correction=False))

    found = search(asked)

    assert not record(found).is_kept
    assert record(found).why.startswith("with it apart is worse: ")
    assert found.measured.score == other.measured.score
    assert found.assignment.tuned is None


@pytest.mark.parametrize("kind", KINDS)
def test_an_objective_by_the_score_goes_with_it(kind: str) -> None:
    """What is made of the answer keeps the limit as well."""
    score = Score.of(apart, higher_is_better=False)
    objective = mpq.Objective("weight_bytes", max_score_drop=0.5)

    found = search(task(kind, score=score), objective=objective)

    assert found.measured.score is not None
    assert found.measured.score <= 0.5


def test_tuned_afterwards_it_is_judged_as_well() -> None:
    """On the half of held-out examples that measures, also of the original."""
    asked = replace(task("tuning"), tune=None)
    result = search(asked)

    good = mpq.tune(replace(asked, score=Score.of(apart, False, "apart")), result, QUICK)
    bad = mpq.tune(replace(asked, score=Score.of(apart, True, "apart")), result, QUICK)

    assert good.assignment.metadata.score == "apart"
    assert good.comparison("original").measured.score == 0
    assert (good.measured.score or 0) > 0
    assert "apart is worse" in record(bad).why


def test_what_cannot_be_done_by_others_is_refused_with_a_reason() -> None:
    """Before the estimate."""
    score = Score.of(lambda _: 1.0, higher_is_better=False)
    with pytest.raises(mpq.errors.InputError, match="made of a whole network, and ranks"):
        mpq.Task(plain(), batches(2), score=score, workers="torchrun")
    asked = mpq.Task(plain(), batches(2), candidates=["w4"], score=score, workers="ray")
    with pytest.raises(mpq.errors.InputError, match="'decoupled' has none; take .* measured"):
        mpq.search(asked, ["effective_bits=8"], sensitivity="decoupled:groups=*=own")
