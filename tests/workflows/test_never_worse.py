"""An answer is never worse than a uniform precision that meets the same budgets."""

import json
from dataclasses import replace

import pytest
from torch import nn

import mpq
from mpq.problem.solution import Status
from mpq.quantization.precision import Precision
from mpq.report.frontier import Frontier, FrontierPoint
from mpq.report.measurement import Measurement
from mpq.report.safeguard import Verdict
from mpq.workflows import never_worse
from mpq.workflows.uniform import uniform_within
from tests.blind import BETWEEN, Blocked, examples

LIMIT = {"weight_bytes": "1.05x:w4"}


def task(model: nn.Module | None = None, **rules: object) -> mpq.Task:
    """Three precisions of weights."""
    return mpq.Task(
        (model or Blocked(BETWEEN["round"])).eval(),
        examples(),
        examples(64, seed=1),
        candidates=["w2", "w4", "w8"],
        rules=mpq.Rules(**rules),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def replaced() -> mpq.SearchResult:
    """Where the sketch believes that the first layer costs nothing."""
    return mpq.search(task(), LIMIT, sensitivity="sketch")


def test_a_uniform_precision_that_is_better_is_the_answer(replaced: mpq.SearchResult) -> None:
    """The result says so, is no optimum any more, and loses what the uniform one loses."""
    assert replaced.safeguard is not None
    assert replaced.safeguard.replaced_by == "w4a32"
    assert {str(p) for p in replaced.assignment.precisions.values()} == {"w4a32"}
    assert replaced.solution.status is Status.FEASIBLE
    assert replaced.measured.divergence == replaced.comparison("w4a32").measured.divergence
    assert "it is the answer" in replaced.safeguard.sentence
    assert "replaced by uniform w4a32" in replaced.solution.solver


def test_a_search_that_is_out_of_time_is_never_worse_either(replaced: mpq.SearchResult) -> None:
    """A single measurement fits, of the assignment that the sketch believes in."""
    solver = "surrogate:is_measured=true,time_limit_s=1e-6"

    found = mpq.search(task(), LIMIT, sensitivity="sketch", solver=solver)

    assert found.safeguard is not None
    assert found.safeguard.replaced_by == "w4a32"
    assert found.measured.divergence == replaced.measured.divergence
    # Its loss is what that solver would have measured, as it says, and no predicted one.
    calibrated = mpq.evaluate(task().model, found.assignment, examples())
    assert found.loss_name == "measured loss (calibration examples)"
    assert found.solution.loss == pytest.approx(calibrated["quantized"].divergence)
    assert found.solution.loss != replaced.solution.loss


def test_the_record_keeps_it(replaced: mpq.SearchResult, tmp_path: object) -> None:
    """Written and loaded again."""
    replaced.save(str(tmp_path))

    found = mpq.load(str(tmp_path))

    assert found.safeguard == replaced.safeguard
    assert found.spot_check == replaced.spot_check


def test_the_default_needs_no_replacement() -> None:
    """What no gradient reaches is measured; the mixed answer is at least as good."""
    result = mpq.search(task(), LIMIT)

    assert result.safeguard is not None
    assert result.safeguard.replaced_by is None
    assert all(check.verdict is not Verdict.WORSE for check in result.safeguard.checks)
    assert result.spot_check is not None
    assert result.spot_check.no_gradient == ("a",)


def test_only_precisions_within_the_budgets_are_tried(replaced: mpq.SearchResult) -> None:
    """w8 takes twice the bytes."""
    assert [str(p) for p in uniform_within(replaced.problem)] == ["w2a32", "w4a32"]


def test_fixed_layers_keep_their_precision() -> None:
    """The others are uniform around them."""
    result = mpq.search(task(fix=(("c", "w8"),)), {"weight_bytes": "2x:w4"})

    found = uniform_within(result.problem)

    names = result.problem.loss.layers
    for precision, columns in found.items():
        chosen = result.problem.precisions_of(columns)
        assert {name: str(chosen[name]) for name in names} == {
            "a": str(precision), "b": str(precision), "c": "w8a32"
        }  # fmt: skip


def test_a_measured_frontier_is_corrected_too(replaced: mpq.SearchResult) -> None:
    """No point of it is worse, on both sets, than a uniform precision that costs no more."""
    session = mpq.Session.of(task())

    found = session.measured(replaced.frontier("weight_bytes", 6))

    corrected = [point for point in found.points if "uniform w4a32" in point.label]
    assert len(corrected) == 1
    assert {str(p) for p in corrected[0].precisions.values()} == {"w4a32"}
    assert [point.cost for point in found.points] == sorted(point.cost for point in found.points)


def test_a_measured_limit_is_met_by_a_uniform_precision() -> None:
    """Where no point of the predicted frontier is acceptable, uniform w8 may be."""
    least = mpq.search(task(), {"weight_bytes": "1x:w8"}, sensitivity="sketch")
    most = least.comparison("w8a32").measured.divergence * 1.5
    objective = mpq.Objective("weight_bytes", max_measured_loss=most)

    found = mpq.search(task(), objective=objective, sensitivity="sketch")

    assert found.measured.divergence <= most
    assert found.comparison("result").costs["weight_bytes"] <= found.comparison("w8a32").costs[
        "weight_bytes"
    ]  # fmt: skip
    assert found.solution.solver.endswith("replaced by uniform w8a32")
    assert "no point of the frontier" in found.solution.why


def test_an_objective_is_never_worse_either() -> None:
    """A uniform precision that is cheaper than what bisection found, and acceptable, is taken."""
    objective = mpq.Objective("weight_bytes", max_measured_loss=1e-4)

    found = mpq.search(task(), objective=objective, sensitivity="sketch")

    assert found.solution.solver.endswith("replaced by uniform w4a32")
    result = found.comparison("result")
    assert result.measured.divergence <= 1e-4
    for label in ("w2a32", "w4a32", "w8a32"):
        uniform = found.comparison(label)
        if uniform.measured.divergence <= 1e-4:
            assert result.costs["weight_bytes"] <= uniform.costs["weight_bytes"]


def test_of_uniform_precisions_of_one_cost_the_better_is_a_point(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """w4a4 and w4a8 store the same bytes; both better all that is cheaper."""

    def divergence(_: object, point: FrontierPoint) -> float:
        assert point.measured is not None
        return point.measured.divergence

    monkeypatch.setattr(never_worse, "_loss", divergence)
    monkeypatch.setattr(
        never_worse, "_is_better", lambda _, u, point: divergence(_, u) < divergence(_, point)
    )

    def point(label: str, cost: float, loss: float) -> FrontierPoint:
        return FrontierPoint(label, cost, loss, {}, measured=Measurement(loss, None, None, 9))

    points = [point("frontier", 1.0, 5.0)]
    others = [point("w4a4", 2.0, 3.0), point("w4a8", 2.0, 2.0), point("w2a8", 0.5, 9.0)]
    others = [replace(u, precisions={"a": Precision.parse(u.label)}) for u in others]

    found = never_worse.never_worse_points(None, points, others)  # type: ignore[arg-type]

    labels = ["frontier (uniform w2a8)", "frontier", "frontier (uniform w4a8)"]
    assert [each.label for each in found] == labels
    assert Frontier("weight_bytes", "bytes", "nats", found).hypervolume == pytest.approx(
        ((2.0 - 1.0) * (9.0 - 5.0)) / ((2.0 - 0.5) * (9.0 - 2.0))
    )


def test_a_limit_that_nothing_meets_names_what_was_tried() -> None:
    """The uniform precisions were measured too, before it is refused."""
    objective = mpq.Objective("weight_bytes", max_measured_loss=1e-12)

    with pytest.raises(mpq.InfeasibleError, match="any uniform precision: w2a32, w4a32, w8a32"):
        mpq.search(task(), objective=objective, sensitivity="sketch")


def test_a_better_uniform_precision_is_a_point_of_a_measured_frontier(
    replaced: mpq.SearchResult,
) -> None:
    """Also beyond the last point, which is believed to be as good as it gets."""
    predicted = replaced.frontier("weight_bytes", 6)
    w8 = next(point for point in predicted.others if point.label == "w8a32")
    assert predicted.points[-1].cost < w8.cost

    found = mpq.Session.of(task()).measured(predicted)

    assert found.points[-1].precisions == w8.precisions
    assert found.points[-1].label == "frontier (uniform w8a32)"
    assert not found.warning
    assert 0 <= found.hypervolume <= 1


def test_a_predicted_frontier_says_that_its_check_failed(replaced: mpq.SearchResult) -> None:
    """Which layers, and how to measure it; the default, which mends them, says nothing."""
    found = replaced.frontier("weight_bytes", 6)
    data = json.loads(found.to_json())

    assert found.untrusted == ("a",)
    assert "--measure" in data["warning"]
    assert data["untrusted_layers"] == ["a"]
    assert data["spot_check"] == list(found.spot_check)
    assert not data["is_measured"]
    assert not mpq.frontier(task(), "weight_bytes", num_points=4).warning
