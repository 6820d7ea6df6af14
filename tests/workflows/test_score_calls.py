"""How often a score is asked is planned, told first, and what is asked in the end."""

import json
import re
from pathlib import Path

import pytest
from torch import nn
from typer.testing import CliRunner

import mpq
import mpq.workflows.forecast as forecast
from mpq.callbacks import Measured, Planned
from mpq.cli.__main__ import app
from mpq.errors import InputError
from mpq.workflows.compare_recipes import compare_recipes
from mpq.workflows.plan import plan
from mpq.workflows.score import Score
from mpq.workflows.within_time import within_time
from tests.callbacks.listeners import Kept
from tests.workflows.asking import ASKING, CALLS, judge, search, task

LIMITS = ["weight_bytes=0.85x:w8"]
SPARE = {"prices": 1, "a group": 1, "a solver": 4, "a drop": 7, "biases": 1, "a tuning": 2,
         "refinement": 5, "a frontier": 7, "a comparison": 4, "recipes": 8}  # fmt: skip
"""Calls that may be planned and not needed: of what turns out to be the same network."""


@pytest.mark.parametrize("name", ASKING)
def test_the_plan_is_told_first_and_is_kept_to(name: str) -> None:
    """Before anything is measured; never more calls, and hardly fewer."""
    CALLS.clear()
    kept = Kept()

    ASKING[name](task(call_s=1.0), [kept])

    (told,) = kept.of(Planned)
    # Not by its seconds, in which a slow machine's other phases are as well.
    (most,) = re.findall(r"is asked at most (\d+) times, 1 s each \(as told\)", told.calls)
    assert len(CALLS) <= int(most) <= len(CALLS) + SPARE[name]
    assert told.seconds >= int(most)
    kinds = [type(event) for event in kept.events]
    assert Measured not in kinds[: kinds.index(Planned)]


def test_calls_of_recipes_that_measure_are_planned() -> None:
    """What each tries within each limit, and its answers; the call that is clocked comes first.

    Of a hundred trials 27: three layers of three precisions.
    """
    kept, limits = Kept(), ["weight_bytes=0.8x:w8", "weight_bytes=0.9x:w8"]

    compare_recipes(task(), limits, ["layer-wise-quantization", "simq-nas"], [kept])

    (told,) = kept.of(Planned)
    assert "31 of answers, 54 of what the solver tries" in told.calls


def test_no_more_trials_are_planned_than_there_are_assignments() -> None:
    """Three layers of three precisions have 27, however many trials a solver may make."""
    solver = "surrogate:is_measured=true,num_trials={}"
    few, many = (
        plan(task(call_s=1.0), LIMITS, sensitivity="weight-error", solver=solver.format(count))
        for count in (20, 100)
    )

    kept = Kept()
    CALLS.clear()
    search(task(call_s=1.0), [kept], solver=solver.format(100))

    assert [x.calls and x.calls.counts["score of what the solver tries"] for x in (few, many)] == [
        20, 27,
    ]  # fmt: skip
    (told,) = kept.of(Planned)
    (most,) = re.findall(r"is asked at most (\d+) times", told.calls)
    assert len(CALLS) <= int(most)
    assert "27 of what the solver tries" in told.calls


def test_without_a_cost_one_call_is_clocked() -> None:
    """The one about the original, which is needed anyway."""
    CALLS.clear()
    kept = Kept()
    ASKING["prices"](task(), [kept])
    asked = len(CALLS)
    CALLS.clear()
    ASKING["prices"](task(call_s=1.0), [])

    (told,) = kept.of(Planned)
    assert "(as one took)" in told.calls
    assert asked == len(CALLS)


