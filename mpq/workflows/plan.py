"""What a search will take, told from its first batch: seconds and memory of every phase."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, TypeVar, final

import torch

from mpq._support.progress import showing_progress
from mpq.network.mapped import is_streaming, streaming
from mpq.network.randomness import random_state_kept
from mpq.problem.limits import Limits, parse_limits
from mpq.problem.problem import Problem
from mpq.quantization.quantizer import quantized
from mpq.rounding import AutoRounding
from mpq.sensitivity import Estimation, Sensitivity, SensitivityEstimator
from mpq.solvers import Solver
from mpq.workflows.codes_keys import NUMBERS_TOGETHER, ToRound, ToRoundTogether
from mpq.workflows.defaults import ESTIMATOR, SOLVER
from mpq.workflows.method import Method
from mpq.workflows.peak_memory import peak_memory_bytes
from mpq.workflows.rounded_weights import NUM_TRIED, to_round
from mpq.workflows.setup import Prepared
from mpq.workflows.shown_examples import Shown
from mpq.workflows.streamable import check_streamed
from mpq.workflows.task import Task, check_task

if TYPE_CHECKING:
    import pandas as pd

Value = TypeVar("Value")
ESTIMATE: Final = "estimate"
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
    """

    phases: tuple[Phase, ...]
    num_calibration: int
    num_held_out: int
    unplanned: tuple[str, ...] = ()

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
    sensitivity: str | SensitivityEstimator = ESTIMATOR,
    solver: str | Solver = SOLVER,
    progress: bool = False,
) -> Plan:
    """Does a search on its first batch, and says what the whole of it will take.

    Layers are found in all of the data, as by the search. Second moments, the estimate and a
    measurement are made of the first batch, and count as often as there are examples to it; codes
    are made of one weight of each shape. What a trial of ``auto`` takes is that of one share of
    the examples, though up to four may be asked. With limits the problem is solved by prices of the
    first batch. Seconds are those of a clock on this machine as busy as it is.

    Args:
        task: As in ``mpq.search``.
        limits: As in ``mpq.search``; what cannot be met is refused.
        sensitivity: As in ``mpq.search``.
        solver: As in ``mpq.search``; nothing is said of one that measures.
        progress: Whether bars are shown on standard error.

    Raises:
        InputError: As ``mpq.search``.
        InfeasibleError: If no assignment meets the limits.
    """
    check_task(task, "workflows.plan.plan")
    with showing_progress(progress):
        return planned(task, limits, sensitivity, solver)[0]


def planned(
    task: Task, limits: Limits, sensitivity: str | SensitivityEstimator, solver: str | Solver
) -> tuple[Plan, Prepared]:
    """The plan, and the task that it is of, made ready."""
    method = Method.of(sensitivity, solver, task.seed)
    if task.streamed:
        check_streamed(task, method)
    with streaming(bool(task.streamed)):
        return _planned(task, limits, method)


def _planned(task: Task, limits: Limits, method: Method) -> tuple[Plan, Prepared]:
    start = perf_counter()
    prepared = Prepared.untransformed(task)
    constraints = prepared.constraints(parse_limits(limits))
    found = Phase("layers", perf_counter() - start)
    first = _FirstBatch.of(prepared, method.estimator)
    phases = [found, *first.phases()]
    if limits and not method.solver.is_measuring:
        interactions = first.found.interactions if method.solver.takes_interactions else None
        problem = Problem(first.found.table, constraints, interactions)
        _, seconds, _ = _timed(lambda: method.solve(problem, None, prepared), prepared)
        phases.append(Phase("solution", seconds))
    phases.append(first.measurements())
    counts = prepared.calibration.num_examples, prepared.held_out.num_examples
    return Plan(tuple(phases), *counts, tuple(_unplanned(task, method.solver))), prepared


