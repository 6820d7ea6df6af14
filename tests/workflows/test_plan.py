"""What a search will take, told from its first batch; and a search that is made to fit."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpq
import mpq.workflows.within_time as module
from mpq.errors import InfeasibleError, InputError
from mpq.network.examples import Calibration
from mpq.sensitivity import Estimation, OutputSketch, Sensitivity, SensitivityEstimator
from mpq.solvers import Solver
from mpq.solvers.black_box.surrogate import Surrogate
from mpq.workflows.plan import OF_ROUNDING, Phase, Plan, planned
from mpq.workflows.plan import plan as make_plan
from mpq.workflows.unplanned import OF_SOLVER
from mpq.workflows.within_time import _share, within_time
from tests.workflows.networks import Net, batches

LIMITS = {"effective_bits": 4}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def task(model: nn.Module, **options: Any) -> mpq.Task:
    asked = {"candidates": ["w2", "w4", "w8"], **options}
    return mpq.Task(model, batches(8), **asked)


def test_every_phase_of_a_search_is_planned(model: nn.Module) -> None:
    plan = make_plan(task(model), LIMITS)
    names = [phase.name for phase in plan.phases]
    assert names == [
        "layers", "ranges of weights", *OF_ROUNDING, "estimate", "spot check", "solution",
        "measurements",
    ]  # fmt: skip
    assert (plan.num_calibration, plan.num_held_out) == (96, 32)
    assert plan.table()["seconds"].sum() == pytest.approx(plan.total_s)
    assert (plan.table()["seconds"] >= 0).all()
    assert plan.unplanned == ()


def test_phases_that_nobody_asked_for_are_not_there(model: nn.Module) -> None:
    asked = task(model, rounding="nearest", candidates=["w4a8", "w8a8"])
    names = [phase.name for phase in make_plan(asked).phases]
    assert names == [
        "layers", "ranges of inputs", "ranges of weights", "estimate", "spot check", "measurements",
    ]  # fmt: skip


def test_what_is_not_planned_is_named(model: nn.Module) -> None:
    asked = task(model, sequential_rounding=True, bias_correction=True)
    assert make_plan(asked).unplanned == ("sequential rounding", "biases")


def test_what_a_solver_measures_is_planned(model: nn.Module) -> None:
    """So many times one measurement; a time limit is taken whole, however few the examples."""

    def planned_with(solver: str) -> Plan:
        return make_plan(task(model, rounding="nearest"), LIMITS, solver=solver)

    def phase(plan: Plan) -> Phase:
        assert plan.unplanned == ()
        return next(phase for phase in plan.phases if phase.name == OF_SOLVER)

    free = phase(planned_with("surrogate:is_measured=true,num_trials=50"))
    limited = phase(planned_with("surrogate:is_measured=true,time_limit_s=1e-4"))

    assert free.fixed_s > 0
    assert free.calibration_s > 0
    assert free.seconds(96, 32) < 50
    assert limited.seconds(96, 32) == limited.seconds(16, 32) == 1e-4


def test_what_the_solver_of_another_package_measures_is_not_planned(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says nothing of how often."""
    monkeypatch.setattr(Surrogate, "measuring_s", Solver.measuring_s)
    plan = make_plan(task(model), LIMITS, solver="surrogate:is_measured=true")

    assert plan.unplanned == (OF_SOLVER,)
    assert OF_SOLVER not in [phase.name for phase in plan.phases]


def test_the_estimate_is_made_of_the_first_batch_and_counts_by_examples(model: nn.Module) -> None:
    estimator = Counted()
    plan = make_plan(task(model, rounding="nearest"), sensitivity=estimator)
    # Once with the search for ranges, once without.
    assert estimator.seen == [16, 16]
    phase = next(phase for phase in plan.phases if phase.name == "estimate")
    assert phase.fixed_s == phase.held_out_s == 0
    assert phase.seconds(96, 32) == pytest.approx(96 * phase.calibration_s)


class Counted(SensitivityEstimator):
    """Keeps how many examples it was shown each time."""

    name = "counted"
    summary = "for this test"

    def __init__(self) -> None:
        self.seen: list[int] = []

    def estimate(self, on: Estimation) -> Sensitivity:
        self.seen.append(on.data.num_examples)
        return OutputSketch(num_probes=1).estimate(on)


def test_the_sketch_draws_as_many_probes_as_of_all_examples() -> None:
    assert OutputSketch().for_examples(4).num_probes == 8
    assert OutputSketch().for_examples(1000).num_probes == 1
    assert OutputSketch(num_probes=3).for_examples(4).num_probes == 3
    begun = mpq.ESTIMATORS.build("auto").for_examples(16)
    assert isinstance(begun, OutputSketch)
    assert begun.num_probes == 2