def test_a_long_search_is_planned_with_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an estimate that asks nothing but the score, too."""
    monkeypatch.setattr(forecast, "SOON_S", 0.0)
    kept = Kept()

    ASKING["prices"](task(call_s=100.0), [kept])

    (told,) = kept.of(Planned)
    assert 900 < told.phases[forecast.ESTIMATE] < 1000
    assert forecast.SOLVING in told.phases
    assert told.besides == ()


def test_a_plan_counts_calls() -> None:
    """Two and one for each candidate; for its prices one for each cell; points of a frontier."""
    usual, own, points = (
        plan(task(call_s=10.0), LIMITS, sensitivity=sensitivity, num_points=num_points)
        for sensitivity, num_points in (
            ("weight-error", 0), ("measured:score=own", 0), ("decoupled:groups=0=own;*=cosine", 6),
        )
    )  # fmt: skip
    assert [x.calls and sum(x.calls.counts.values()) for x in (usual, own, points)] == [5, 14, 14]
    found = {p.name: p.fixed_s for p in own.phases if p.name.startswith("score")}
    assert found == {"score of single layers": 90.0, "score of answers": 50.0}
    assert plan(task(), LIMITS, sensitivity="weight-error").to_dict()["calls"]["is_clocked"]


@pytest.mark.parametrize(("rounding", "others"), [("nearest", 0), ("gptq", 1), ("auto", 2)])
def test_a_plan_counts_calls_about_other_answers(rounding: str, others: int) -> None:
    """Where codes fit data that by other prices; where unseen examples are asked, by theirs."""
    found = plan(task(call_s=10.0, rounding=rounding), LIMITS, sensitivity="weight-error")

    assert found.calls
    assert found.calls.counts["score of answers"] == 5 + others


def test_a_time_gives_up_prices_by_the_score() -> None:
    """Where what is asked of answers still fits; else it says what the least takes."""
    asked = task(call_s=100.0)

    whole, few = (
        within_time(asked, time_s, LIMITS, sensitivity="measured:score=own")
        for time_s in (3000.0, 1000.0)
    )

    assert (whole.sensitivity, whole.told) == ("measured:score=own", ())
    assert few.sensitivity == "weight-error"
    assert few.told == ("the estimator is weight-error",)
    assert 500 < few.plan.total_s < 600
    with pytest.raises(InputError, match="nothing fits into 100 s"):
        within_time(asked, 100.0, LIMITS, sensitivity="measured:score=own")


@pytest.mark.parametrize("command", ["search", "frontier"])
def test_the_command_line_tells_it(command: str, tmp_path: Path) -> None:
    """By --dry-run, and before a search."""
    source = [part for name in ("model", "data") for part in (f"--{name}", f"{__file__}:{name}")]
    asked = [command, *source, "--score", f"{__file__}:judge", "--score-better", "lower",
             "--limit", LIMITS[0], "--precisions", "w2,w4,w8", "--rounding", "nearest",
             "--sensitivity", "measured:score=own", "--score-cost", "30s"]  # fmt: skip
    asked += ["--measure", "--points", "4"] if command == "frontier" else []
    total = 14 + 4 * (command == "frontier")

    dry = CliRunner().invoke(app, [*asked, "--dry-run", "--json"])
    found = CliRunner().invoke(app, [*asked, "--output", str(tmp_path / "run")])

    planned = json.loads(dry.stdout)["calls"]
    assert (sum(planned["counts"].values()), planned["call_s"]) == (total, 30.0)
    assert f"is asked at most {total} times, 30 s each (as told)" in " ".join(found.stderr.split())


def model() -> nn.Module:
    """The network of ``task``."""
    return task().model


def data() -> list[object]:
    """Calibration examples of ``task``."""
    found: list[object] = [*task().calibration, *task().held_out]
    return found


def test_the_score_is_named() -> None:
    """As it is for people."""
    named = mpq.Task(task().model, data(), candidates=("w4", "w8"), rounding="nearest",
                     score=Score.of(judge, higher_is_better=False, name="mine"))  # fmt: skip
    found = plan(named, LIMITS, sensitivity="weight-error").calls
    assert found is not None
    assert found.sentence.startswith("the score mine is asked at most 4 times, ")
