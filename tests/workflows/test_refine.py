"""Estimates at an incumbent, against networks whose divergence is exactly quadratic; refinement."""

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import mpq
from mpq import Calibration, demo
from mpq.cli.__main__ import app
from mpq.network import metric
from mpq.network.metric import KL, OutputMetric, SquaredError
from mpq.network.network import Network
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation, OutputSketch, RefinableEstimator, Sensitivity
from mpq.solvers import SOLVERS, IntegerLinearProgram, LocalSearch, Solver
from mpq.workflows import evaluator as evaluator
from mpq.workflows.evaluate import Reference
from mpq.workflows.refine import refine
from tests.tasks import task_of

Columns = tuple[int, ...]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def parse(*texts: str) -> tuple[Precision, ...]:
    """Precisions from their spelling."""
    return tuple(map(Precision.parse, texts))


class Sum(nn.Module):
    """Layers that read one input, added up: linear in all their weights together."""

    def __init__(self, function: Callable[[Tensor], Tensor] = lambda y: y) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 3) for _ in range(3))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(torch.stack([layer(x) for layer in self.layers]).sum(dim=0))


class Setting:
    """A network with its data, its testbed and an incumbent."""

    def __init__(
        self,
        model: nn.Module,
        data: list[Any],
        candidates: Sequence[Precision],
        incumbent: Columns,
        compared: OutputMetric = KL,
    ) -> None:
        self.data, self.candidates, self.incumbent = Calibration(data), candidates, incumbent
        self.network = Network.of(model.eval(), data, metric=compared)
        ranges = ActivationRanges.calibrate(self.network, self.data, candidates)
        reference = Reference(self.network.module, self.data, compared)
        self.evaluator = evaluator.Evaluator(self.network, Quantizer(ranges), reference)

    def precisions(self, columns: Columns) -> dict[str, Precision]:
        """Layer name to precision."""
        names = (layer.name for layer in self.network.layers)
        return {n: self.candidates[c] for n, c in zip(names, columns, strict=True)}

    def estimate_at(self, estimator: RefinableEstimator, incumbent: Columns) -> Sensitivity:
        """The estimate there."""
        quantizer, near = self.evaluator.quantizer, self.precisions(incumbent)
        return estimator.estimate_at(
            Estimation(self.network, self.data, quantizer, self.candidates), near
        )

    def sketch(self, num_probes: int) -> Sensitivity:
        """At the incumbent, without shrinkage."""
        estimator = OutputSketch(num_probes=num_probes, shrinkage=0.0)
        return self.estimate_at(estimator, self.incumbent)

    def measured(self, columns: Columns) -> float:
        """The divergence that an assignment has."""
        return self.evaluator.measure(self.precisions(columns)).divergence

    def every(self) -> list[Columns]:
        """All assignments."""
        columns = range(len(self.candidates))
        return list(itertools.product(columns, repeat=len(self.network.layers)))


def predicted(found: Sensitivity, columns: Columns) -> float:
    """The loss of an assignment, with interactions."""
    assert found.interactions is not None
    additive = found.table.values[range(len(columns)), columns].sum()
    return float(additive + found.interactions.excess(np.array(columns)))


WEIGHTS = parse("w2", "w3", "w8", "fp32")
ROUNDED = parse("w2a3", "w4a3", "w8a3")
INPUTS = parse("w3a2d", "w3a4d", "w3a8d")
EXACT = {
    "weights": (WEIGHTS, (0, 1, 2)),
    "original": (WEIGHTS, (3, 3, 3)),
    "weights-at-rounded-inputs": (ROUNDED, (1, 0, 2)),
    "inputs-at-rounded-weights": (INPUTS, (0, 1, 1)),
}
"""Choices, and an incumbent from which the outputs change linearly: not weight and input at once,
which gives their product, too."""


def linear(name: str) -> Setting:
    """A network and choices between which its outputs are linear."""
    candidates, incumbent = EXACT[name]
    return Setting(Sum(), [torch.randn(7, 4)], candidates, incumbent, SquaredError())


