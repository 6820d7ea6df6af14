"""A long search says what it will take, from its own first batch."""

from pathlib import Path
from typing import Any

import pytest
import torch

import mpq
import mpq.workflows.forecast as module
from mpq.callbacks import Measured, PhaseBegan, PhaseEnded, Planned, Progressed, plans
from mpq.workflows.compare_recipes import compare_recipes
from mpq.workflows.first_batch import FirstBatch
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


@pytest.fixture(autouse=True)
def long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is searched here is long."""
    monkeypatch.setattr(module, "SOON_S", 0.0)
    monkeypatch.setattr(plans, "LONG_S", 0.0)


def test_a_long_search_tells_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the ranges; the answer is that of a search without one."""
    found, kept = searched(task())
    monkeypatch.setattr(module, "SOON_S", 1e9)
    plain, silent = searched(task())

    (plan,) = kept.of(Planned)
    phases = [event.phase for event in kept.of(PhaseBegan)]
    assert silent.of(Planned) == []
    assert plan.seconds == pytest.approx(sum(plan.phases.values()))
    assert list(plan.phases) == ["estimate", "comparing with other answers", "measuring"]
    assert min(plan.phases.values()) > 0
    assert {*plan.phases, *plan.at_most} < set(phases)
    assert phases[:3] == ["layers and costs", "planning", "ranges"]
    assert plan.at_most == {"solving": 20.0}
    assert plan.besides == ()
    assert found.assignment.to_json() == plain.assignment.to_json()
    # What is tried for the plan is nobody's answer.
    assert len(kept.of(Measured)) == len(silent.of(Measured))


def test_codes_and_a_solution_without_interactions_are_counted() -> None:
    """Of a sum over layers the solution takes what that of the first batch took."""
    _, kept = searched(task(rounding="auto"), sensitivity="weight-error")

    (plan,) = kept.of(Planned)
    assert list(plan.phases)[:3] == ["codes", "estimate", "solving"]
    assert min(plan.phases.values()) > 0
    assert plan.at_most == {}


def test_what_is_not_counted_is_named() -> None:
    """Of cells that are measured nothing is known of the solution."""
    _, kept = searched(task(bias_correction=True), sensitivity="measured")

    (plan,) = kept.of(Planned)
    assert plan.besides == ("biases", "solving")
    assert list(plan.at_most) == ["estimate"]  # cells have parts of passes in common


def test_every_cell_is_rounded_anew_in_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes longer than the passes where layers are tiny."""
    kept, fixed_s, example_s = Kept(), 10.0, 0.5
    monkeypatch.setattr(FirstBatch, "_measurement", (fixed_s, example_s))
    mpq.search(task(), LIMITS, sensitivity="measured", callbacks=[kept])

    (plan,) = kept.of(Planned)
    num_layers, num_candidates, num_batches = 4, 3, 9  # a quarter of twelve is held out
    passes = (num_layers * num_candidates + 1) * num_batches * 16 * example_s
    assert plan.at_most["estimate"] == passes + num_candidates * num_batches * fixed_s


@pytest.mark.parametrize(
    ("criterion", "solutions", "measured"),
    [("max_loss", 22, 0), ("max_measured_loss", 66, 1 + 7 + 3)],
)
def test_what_is_minimized_is_planned(
    monkeypatch: pytest.MonkeyPatch, criterion: str, solutions: int, measured: int
) -> None:
    """With interactions, at two seconds for a solution: how many, and what is measured."""
    kept, held_out_s = Kept(), 0.25
    monkeypatch.setattr(FirstBatch, "held_out_s", held_out_s)
    objective = mpq.Objective("weight_bytes", **{criterion: 0.5})
    mpq.search(task(), objective=objective, callbacks=[kept])

    (plan,) = kept.of(Planned)
    began, ended = (
        next(k for k, x in enumerate(kept.events) if isinstance(x, kind) and x.phase == "solving")
        for kind in (PhaseBegan, PhaseEnded)
    )
    tried = [x for x in kept.events[began:ended] if isinstance(x, Measured)]
    assert plan.at_most["solving"] == 2.0 * solutions + measured * held_out_s
    assert plan.besides == ()
    assert bool(measured) <= len(tried) <= measured


def test_a_measuring_solver_has_a_number_of_measurements() -> None:
    """So that what it takes at most is known."""
    _, kept = searched(
        task(), sensitivity="sketch", solver="surrogate:is_measured=true,num_trials=20"
    )

    (plan,) = kept.of(Planned)
    assert list(plan.at_most) == ["solving"]


def test_a_frontier_plans_its_points() -> None:
    """Each of them is solved and measured."""
    kept = Kept()
    mpq.frontier(task(), "weight_bytes", num_points=4, measure=True, callbacks=[kept])

    (plan,) = kept.of(Planned)
    assert plan.at_most.keys() == {"solving", "frontier", "measuring points"}
    assert plan.at_most["frontier"] == 8.0  # two seconds each


def test_a_comparison_plans_what_is_no_row_yet(tmp_path: Path) -> None:
    """Called again it has nothing to plan; phases are those that it tells."""
    asked: dict[str, Any] = {"estimators": ["weight-error", "sketch"], "num_random": 3}
    first, again = Kept(), Kept()
    mpq.compare(task(), LIMITS, folder=tmp_path, callbacks=[first], **asked)
    mpq.compare(task(), LIMITS, folder=tmp_path, callbacks=[again], **asked)

    (plan,) = first.of(Planned)
    assert list(plan.phases) == ["random assignments", "estimates and their optima"]
    assert min(plan.phases.values()) > 0
    assert set(plan.phases) < {event.phase for event in first.of(PhaseEnded)}
    assert again.of(Planned) == []


def test_recipes_have_one_plan() -> None:
    """Searches inside of it tell none of their own."""
    kept = Kept()
    compare_recipes(task(), LIMITS, ["hawq-v2"], callbacks=[kept])

    (plan,) = kept.of(Planned)
    assert list(plan.phases) == ["recipes"]
    assert "recipes" in {event.work for event in kept.of(Progressed)}


def test_nothing_is_planned_of_few_examples() -> None:
    """The plan would take as long as the work."""
    few = mpq.Task(Net().eval(), [x[:4] for x in batches(2)], candidates=["w2", "w4"])
    _, kept = searched(few)

    assert kept.of(Planned) == []


def test_nothing_is_planned_where_a_cache_has_estimates(tmp_path: Path) -> None:
    """The plan would take longer than the work."""
    _, first = searched(task(cache=tmp_path))
    _, again = searched(task(cache=tmp_path))

    assert len(first.of(Planned)) == 1
    assert again.of(Planned) == []


def test_nothing_is_planned_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phases are counted for every result, which reads no plan."""
    monkeypatch.setattr(module, "forecast", None)

    assert mpq.search(task(), LIMITS).made.phases[1].name == "ranges"