@final
class _FirstBatch:
    """A task with its first batch alone, its weights rounded to nearest.

    Args:
        whole: With all examples.
        first: With the first of them.
        estimator: As it works on all of them.
    """

    def __init__(self, whole: Prepared, first: Prepared, estimator: SensitivityEstimator) -> None:
        self.whole, self.first, self.estimator = whole, first, estimator
        self.found: Sensitivity

    @classmethod
    def of(cls, whole: Prepared, estimator: SensitivityEstimator) -> "_FirstBatch":
        plain = replace(whole.task, rounding="nearest", sequential_rounding=False, cache=None)
        data = (whole.calibration, whole.held_out)
        calibration, held_out = (x.until(x.first().size) for x in data)
        first = replace(whole, task=plain, calibration=calibration, held_out=held_out, cache=None)
        return cls(whole, first, estimator.for_examples(whole.calibration.num_examples))

    @property
    def on(self) -> Estimation:
        return self.first.asked

    @property
    def size(self) -> int:
        """Calibration examples in the batch."""
        return self.first.calibration.num_examples

    def phases(self) -> Iterator[Phase]:
        """Those before the solution."""
        _, forward_s, _ = _timed(lambda: self.on, self.whole)  # ranges of inputs
        if any(not f.is_exact for f in self.on.inputs.formats):
            yield Phase("ranges of inputs", calibration_s=forward_s / self.size)
        # The first time ranges of weights are searched for, which are kept.
        _, cold_s, cold_bytes = _timed(self._estimated, self.whole)
        self.found, warm_s, warm_bytes = _timed(self._estimated, self.whole)
        yield Phase("ranges of weights", max(cold_s - warm_s, 0.0), peak_bytes=cold_bytes)
        yield from self._rounding()
        yield Phase(ESTIMATE, calibration_s=warm_s / self.size, peak_bytes=warm_bytes)

    def _estimated(self) -> Sensitivity:
        return self.estimator.estimate(self.on)

    def _rounding(self) -> Iterator[Phase]:
        rounding = self.whole.task.weight_rounding
        formats = [f for f in self.on.weights.formats if f.number.needs_scale]
        if not rounding.reads_inputs or not formats:
            return
        moments, seconds, peak = _timed(
            Shown.all_of(self.on, self.whole.task.seed).moments, self.whole
        )
        yield Phase(OF_ROUNDING[0], calibration_s=seconds / self.size, peak_bytes=peak)
        asked = (
            to_round(self.on, layer.name, moments.values[layer.name], formats, rounding)
            for layer in self.on.network.layers
            if layer.weight_of is None and layer.name in moments.values
        )
        seconds, num_bytes = self._codes(asked)
        yield Phase(OF_ROUNDING[1], seconds, peak_bytes=num_bytes)
        if isinstance(rounding, AutoRounding):
            share = min(1.0, NUM_TRIED / len(formats))
            yield Phase(OF_ROUNDING[2], seconds * share)

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
            codes, taken_s, _ = _timed(ToRoundTogether(some).codes, self.whole)
            seconds += taken_s * count / len(some)
            held = sum(x.codes.nbytes + x.scale.nbytes for each in codes for x in each)
            num_bytes += held * count // len(some)
        return seconds, num_bytes

    def measurements(self) -> Phase:
        """Of the answer and of every uniform precision, on held-out examples."""
        evaluator, own_s, _ = _timed(lambda: self.first.on_held_out, self.whole)
        precisions = evaluator.uniform(self.whole.candidates[0])
        _, row_s, peak = _timed(lambda: evaluator.measure(precisions), self.whole)

        def rounded() -> None:
            # A network that is streamed rounds during its calls, which count with every batch.
            one = is_streaming()
            with quantized(evaluator.network, precisions, evaluator.quantizer, one_at_a_time=one):
                pass

        _, fixed_s, _ = _timed(rounded, self.whole)
        count = len(self.whole.candidates) + 1
        by_example = (own_s + count * max(row_s - fixed_s, 0.0)) / self.first.held_out.num_examples
        return Phase("measurements", count * fixed_s, held_out_s=by_example, peak_bytes=peak)


def _timed(compute: Callable[[], Value], prepared: Prepared) -> tuple[Value, float, int | None]:
    """What a computation gives, its seconds, and what it takes at its peak."""

    def run() -> tuple[Value, float]:
        start = perf_counter()
        with torch.no_grad():
            value = compute()
        return value, perf_counter() - start

    (value, seconds), peak = peak_memory_bytes(run, prepared.network.device)
    return value, seconds, peak


def _unplanned(task: Task, solver: Solver) -> Iterator[str]:
    asked: Mapping[str, object] = {
        "transformations": task.transforms,
        "sequential rounding": task.sequential_rounding,
        "ranges chosen again": task.recalibrate,
        "biases": task.bias_correction,
        "tuning": task.tune,
        "measurements of the solver": solver.is_measuring,
    }
    yield from (name for name, wanted in asked.items() if wanted)
