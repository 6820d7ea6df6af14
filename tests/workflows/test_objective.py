"""Least cost for what may be lost, on the demo network, through Python and the command line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import mpq
from mpq import demo
from mpq.cli.__main__ import app
from mpq.errors import InfeasibleError, InputError
from mpq.problem.solution import Status
from mpq.report.measurement import Measurement
from mpq.solvers import Auto, Lagrangian
from mpq.workflows.asked import Asked
from mpq.workflows.evaluator import Evaluator
from mpq.workflows.minimize import criterion
from mpq.workflows.points import POINT_LIMIT_S, hurried
from mpq.workflows.sentences import answer_sentences


def search(
    objective: mpq.Objective | None = None,
    device: str | None = None,
    held_out: Any = demo.held_out,
    **options: Any,
) -> mpq.SearchResult:
    """A quick search on the demo network."""
    examples = mpq.Calibration(demo.calibration, stop=64)
    candidates = ["w2a8", "w4a8", "w8a8"]
    task = mpq.Task(demo.make_net(), examples, held_out, device, candidates=candidates)
    return mpq.search(task, objective=objective, sensitivity="weight-error", **options)


def test_least_bytes_for_a_predicted_loss() -> None:
    """Proved, within the limits, and what loses least at that cost."""
    free = search(limits=["weight_bytes=1x:w8a8"])
    limit = free.solution.loss * 5

    found = search(mpq.Objective("weight_bytes", max_loss=limit))

    assert found.solution.status is Status.OPTIMAL
    assert found.solution.loss <= limit
    assert "proved at least" in found.solution.why
    (budget,) = found.problem.budgets
    assert found.solution.columns is not None
    assert budget.used(found.solution.columns) == pytest.approx(budget.limit)
    less = search(limits={"weight_bytes": budget.limit - 1})
    assert less.solution.loss > limit


@pytest.mark.parametrize(("share", "is_told"), [(0.4, True), (0.6, False)])
def test_a_predicted_loss_that_does_not_hold_is_told(share: float, is_told: bool) -> None:
    """Where held-out examples lose more than twice what was allowed, in the same unit."""
    examples = mpq.Calibration(demo.calibration, stop=64)
    task = mpq.Task(demo.make_net(), examples, demo.held_out, candidates=["w2a8", "w4a8"])
    in_nats = mpq.search(task, ["weight_bytes=1x:w2a8"], sensitivity="sketch:num_probes=1")
    in_squares = search(limits=["weight_bytes=1x:w2a8"], safeguard=False)

    def told(found: mpq.SearchResult) -> bool:
        objective = mpq.Objective("weight_bytes", max_loss=share * found.measured.divergence)
        asked = Asked.of([], objective, safeguard=True)
        result = replace(found, provenance=replace(found.provenance, asked=asked))
        return any("--max-measured-loss" in line for line in answer_sentences(result))

    assert told(in_nats) == is_told
    assert not told(in_squares)


@pytest.mark.parametrize("criterion", ["max_measured_loss", "max_accuracy_drop"])
def test_least_bytes_for_a_measured_loss(criterion: str) -> None:
    """What is returned was measured on the held-out examples, and is acceptable."""
    found = search(mpq.Objective("weight_bytes", **{criterion: 0.03}))

    original, result = found.comparison("original").measured, found.measured
    assert original.accuracy is not None
    assert result.accuracy is not None
    if criterion == "max_measured_loss":
        assert result.divergence <= 0.03
    else:
        assert result.accuracy >= original.accuracy - 0.03
    w8 = found.comparison("w8a8")
    assert found.comparison("result").costs["weight_bytes"] < w8.costs["weight_bytes"]
    assert "points of the frontier were measured" in found.solution.why


def test_a_drop_of_just_so_much_is_acceptable(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.52 less 0.05 is above 0.47 in float64: of 200 examples, 10 may be lost, and not only 9."""
    problem = search(limits=["weight_bytes=1x:w8a8"]).problem
    measured = {
        True: Measurement(0.0, 104 / 200, 1.0, 200),
        False: Measurement(0.1, 0.47, 1.0, 200),
    }
    evaluator = Evaluator.__new__(Evaluator)
    monkeypatch.setattr(Evaluator, "uniform", lambda *_: {})
    monkeypatch.setattr(Evaluator, "measure", lambda _, precisions: measured[not precisions])
    assert 0.52 - 0.05 > 0.47

    is_acceptable = criterion(
        mpq.Objective("weight_bytes", max_accuracy_drop=0.05), problem, evaluator
    )

    assert is_acceptable(np.zeros(len(problem.loss.layers), dtype=np.intp))


def test_limits_hold_as_well() -> None:
    """Least latency within a limit of bytes."""
    objective = mpq.Objective("latency", max_loss=1.0)
    found = search(objective, limits=["weight_bytes=49KiB"], device="cortex-m7")

    assert found.solution.columns is not None
    assert [b.resource for b in found.problem.budgets] == ["weight_bytes", "latency"]
    assert found.problem.is_feasible(found.solution.columns)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one criterion of at least 0.* got none"),
        ({"max_loss": 1.0, "max_accuracy_drop": 0.1}, "one criterion"),
        ({"max_loss": -1.0}, "one criterion of at least 0"),
        ({"max_loss": float("nan")}, "one criterion of at least 0"),
    ],
)
def test_criteria_that_make_no_sense(options: dict[str, float], message: str) -> None:
    """One of what may be lost, and a number."""
    with pytest.raises(InputError, match=message):
        mpq.Objective("weight_bytes", **options)