def every_sign(monkeypatch: pytest.MonkeyPatch, channels: int) -> int:
    """Draws the next vector of signs for all examples; returns how many there are."""
    vectors = itertools.cycle(itertools.product((-1.0, 1.0), repeat=channels))

    def signs(like: Tensor, _: torch.Generator) -> Tensor:
        return torch.tensor(next(vectors), dtype=torch.float64).expand(like.shape)

    monkeypatch.setattr(metric, "random_signs", signs)
    return int(2**channels)


@pytest.mark.parametrize("name", EXACT)
def test_where_outputs_are_linear_the_estimate_is_the_divergence(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """With every vector of signs: the squared error of every assignment, as it is measured."""
    setting = linear(name)

    found = setting.sketch(every_sign(monkeypatch, 3))

    for columns in setting.every():
        expected = setting.measured(columns)
        assert predicted(found, columns) == pytest.approx(expected, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("name", ["weights", "inputs-at-rounded-weights"])
def test_drawn_signs_are_right_on_average(name: str) -> None:
    """With the real probe, up to what 1,000 draws leave."""
    setting = linear(name)

    found = setting.sketch(num_probes=1000)

    for columns in setting.every()[::5]:
        expected = setting.measured(columns)
        assert predicted(found, columns) == pytest.approx(expected, rel=0.15, abs=1e-8)


def residuals(setting: Setting, x: Tensor) -> tuple[Tensor, dict[tuple[int, int], Tensor]]:
    """What the incumbent changes of the outputs ``[N, C]``, and what each cell does beyond it."""
    quantizer = setting.evaluator.quantizer
    held = list(setting.precisions(setting.incumbent).items())

    def output(layer: int, columns: Precision) -> Tensor:
        name = held[layer][0]
        layer_module = setting.network.layer_module(name)
        rounded = quantizer.activation(name, layer_module, x, columns.activation)
        return (rounded @ quantizer.weight(name, layer_module, columns.weight).T).double()

    at = [output(layer, precision) for layer, (_, precision) in enumerate(held)]
    original = [x.double() @ setting.network.weight(name).T.double() for name, _ in held]
    cells = {
        (layer, column): output(layer, columns) - at[layer]
        for layer, column in itertools.product(range(len(held)), range(len(setting.candidates)))
        for columns in [setting.candidates[column]]
    }
    return torch.stack(at).sum(dim=0) - torch.stack(original).sum(dim=0), cells


@pytest.mark.parametrize("name", EXACT)
def test_table_adds_up_to_the_first_order_around_the_incumbent(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The incumbent's loss, and what each change does to it on its own; products are left out."""
    x = torch.randn(7, 4)
    candidates, incumbent = EXACT[name]
    setting = Setting(Sum(), [x], candidates, incumbent, SquaredError())
    estimator = OutputSketch(num_probes=every_sign(monkeypatch, 3), interactions=False)

    found = setting.estimate_at(estimator, incumbent)

    assert found.interactions is None
    assert found.table.unit == "squared_output"
    residual, cells = residuals(setting, x)
    for columns in setting.every():
        expected = residual.square().sum() / 2
        for cell in enumerate(columns):
            expected += (cells[cell] * residual).sum() + cells[cell].square().sum() / 2
        predicted = found.table.values[range(3), columns].sum()
        assert predicted == pytest.approx(float(expected) / 7, rel=1e-4, abs=1e-7)


def test_where_nothing_is_rounded_it_is_the_estimate() -> None:
    """An incumbent of original precisions, or none at all."""
    setting = Setting(Sum(torch.tanh), [torch.randn(9, 4)], parse("w2a4d", "w4", "fp32"), (2, 2, 2))
    network, data, quantizer = setting.network, setting.data, setting.evaluator.quantizer

    expected = OutputSketch().estimate(Estimation(network, data, quantizer, setting.candidates))
    found = setting.estimate_at(OutputSketch(), (2, 2, 2))

    assert found.interactions is not None
    assert expected.interactions is not None
    np.testing.assert_allclose(found.table.values, expected.table.values, rtol=1e-5)
    np.testing.assert_allclose(found.interactions.factor, expected.interactions.factor, rtol=1e-4)


@pytest.mark.parametrize("incumbent", [(0, 0, 2), (2, 0, 0)])
def test_near_the_incumbent_it_predicts_what_the_original_cannot(
    monkeypatch: pytest.MonkeyPatch, incumbent: Columns
) -> None:
    """A curved network, two layers at 2 bits, where a third one is changed a little."""
    torch.manual_seed(2)
    layers = (nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 4))
    model, candidates = nn.Sequential(*layers), parse("w2", "w5", "w6", "w8")
    for parameter in model.parameters():
        parameter.data *= 3
    setting = Setting(model, [torch.randn(100, 6)], candidates, incumbent, SquaredError())
    estimator = OutputSketch(num_probes=every_sign(monkeypatch, 4), shrinkage=0.0)
    network, data, quantizer = setting.network, setting.data, setting.evaluator.quantizer

    near = setting.estimate_at(estimator, incumbent)
    plain = estimator.estimate(Estimation(network, data, quantizer, candidates))

    neighbours = [tuple(column if c == 2 else c for c in incumbent) for column in (1, 2, 3)]
    measured = [setting.measured(columns) for columns in neighbours]
    found, other = ([predicted(s, c) for c in neighbours] for s in (near, plain))
    assert found == pytest.approx(measured, rel=3e-3)
    assert other != pytest.approx(measured, rel=3e-2)


def test_the_network_is_left_as_found() -> None:
    """Rounded weights and hooks of the incumbent are gone, after a failure, too."""
    setting = Setting(Sum(), [torch.randn(5, 4)], parse("w2a4d", "w4"), (0, 1, 0))
    module = setting.network.module
    before = {name: (id(p), p.clone()) for name, p in module.named_parameters()}
    hooks = [(list(m._forward_hooks), list(m._forward_pre_hooks)) for m in module.modules()]

    setting.estimate_at(OutputSketch(), setting.incumbent)
    setting.data = Calibration([torch.randn(5, 4), torch.randn(5, 3)])
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        setting.estimate_at(OutputSketch(), setting.incumbent)

    for name, parameter in module.named_parameters():
        assert id(parameter) == before[name][0]
        assert torch.equal(parameter, before[name][1])
        assert not parameter.requires_grad
    left = [(list(m._forward_hooks), list(m._forward_pre_hooks)) for m in module.modules()]
    assert left == hooks


@dataclass(frozen=True)
class Told(RefinableEstimator):
    """Gives one table after the other, and keeps the incumbents it was asked at."""

    name = "told"
    summary = "tables from a list"
    tables: list[npt.NDArray[np.float64]]
    seen: list[dict[str, str]] = field(default_factory=list)

    def estimate(self, on: Estimation) -> Sensitivity:
        """See the base."""
        return self.estimate_at(on, {})

    def estimate_at(self, on: Estimation, incumbent: Mapping[str, Precision]) -> Sensitivity:
        """See the base."""
        values = self.tables[len(self.seen)]
        self.seen.append({name: str(precision) for name, precision in incumbent.items()})
        return Sensitivity(on.table(values, "told", "nats"))


def wanting(columns: Columns) -> npt.NDArray[np.float64]:
    """A table ``[3, 3]`` whose best assignment is the given one."""
    return 1.0 - np.eye(3)[list(columns)]


def refined(
    tables: Sequence[Columns], rounds: int, solver: Solver | None = None
) -> tuple[Setting, Told, Problem, Solution, Any]:
    """Refines from all layers at 2 bits, by tables that want the given assignments."""
    setting = Setting(Sum(torch.tanh), [torch.randn(40, 4)], parse("w2", "w3", "w8"), (0, 0, 0))
    told = Told([wanting(columns) for columns in ((0, 0, 0), *tables)])
    quantizer, exact = setting.evaluator.quantizer, IntegerLinearProgram()
    first = told.estimate(Estimation(setting.network, setting.data, quantizer, setting.candidates))
    problem, asked = Problem(first.table), solver or exact
    start = exact.solve(problem)
    found, rows = refine(told, asked, problem, start, setting.evaluator, setting.data, rounds)
    return setting, told, problem, found, rows


def test_an_assignment_is_kept_where_it_loses_less() -> None:
    """Every round looks from the best assignment so far; the numbers are those measured."""
    setting, told, problem, found, rows = refined([(1, 1, 1), (2, 2, 2)], rounds=2)

    assert found.columns is not None
    assert found.columns.tolist() == [2, 2, 2]
    assert [set(seen.values()) for seen in told.seen] == [set(), {"w2a32"}, {"w3a32"}]
    assert [row.is_kept for row in rows] == [True, True]
    measured = [row.measured_loss for row in rows]
    assert measured == [setting.measured((1, 1, 1)), setting.measured((2, 2, 2))]
    assert [row.predicted_loss for row in rows] == [0.0, 0.0]
    assert (found.loss, found.status) == (problem.loss_of(found.columns), Status.FEASIBLE)
    assert found.solver == "ilp (HiGHS), refined"
    assert found.bound == 0.0


def test_an_assignment_that_loses_more_is_dropped_and_ends_it() -> None:
    """The measured loss never rises, and no further round is spent."""
    _, told, _, found, rows = refined([(1, 1, 1), (0, 0, 1), (2, 2, 2)], rounds=3)

    assert found.columns is not None
    assert found.columns.tolist() == [1, 1, 1]
    assert [row.is_kept for row in rows] == [True, False]
    assert len(told.seen) == 3


def test_where_nothing_is_gained_the_first_solution_stays() -> None:
    """As it was solved, proof included."""
    _, _, problem, found, rows = refined([(0, 0, 0)], rounds=3)

    expected = IntegerLinearProgram().solve(problem)
    assert (found.loss, found.bound, found.status) == (0.0, expected.bound, Status.OPTIMAL)
    assert [row.is_kept for row in rows] == [False]


class OutOfTime(Solver):
    """A solver that finds nothing."""

    name = "out_of_time"
    summary = "finds nothing"

    def solve(self, problem: Problem) -> Solution:
        """See the base."""
        return Solution(Status.UNKNOWN, None, float("nan"), None, self.name, 0.0)


def test_a_solver_that_runs_out_of_time_ends_it() -> None:
    """The assignment that there is stays; nothing is not mistaken for no loss."""
    _, _, _, found, rows = refined([(2, 2, 2)], rounds=1, solver=OutOfTime())

    assert found.columns is not None
    assert found.columns.tolist() == [0, 0, 0]
    assert rows == ()


def quick_task(**changes: Any) -> tuple[mpq.Task, dict[str, Any]]:
    """The demo at few bits, rounded so that predictions are poor, and the options of a search."""
    options: dict[str, Any] = {
        "limits": ["bit_operations=1.5x:w2a4"],
        "candidates": ["w2a4", "w2a8", "w3a4", "w4a4", "w4a8"],
        "held_out": Calibration(demo.held_out, stop=32),
        "ranges": mpq.Ranges("minmax", "minmax"),
        "rounding": "nearest",
    }
    examples = Calibration(demo.calibration, stop=64)
    return task_of(demo.make_net(), examples, {**options, **changes})


def quick(**changes: Any) -> mpq.SearchResult:
    """A search for it."""
    task, own = quick_task(**changes)
    return mpq.search(task, **own)


@pytest.mark.parametrize(("solver", "seed"), [("auto", 0), ("ilp", 0), ("ilp", 2)])
def test_refinement_lowers_the_measured_loss(solver: str, seed: int) -> None:
    """From the same start: kept rounds fall, limits hold, the problem's own bound stays true."""
    plain, found = (quick(solver=solver, seed=seed, refine=n) for n in (0, 4))

    rounds = found.provenance.refinements
    kept = [row.measured_loss for row in rounds if row.is_kept]
    chosen = found.solution.columns
    assert chosen is not None
    assert plain.provenance.refinements == ()
    assert 1 <= len(rounds) <= 4
    assert kept == sorted(kept, reverse=True)
    assert [row.is_kept for row in rounds[:-1]] == [True] * (len(rounds) - 1)
    examples = Calibration(demo.calibration, stop=64)
    # The predicted optimum, where every refinement starts; a search may end with a uniform one.
    start = SOLVERS.build(solver, seed).solve(plain.problem)
    session = mpq.Session.of(quick_task()[0])
    assert start.columns is not None
    started = session.prepared.on_calibration.measure(start.precisions(plain.problem)).divergence
    measured = mpq.evaluate(demo.make_net(), found.assignment, examples)["quantized"].divergence
    assert measured < started
    assert measured == pytest.approx(kept[-1], rel=1e-4)
    assert found.problem.is_feasible(chosen)
    assert found.solution.loss == found.problem.loss_of(chosen) >= start.loss
    assert found.solution.bound is not None
    assert found.solution.bound <= start.loss
    assert found.solution.status is Status.FEASIBLE
    assert str(found.assignment.metadata.solver).endswith(", refined")


def test_refinement_by_local_search_may_have_no_rounds() -> None:
    """``refine=0`` is the plain search."""
    plain, found = quick(include=["head"]), quick(include=["head"], refine=0)

    assert found.assignment.to_json() == plain.assignment.to_json()


def test_what_cannot_be_refined_is_refused() -> None:
    """Before the estimate: an estimator that cannot look again, a negative number of rounds."""
    with pytest.raises(mpq.InputError, match="weight-error cannot be refined; .*'sketch' can"):
        quick(sensitivity="weight-error", refine=1)
    with pytest.raises(mpq.InputError, match="a number of rounds, at least 0; got -1"):
        quick(refine=-1)


def test_refinement_on_the_command_line(tmp_path: Path) -> None:
    """Each round is told, and what is written is the refined assignment."""
    data = tmp_path / "data.py"
    data.write_text(
        "from mpq import demo\n\ndef calibration():\n    yield next(iter(demo.calibration()))\n"
    )
    limit = ("--limit", "bit_operations=1.5x:w2a4", "--precisions", "w2a4,w2a8,w3a4,w4a4,w4a8")
    ranges = ("--weight-range", "minmax", "--activation-range", "minmax")

    done = CliRunner().invoke(
        app,
        [
            *("search", *limit, *ranges, "--refine", "1", "--points", "2"),
            *("--rounding", "nearest"),
            *("--data", f"{data}:calibration", "--output", str(tmp_path)),
        ],
    )

    assert done.exit_code == 0, done.output
    assert re.search(r"refinement 1: measured loss 0\.\d+ on calibration ex.*, kept", done.stdout)
    record = json.loads((tmp_path / "assignment.json").read_text())["metadata"]
    assert record["solver"] == "branch-and-bound, refined"
    assert record["solver_status"] == "feasible"


def test_refinement_of_an_unrefinable_estimator_on_the_command_line(tmp_path: Path) -> None:
    """One line on standard error, and exit code 2."""
    done = CliRunner().invoke(
        app,
        ["search", "--refine", "2", "--sensitivity", "measured", "--output", str(tmp_path / "new")],
    )

    assert done.exit_code == 2
    assert done.stderr.strip() == ("error: measured cannot be refined; the estimator 'sketch' can")


def test_the_local_search_is_refined_with_interactions() -> None:
    """Its problem near the incumbent has them, and a table of its own."""
    seen: list[Problem] = []

    class Spy(Solver):
        name = "spy"
        summary = "local search that tells"

        def solve(self, problem: Problem) -> Solution:
            seen.append(problem)
            return LocalSearch(num_restarts=1).solve(problem)

    found = quick(solver=Spy(), refine=1)

    first, near = seen[:2]
    assert near.interactions is not None
    assert first.interactions is not None
    np.testing.assert_allclose(first.interactions.alone, first.loss.values, rtol=1e-4)
    assert np.abs(near.interactions.alone - near.loss.values).max() > 1e-3
    assert near.budgets == first.budgets
    assert replace(found.problem).interactions is first.interactions
