"""What a search will take, told from its first batch: seconds and memory of every phase."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, Final, TypeVar, final

import torch

from mpq._support.events import Callback, listening
from mpq.errors import GradientError
from mpq.network.mapped import streaming
from mpq.network.modules import share_parameters
from mpq.network.randomness import random_state_kept
from mpq.problem.limits import Limit, Limits, parse_limits
from mpq.problem.problem import Problem
from mpq.quantization.branch_fits import rehearsed
from mpq.recipes import Recipe
from mpq.rounding import AutoRounding
from mpq.sensitivity import Estimation, Sensitivity, SensitivityEstimator
from mpq.sensitivity.auto import AutoEstimator
from mpq.sensitivity.measured import Measured
from mpq.sensitivity.passes.moment_mixing import SecondMoments
from mpq.sensitivity.spot_check import spot_check
from mpq.solvers import Solver
from mpq.solvers.queries.solve import solve
from mpq.workflows.codes_keys import NUMBERS_TOGETHER, ToRound, ToRoundTogether
from mpq.workflows.defaults import ESTIMATOR, SOLVER
from mpq.workflows.follow import Way, follow
from mpq.workflows.forecast import ESTIMATE
from mpq.workflows.measuring_s import measuring_s
from mpq.workflows.method import Method
from mpq.workflows.num_measured import NumMeasured
from mpq.workflows.objective import Objective
from mpq.workflows.one_measurement import OneMeasurement, timed
from mpq.workflows.rounded_weights import NUM_TRIED, to_round
from mpq.workflows.score import Judge
from mpq.workflows.score_calls import PlannedCalls, ScoreCalls
from mpq.workflows.setup import Prepared
from mpq.workflows.shown_examples import Shown
from mpq.workflows.streamable import check_streamed
from mpq.workflows.task import Task, check_task
from mpq.workflows.uniform import uniform_within
from mpq.workflows.unplanned import OF_SOLVER, unplanned

if TYPE_CHECKING:
    import pandas as pd

Value = TypeVar("Value")
OF_ROUNDING: Final = ("second moments", "codes of weights", "trial of the codes")
"""Phases of a rounding with regard to data."""


@final
@dataclass(frozen=True)
class Phase:
    """One part of a search.

    Args:
        name: What is done.
        fixed_s: Seconds whatever the data.
        calibration_s: Seconds for each calibration example.
        held_out_s: Seconds for each held-out example.
        peak_bytes: What it takes beyond what was held before; ``None``: not known.
    """

    name: str
    fixed_s: float = 0.0
    calibration_s: float = 0.0
    held_out_s: float = 0.0
    peak_bytes: int | None = None

    def seconds(self, num_calibration: int, num_held_out: int) -> float:
        """Of so many examples."""
        return self.fixed_s + self.calibration_s * num_calibration + self.held_out_s * num_held_out


@final
@dataclass(frozen=True)
class Plan:
    """Seconds and memory of a search, as its first batch tells them.

    Args:
        phases: In their order.
        num_calibration: Calibration examples.
        num_held_out: Examples that answers are measured on.
        unplanned: What the task asks for besides, of which nothing is said.
        calls: Of the user's own score; ``None``: there is none.
    """

    phases: tuple[Phase, ...]
    num_calibration: int
    num_held_out: int
    unplanned: tuple[str, ...] = ()
    calls: PlannedCalls | None = None

    @property
    def total_s(self) -> float:
        """Seconds of all phases."""
        return sum(p.seconds(self.num_calibration, self.num_held_out) for p in self.phases)

    @property
    def peak_bytes(self) -> int | None:
        """The largest of all phases, beyond what is held when the search begins."""
        known = [p.peak_bytes for p in self.phases if p.peak_bytes is not None]
        return max(known, default=None)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "phases": self._rows,
            "total_s": self.total_s,
            "peak_bytes": self.peak_bytes,
            "num_calibration": self.num_calibration,
            "num_held_out": self.num_held_out,
            "unplanned": list(self.unplanned),
            "calls": None if self.calls is None else self.calls.to_dict(),
        }

    def table(self) -> "pd.DataFrame":
        """A row for each phase: ``seconds``, and ``peak_bytes`` (missing where not known)."""
        import pandas as pd

        return pd.DataFrame(self._rows).astype({"peak_bytes": "Int64"})

    @property
    def _rows(self) -> list[dict[str, Any]]:
        counts = self.num_calibration, self.num_held_out
        return [
            {"phase": p.name, "seconds": p.seconds(*counts), "peak_bytes": p.peak_bytes}
            for p in self.phases
        ]


@random_state_kept()
def plan(
    task: Task,
    limits: Limits = (),
    *,
    objective: Objective | None = None,
    sensitivity: str | SensitivityEstimator = ESTIMATOR,
    solver: str | Solver = SOLVER,
    refine: int = 0,
    num_points: int = 0,
    callbacks: Sequence[Callback] = (),
    recipe: str | Recipe | None = None,
    keep: Collection[str] = (),
) -> Plan:
    """Does a search on its first batch, and says what the whole of it will take.

    Layers are found in all of the data, and ranges of inputs, as by the search. Second moments, the
    estimate and a measurement are made of the first batch, and count as often as there are
    examples to it; the spot check is made as by the search, of few examples; codes are made of one
    weight of each shape. What a trial of ``auto`` takes is that of one share of the examples,
    though up to four may be asked. With limits the problem is solved by prices of the first batch.
    Nothing that a cache keeps is counted on. Seconds are those of a clock on this machine as busy
    as it is.

    Args:
        task: As in ``mpq.search``.
        limits: As in ``mpq.search``; what cannot be met is refused.
        objective: As in ``mpq.search``; what it measures is not planned.
        sensitivity: As in ``mpq.search``.
        solver: As in ``mpq.search``; of one that measures, its measurements alone, if it says how
            many.
        refine: As in ``mpq.search``.
        num_points: Points of a frontier, or alternatives, that are measured; what is planned of
            them is calls of the user's own score.
        callbacks: Who is told what happens meanwhile (``mpq.callbacks``): none changes the answer.
        recipe: As in ``mpq.search``.
        keep: As in ``mpq.search``.

    Raises:
        InputError: As ``mpq.search``.
        InfeasibleError: If no assignment meets the limits.
    """
    check_task(task, "workflows.plan.plan")
    with listening(callbacks):
        way = follow(recipe, Way(task, sensitivity, solver, refine=refine), keep)
        with way.naming():
            return planned(way.task, limits, way.method(objective), num_points)[0]


def planned(
    task: Task, limits: Limits, method: Method, num_points: int = 0
) -> tuple[Plan, Prepared]:
    """The plan, and the task that it is of, made ready."""
    if task.streamed:
        check_streamed(task, method)
    with streaming(bool(task.streamed), task.memory_bytes):
        return _planned(replace(task, cache=None), parse_limits(limits), method, num_points)


def _planned(
    task: Task, limits: Sequence[Limit], method: Method, num_points: int
) -> tuple[Plan, Prepared]:
    score = ScoreCalls.of(task, method, num_points)
    if score is not None:
        # Its calls take as long whatever the examples: they are a phase of their own.
        task, method = replace(task, score=None), score.without(method)
    prepared, layers_s, _ = timed(lambda: Prepared.untransformed(task), device=None)
    constraints = prepared.constraints(limits)
    first = _Rehearsal(prepared, method.estimator)
    phases = [first.layers(layers_s), *first.phases(method.rounds)]
    interactions = first.found.interactions if method.solver.takes_interactions else None
    problem = Problem(first.found.table, constraints, interactions)
    if limits and not method.solver.is_measuring:
        _, seconds, _ = timed(lambda: solve(method.solver, problem), prepared.network.device)
        phases.append(Phase("solution", seconds))
    if method.solver.is_measuring:
        phases += first.solver_measurements(method.solver, problem)
    phases.append(first.measurements(len(uniform_within(problem))))
    calls = None
    if score is not None:
        judge = Judge(score.score, prepared.held_out, share_parameters(task.model))
        calls = score.planned(prepared, judge, problem)
        phases += [Phase(name, seconds) for name, seconds in calls.seconds.items()]
    counts = prepared.calibration.num_examples, prepared.held_out.num_examples
    return Plan(tuple(phases), *counts, tuple(unplanned(task, method)), calls), prepared


@final
class _Rehearsal:
    """The parts of a search, each done once on its first batch, with weights rounded to nearest.

    ``FirstBatch`` looks at as little of a search under way as it can; this says what grows with
    which examples, and what memory is taken, so that examples can be left out (``within_time``).

    Args:
        whole: The task with all of its examples.
        estimator: The search's.
    """

    def __init__(self, whole: Prepared, estimator: SensitivityEstimator) -> None:
        self.whole, self._asked = whole, estimator
        # What ``auto`` begins with: its check looks at few examples, however many there are.
        self._estimator = estimator.for_examples(whole.calibration.num_examples)
        plain = replace(whole.task, rounding="nearest", sequential_rounding=False)
        self._plain = replace(whole, task=plain, is_rehearsal=True)
        self._calibration, self._held_out = (
            x.until(x.first().size) for x in (whole.calibration, whole.held_out)
        )
        self.found: Sensitivity
        self._forward_s = 0.0

    @cached_property
    def _on(self) -> Estimation:
        # Ranges of inputs are those of all examples: the first batch need not reach every layer.
        judges = replace(self._plain.judges, calibration=self._calibration)
        return judges.asked(replace(self._plain.asked, data=self._calibration))

    @property
    def _size(self) -> int:
        return self._calibration.num_examples

    @property
    def _device(self) -> torch.device:
        return self.whole.network.device

    def layers(self, seconds: float) -> Phase:
        """Finding them took so long: two passes over all examples, and some over a batch."""
        network = self.whole.network
        (batch,) = network.batches(self._calibration)

        def forward() -> None:
            with torch.no_grad():
                network.outputs(batch)

        self._forward_s = timed(forward, self._device)[1] / self._size
        passes_s = 2 * self._forward_s * self.whole.calibration.num_examples
        grows_s = min(passes_s, seconds) / self.whole.calibration.num_examples
        fixed_s = seconds - grows_s * self.whole.calibration.num_examples
        return Phase("layers", fixed_s, grows_s)

    def phases(self, rounds: int) -> Iterator[Phase]:
        """Those before the solution, and rounds of refinement."""
        _, seconds, _ = timed(lambda: self._plain.asked, self._device)
        if any(not f.is_exact for f in self._on.inputs.formats):
            by_example = seconds / self.whole.calibration.num_examples
            yield Phase("ranges of inputs", calibration_s=by_example)
        # The first time ranges of weights are searched for, which are kept.
        _, cold_s, cold_bytes = timed(self._estimated, self._device)
        self.found, warm_s, warm_bytes = timed(self._estimated, self._device)
        yield Phase("ranges of weights", max(cold_s - warm_s, 0.0), peak_bytes=cold_bytes)
        yield from self._rounding()
        yield Phase(ESTIMATE, calibration_s=warm_s / self._size, peak_bytes=warm_bytes)
        if not self._asked.is_measuring:
            table, seed = self.found.table, self.whole.task.seed
            _, seconds, _ = timed(lambda: spot_check(self._plain.asked, table, seed), self._device)
            yield Phase("spot check", seconds)
        if rounds:
            each_s = warm_s / self._size + 2 * self._forward_s
            yield Phase("refinement", calibration_s=rounds * each_s)

    def _estimated(self) -> Sensitivity:
        try:
            return self._estimator.estimate(self._on)
        except GradientError:
            if self._asked is self._estimator or self._asked.name != AutoEstimator.name:
                raise
            # As ``auto`` does.
            self._estimator = Measured()
            return self._estimator.estimate(self._on)

    def _rounding(self) -> Iterator[Phase]:
        rounding = self.whole.task.weight_rounding
        formats = [rehearsed(f) for f in self._on.weights.formats if f.number.has_codes]
        if not rounding.reads_inputs or not formats:
            return
        passes: list[tuple[float, int | None]] = []
        asked = (
            to_round(self._on, layer.name, moments.values[layer.name], formats, rounding)
            for moments in self._moments(passes)
            for layer in self._on.network.layers
            if layer.weight_of is None and layer.name in moments.values
        )
        seconds, num_bytes = self._codes(asked)
        yield Phase(
            OF_ROUNDING[0],
            calibration_s=sum(each_s for each_s, _ in passes) / self._size,
            peak_bytes=max((peak for _, peak in passes if peak is not None), default=None),
        )
        yield Phase(OF_ROUNDING[1], seconds, peak_bytes=num_bytes)
        if isinstance(rounding, AutoRounding):
            share = min(1.0, NUM_TRIED / len(formats))
            yield Phase(OF_ROUNDING[2], seconds * share)

    def _moments(self, passes: list[tuple[float, int | None]]) -> Iterator[SecondMoments]:
        """Of some layers after the other, where a network is streamed.

        Args:
            passes: Gets seconds and bytes of each.
        """
        seed, most_bytes = self.whole.task.seed, self.whole.most_moment_bytes
        groups = Shown.all_of(self._on, seed, most_bytes).moments()
        while True:
            found, seconds, peak = timed(lambda: next(groups, None), self._device)
            if found is None:
                return
            passes.append((seconds, peak))
            yield found

    def _codes(self, asked: Iterable[ToRound]) -> tuple[float, int]:
        """Seconds and bytes of all codes, from those of some weights of each shape."""
        shapes: dict[object, tuple[int, list[ToRound]]] = {}
        for weight in asked:
            count, some = shapes.setdefault(weight.shape, (0, []))
            if not some or (len(some) + 1) * weight.size <= NUMBERS_TOGETHER:
                some.append(weight)
            shapes[weight.shape] = count + 1, some
        seconds, num_bytes = 0.0, 0
        for count, some in shapes.values():
            codes, taken_s, _ = timed(ToRoundTogether(some).codes, self._device)
            seconds += taken_s * count / len(some)
            held = sum(x.codes.nbytes + x.scale.nbytes for each in codes for x in each)
            num_bytes += held * count // len(some)
        return seconds, num_bytes

    @cached_property
    def _measured(self) -> OneMeasurement:
        return OneMeasurement.of(replace(self._plain, held_out=self._held_out))

    def solver_measurements(self, solver: Solver, problem: Problem) -> Iterator[Phase]:
        """Those of a solver that measures on calibration examples, where it knows how many."""
        each, num_examples = self._measured, self.whole.calibration.num_examples
        seconds = measuring_s(solver, each.fixed_s + each.example_s * num_examples, problem)
        # All of its time, however many examples; else so long for each.
        is_all = seconds == measuring_s(solver, inf, problem)
        fixed_s = seconds if is_all else measuring_s(solver, each.fixed_s, problem)
        if isfinite(seconds):
            grows_s = (seconds - fixed_s) / num_examples
            yield Phase(OF_SOLVER, fixed_s, grows_s, peak_bytes=each.peak_bytes)

    def measurements(self, num_uniform: int) -> Phase:
        """Of the answer and of uniform precisions.

        On held-out examples all of them; on calibration examples, where no codes fit these, those
        within the limits.

        Args:
            num_uniform: Uniform precisions within the limits.
        """
        each = self._measured
        count = NumMeasured.of(self.whole, num_uniform)
        held_out, on_calibration = count.compared + count.others, count.on_calibration
        return Phase(
            "measurements",
            (held_out + on_calibration) * each.fixed_s,
            on_calibration * each.example_s + (each.own_s if on_calibration else 0.0),
            held_out * each.example_s + each.own_s,
            each.peak_bytes,
        )