class Slow(nn.Module):
    """Counts the examples that it is run on: a clock that no machine is too busy for."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5)
        )
        self.seconds = [0.0]

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        self.seconds[0] += len(x)
        y: Tensor = self.layers(x)
        return y


@pytest.mark.parametrize("sensitivity", ["auto", "sketch", "weight-error"])
@pytest.mark.parametrize("limits", [{"effective_bits": 11}, {"weight_bytes": "0.9x:w8"}])
@pytest.mark.parametrize("refine", [0, 1])
def test_what_is_planned_is_what_is_run(
    sensitivity: str, limits: dict[str, Any], refine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if refine and sensitivity == "weight-error":
        pytest.skip("it cannot be refined")
    torch.manual_seed(0)
    model, data = Slow().eval(), [torch.randn(8, 16) for _ in range(60)]
    monkeypatch.setattr("mpq.workflows.clock.perf_counter", lambda: model.seconds[0])
    asked = mpq.Task(model, data, candidates=["w2", "w3", "w4", "w6", "w8"], rounding="nearest")
    plan = make_plan(asked, limits, sensitivity=sensitivity, refine=refine)
    model.seconds[0] = 0.0
    mpq.search(asked, limits, sensitivity=sensitivity, refine=refine)
    assert plan.total_s == pytest.approx(model.seconds[0], rel=0.3)


class OwnGradients(SensitivityEstimator):
    """Another package's, which differentiates by itself."""

    name = "own gradients"
    summary = "for this test"

    def estimate(self, on: Estimation) -> Sensitivity:
        for batch in on.batches("gradients"):
            x = batch.args[0].clone().requires_grad_()
            on.network.module(x).logsumexp(dim=-1).sum().backward()
        return OutputSketch(num_probes=1).estimate(on)


def test_estimators_of_others_may_use_gradients(model: nn.Module) -> None:
    assert make_plan(task(model, rounding="nearest"), sensitivity=OwnGradients()).total_s > 0


class Experts(nn.Module):
    """An expert for each batch, by the sign of its numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        y: Tensor = self.experts[int(x[0, 0] > 0)](x)
        return y


def test_ranges_are_those_of_all_examples() -> None:
    """The first calibration batch reaches one expert, the first held-out one the other."""
    torch.manual_seed(0)
    here, there = torch.rand(1, 4), -torch.rand(1, 4)
    asked = mpq.Task(
        Experts().eval(), [here, there], [there, here], candidates=["w4a8s", "w8a8s"],
        rounding="nearest",
    )  # fmt: skip
    assert make_plan(asked).total_s > 0


def test_what_is_not_planned_is_told_and_refinement_needs_gradients(model: nn.Module) -> None:
    found = within_time(task(model, tune="scales"), 1e6, LIMITS)
    assert found.told == ("not planned, and takes its time besides: tuning",)
    objective = mpq.Objective("weight_bytes", max_loss=1.0)
    with pytest.raises(InputError, match="minimize"):
        make_plan(task(model), LIMITS, objective=objective, refine=1)
    with pytest.raises(InputError, match="nothing fits"):
        within_time(task(model, rounding="nearest"), 1e-4, LIMITS, refine=1)


def test_a_plan_leaves_no_cache(model: nn.Module, tmp_path: Path) -> None:
    make_plan(task(model, cache=tmp_path / "kept"), LIMITS)
    assert not (tmp_path / "kept").exists()


def test_the_model_is_left_as_found(model: nn.Module) -> None:
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    make_plan(task(model), LIMITS)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module._forward_hooks for module in model.modules())


def test_what_cannot_be_met_is_refused_before_the_batch(model: nn.Module) -> None:
    with pytest.raises(InfeasibleError):
        make_plan(task(model), {"effective_bits": 1})
    with pytest.raises(InputError, match="Task"):
        make_plan(model)  # type: ignore[arg-type]


def plan_of(fixed_s: float, calibration_s: float, held_out_s: float) -> Plan:
    return Plan((Phase("all", fixed_s, calibration_s, held_out_s),), 100, 50)


@pytest.mark.parametrize(
    ("time_s", "is_split", "share"),
    [
        (251.0, True, 1.0),
        (250.0, True, 1.0),
        (150.0, True, 0.5),  # 50 + 100 x 1 + 50 x 2, of which all but 50 shrinks
        (150.0, False, None),  # 50 + 100 are there in any case
        (200.0, False, 0.5),
        (75.0, True, None),  # an eighth: too few examples
        (10.0, True, None),
    ],
)
def test_the_share_of_the_examples_that_fits(
    time_s: float, is_split: bool, share: float | None
) -> None:
    assert _share(plan_of(50, 1, 2), time_s, is_split) == share


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phases of known seconds: what is planned depends on the machine."""

    def known(*given: Any) -> Any:
        plan, prepared = planned(*given)
        seconds = {"codes of weights": (40.0, 0.0), "estimate": (20.0, 1.0)}
        phases = [Phase(name, *seconds.get(name, (0, 0))) for name in (p.name for p in plan.phases)]
        return replace(plan, phases=tuple(phases)), prepared

    monkeypatch.setattr(module, "planned", known)


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize(
    ("time_s", "count", "rounding", "estimator", "told"),
    [
        (1000, 128, "auto", "auto", 0),
        (108, 64, "auto", "auto", 1),  # 60 and half of 96 examples
        (70, 66, "nearest", "auto", 2),
        (10, 128, "nearest", "weight-error", 2),
    ],
)
def test_what_does_not_fit_is_given_up_and_told(
    model: nn.Module, time_s: float, count: int, rounding: str, estimator: str, told: int
) -> None:
    found = within_time(task(model), time_s, LIMITS)
    assert Calibration.of(found.task.calibration).num_examples == count
    assert (found.task.rounding, found.sensitivity) == (rounding, estimator)
    assert len(found.told) == told
    assert found.plan.total_s <= time_s
    result = mpq.search(found.task, LIMITS, sensitivity=found.sensitivity)
    assert result.provenance.rounding == rounding


def test_a_time_that_nothing_fits_into_is_refused(model: nn.Module) -> None:
    with pytest.raises(InputError, match=r"would take .* s here; give more time"):
        within_time(task(model), 1e-6)
    with pytest.raises(InputError, match="a time is positive"):
        within_time(task(model), 0)
