"""A long search says what it will take, from its own first batch."""

from typing import Any

import pytest
import torch

import mpq
import mpq.workflows.forecast as module
from mpq.callbacks import Measured, PhaseBegan, Planned
from tests.callbacks.listeners import Kept
from tests.workflows.networks import Net, batches

LIMITS = {"effective_bits": 4}


def task(**options: Any) -> mpq.Task:
    torch.manual_seed(0)
    asked = {"candidates": ["w2", "w4", "w8"], "rounding": "nearest", **options}
    return mpq.Task(Net().eval(), batches(12), **asked)


def searched(asked: mpq.Task, **options: Any) -> tuple[mpq.SearchResult, Kept]:
    kept = Kept()
    return mpq.search(asked, LIMITS, callbacks=[kept], **options), kept


def test_a_long_search_tells_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the estimate; the answer is that of a search without one."""
    plain, silent = searched(task())
    monkeypatch.setattr(module, "LONG_S", 0.0)

    found, kept = searched(task())

    (plan,) = kept.of(Planned)
    phases = [event.phase for event in kept.of(PhaseBegan)]
    assert silent.of(Planned) == []
    assert plan.seconds == pytest.approx(sum(plan.phases.values()))
    assert min(plan.phases.values()) > 0
    assert set(plan.phases) < set(phases)
    assert phases[:3] == ["layers and costs", "planning", module.ESTIMATE]
    assert plan.besides == ("solving",)
    assert found.assignment.to_json() == plain.assignment.to_json()
    # What is tried for the plan is nobody's answer.
    assert len(kept.of(Measured)) == len(silent.of(Measured))


def test_what_is_not_counted_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes of weights, where there will be some."""
    monkeypatch.setattr(module, "LONG_S", 0.0)

    _, kept = searched(task(rounding="auto"), sensitivity="weight-error")

    assert [plan.besides for plan in kept.of(Planned)] == [("codes of weights", "solving")]


def test_nothing_is_planned_where_the_first_batch_is_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan would take as long as the work."""
    monkeypatch.setattr(module, "LONG_S", 0.0)
    monkeypatch.setattr(module, "MOST_SHARE", 0.01)

    _, kept = searched(task())

    assert kept.of(Planned) == []