def test_a_criterion_needs_a_resource() -> None:
    """What may be lost says nothing of what is to be made small."""
    with pytest.raises(InputError, match="needs minimize"):
        mpq.Objective.of(None, 1.0, None, None)


@pytest.mark.parametrize(
    ("resource", "options", "message"),
    [
        ("weight_bytes", {"refine": 1}, "does not go with minimize"),
        ("speed", {}, "no resource 'speed'"),
    ],
)
def test_objectives_that_make_no_sense(
    resource: str, options: dict[str, Any], message: str
) -> None:
    """Refused before anything is estimated, or with the name that is wrong."""
    with pytest.raises(InputError, match=message):
        search(mpq.Objective(resource, max_loss=1.0), **options)


def test_what_cannot_be_minimized_is_refused_before_the_estimate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The estimate takes longest: nobody waits for it to learn that a maximum is no sum."""

    def never(*_: Any) -> None:
        raise AssertionError("estimated")

    monkeypatch.setattr("mpq.workflows.search.estimated", never)

    with pytest.raises(InputError, match="peak_ram .* can be limited, but not minimized"):
        search(mpq.Objective("peak_ram", max_loss=1.0))


def test_accuracy_needs_targets() -> None:
    """Held-out examples without them have no accuracy."""
    batches = [batch[0] for batch in demo.held_out()]

    with pytest.raises(InputError, match="needs held-out examples with targets"):
        search(mpq.Objective("weight_bytes", max_accuracy_drop=0.1), held_out=batches)


def test_a_loss_that_is_out_of_reach() -> None:
    """Says what the least is."""
    with pytest.raises(InfeasibleError, match="too much"):
        search(mpq.Objective("weight_bytes", max_loss=1e-9))


def test_the_command_line_minimizes(tmp_path: Path) -> None:
    """With alternatives, a hull, and the hypervolume beside the points."""
    arguments = [
        "search", "--output", str(tmp_path), "--minimize", "weight_bytes",
        "--max-accuracy-drop", "0.02", "--sensitivity", "weight-error",
        "--precisions", "w2a8,w4a8,w8a8", "--hull", "--alternatives", "3", "--differing", "2",
    ]  # fmt: skip

    ran = CliRunner().invoke(app, arguments)

    assert ran.exit_code == 0, ran.output
    assert "least weight_bytes" in ran.stdout
    alternatives = pd.read_csv(tmp_path / "alternatives.csv")
    assert list(alternatives["point"]) == ["alternative 1", "alternative 2", "alternative 3"]
    assert alternatives["measured_kl_nats"].notna().all()
    rows = [set(text.split()) for text in alternatives["precisions"]]
    assert all(len(a - b) >= 2 for a in rows for b in rows if a is not b)
    frontier = json.loads((tmp_path / "frontier.json").read_text())
    assert 0.5 < frontier["hypervolume_share"] < 1
    assert len(frontier["points"]) > 10


def test_a_hull_with_interactions_has_the_corners_that_pay(result: mpq.SearchResult) -> None:
    """Corners of the additive hull, by their loss with interactions."""
    found = result.frontier("weight_bytes", None)

    costs, losses = [p.cost for p in found.points], [p.loss for p in found.points]
    assert result.problem.interactions is not None
    assert len(costs) > 5
    assert costs == sorted(set(costs))
    assert losses == sorted(set(losses), reverse=True)


def test_one_measured_search_finds_a_whole_frontier(tmp_path: Path) -> None:
    """Loss and bytes at once: every point was measured on the calibration examples, and kept."""
    storage = tmp_path / "search.log"
    solver = (
        "evolutionary:is_measured=true,objectives=loss+costs,num_trials=60,population_size=20,"
        f"storage={storage}"
    )

    found = search(limits=["weight_bytes=54KiB"], solver=solver)
    size = storage.stat().st_size
    frontier = found.frontier("weight_bytes")

    assert storage.stat().st_size < 1.05 * size, "no trial was measured again"
    assert frontier.loss_name == "calibration_loss"
    losses, costs = [p.loss for p in frontier.points], [p.cost for p in frontier.points]
    assert len(costs) > 3
    assert costs == sorted(set(costs))
    assert losses == sorted(set(losses), reverse=True)
    assert max(costs) <= 54 * 1024
    assert losses[-1] == pytest.approx(found.solution.loss)


def test_a_measured_frontier_needs_a_storage() -> None:
    """Before anything is measured."""
    with pytest.raises(InputError, match="needs storage=search.log, or a database URL"):
        search(
            limits=["weight_bytes=54KiB"],
            solver="evolutionary:is_measured=true,objectives=loss+costs",
        )


def test_a_time_that_was_given_to_the_solver_is_kept() -> None:
    """Of many points each has less time by default; what a user says is not replaced."""
    assert hurried(Auto(seed=3)) == Auto(seed=3, time_limit_s=POINT_LIMIT_S)
    for given in (Auto(time_limit_s=60.0), Auto(time_limit_s=1.0), Lagrangian()):
        assert hurried(given) is given
