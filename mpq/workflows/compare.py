"""Which estimator to trust: predictions against what random assignments really lose."""

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any, final

import numpy as np
import torch

from mpq._support.arrays import Columns
from mpq._support.events import Callback, listening, tell
from mpq._support.files import prepare_folder
from mpq._support.journal import Journal
from mpq._support.phases import phase, recorded_phases
from mpq._support.progress import track
from mpq._support.ray_workers import task_workers
from mpq._support.rows import Memory, Rows, remember
from mpq._support.workers import TaskWorkers
from mpq.callbacks.results import Solved as SolvedOne
from mpq.errors import MpqError
from mpq.network.examples import Calibration
from mpq.network.halving import halved
from mpq.problem.constraints import Constraints
from mpq.problem.limits import Limits, written_limits
from mpq.problem.problem import Problem
from mpq.quantization.fingerprint import measurement_key
from mpq.report.estimators import EstimatorComparison
from mpq.report.loss_benchmark import RANDOM as RANDOM_SHAPE
from mpq.report.loss_benchmark import LossBenchmark, MeasuredAssignment
from mpq.report.trials import Score, Solved, Trial
from mpq.sensitivity import ESTIMATORS, RefinableEstimator, SensitivityEstimator
from mpq.solvers import SOLVERS
from mpq.solvers.queries.solve import solve
from mpq.workflows.clock import now_s
from mpq.workflows.comparable import check_numbers, refuse_uncompared
from mpq.workflows.comparison_forecast import DRAWN, SCORED, comparison_calls, tell_comparison
from mpq.workflows.defaults import ESTIMATORS_COMPARED, MAX_COMPARED_LOSS, NUM_RANDOM, SOLVER
from mpq.workflows.kept_calls import with_kept_calls
from mpq.workflows.made_here import made_here
from mpq.workflows.outcome import announced
from mpq.workflows.peak_memory import peak_memory_bytes
from mpq.workflows.random_assignments import random_assignments, structured_assignments
from mpq.workflows.refine import refine as refine_solution
from mpq.workflows.search import estimated
from mpq.workflows.session import Session
from mpq.workflows.setup import Prepared
from mpq.workflows.streamable import refuse_streamed
from mpq.workflows.task import Task, check_task

JOURNAL = "measured.jsonl"
# the median of three forgives one pass that something else disturbed
_TIMINGS = 3


def compare(
    task: Task,
    limits: Limits,
    *,
    estimators: Sequence[str] = ESTIMATORS_COMPARED,
    solver: str = SOLVER,
    refine: int = 0,
    num_random: int = NUM_RANDOM,
    max_loss: float = MAX_COMPARED_LOSS,
    folder: Path | str | None = None,
    save_bench: Path | str | None = None,
    callbacks: Sequence[Callback] = (),
) -> EstimatorComparison:
    """Measures which estimators predict this network's loss, on held-out examples.

    Args:
        task: The network, its data, and what its layers may become; as in ``mpq.search``.
        limits: Each a budget of its own, near which random assignments are drawn and within which
            every estimator's optimum is measured: ``effective_bits=4``, ``latency=0.6x:w8a8``; a
            mapping, or a sequence that may have several of one resource.
        estimators: Names with options, such as ``hessian-trace:num_probes=8``.
        solver: Name of a solver with options, which finds every estimator's optimum.
        refine: Rounds of refinement of an optimum, for estimators that can; predictions for random
            assignments stay those of the first estimate.
        num_random: Random assignments near each limit.
        max_loss: Assignments that lose more are not correlated, in the metric's unit.
        folder: Where measurements land as they are made, so that an interrupted run resumes.
        save_bench: File for the random assignments, and structured ones near every limit besides,
            with what each loses; see ``LossBenchmark``.
        callbacks: Who is told what happens meanwhile (``mpq.callbacks``): none changes the answer.

    Raises:
        InputError: If something given cannot be used, or the folder holds another comparison.
        InfeasibleError: If a limit cannot be met.
    """
    check_task(task, "compare")
    refuse_uncompared(task)
    # Built to be refused, where one is misspelled, before anything is measured.
    built = [ESTIMATORS.build(text, task.seed) for text in estimators]
    parsed = dict(written_limits(limits))
    check_numbers(parsed, num_random, refine)
    if save_bench is not None:
        prepare_folder(Path(save_bench).parent)
    with listening(callbacks), recorded_phases() as phases:
        refuse_streamed(task, "compare")
        with phase("layers and costs"):
            prepared = Prepared.untransformed(task)
            constraints = {text: prepared.constraints([limit]) for text, limit in parsed.items()}
        if task.transforms:  # tried only now, which takes longer than to refuse a limit
            with phase("transformations"):
                prepared = prepared.with_transforms()
                constraints = {text: prepared.constraints([x]) for text, x in parsed.items()}
        run = _Comparison(prepared, constraints, solver, refine, _rows(prepared, folder))
        tell_comparison(
            prepared, constraints, SOLVERS.build(solver, task.seed),
            lambda: run.left(estimators, num_random),
            comparison_calls(prepared, built, len(parsed), num_random, refine),
        )  # fmt: skip
        with task_workers(task.built_workers) as workers:
            with phase(DRAWN):
                if workers is not None:
                    run.measure_by(workers, run.drawn(num_random))
                # One set of assignments for all: each has to be judged by the same losses.
                trials = tuple(run.trials(num_random))
                if save_bench is not None:
                    run.benchmark(trials, max_loss).save(save_bench)
            with phase("ranges of weights"):
                # before the clock runs: the first estimator would pay for what all of them use
                run.search_weight_ranges()
                forward_seconds = run.forward_seconds()
            with phase(SCORED):
                if workers is not None:
                    run.score_by(workers, estimators, trials, forward_seconds)
                scores = tuple(
                    run.score(text, trials, forward_seconds)
                    for text in track(estimators, "estimators")
                )
        found = EstimatorComparison(
            trials, scores, _unit(prepared), max_loss, forward_seconds,
            prepared.calibration.num_examples, prepared.held_out.num_examples, made_here(phases),
        )  # fmt: skip
        return announced(found)


def _rows(prepared: Prepared, folder: Path | str | None) -> Rows:
    if folder is None:
        return Memory()
    calibration, held_out = (
        measurement_key(prepared.network, data, prepared.quantizer, prepared.candidates)
        for data in (prepared.calibration, prepared.held_out)
    )
    # Estimates depend on the calibration examples, measured losses on the held-out ones.
    key = {**calibration, "held_out": held_out["data"]}
    if prepared.task.own_score is not None:
        key["score"] = prepared.task.own_score.key
    return Journal(prepare_folder(Path(folder)) / JOURNAL, key)


def _measured(shape: str, trial: Trial) -> MeasuredAssignment:
    return MeasuredAssignment(trial.limit, shape, trial.columns, trial.divergence, trial.accuracy)


def _name(columns: Columns) -> str:
    return f"columns {' '.join(map(str, columns.tolist()))}"


def _measured_row(run: "_Comparison", columns: Columns) -> dict[str, Any]:
    """On a worker: the row of an assignment."""
    run.row(columns)
    return _taken(run)


def _score_rows(shared: "tuple[_Comparison, Sequence[Trial], float]", text: str) -> dict[str, Any]:
    """On a worker: the row of an estimator, and those of its optima."""
    run, trials, forward_seconds = shared
    run.score(text, trials, forward_seconds)
    return _taken(run)


def _taken(run: "_Comparison") -> dict[str, Any]:
    assert isinstance(run.rows, Memory)
    return run.rows.all


def _digest(*values: Any) -> str:
    # 64 bits are plenty to tell the few rows of a journal apart.
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def _unit(prepared: Prepared) -> str:
    """Of what is measured: the metric's, or that of the task's own score."""
    return prepared.network.metric.unit if prepared.task.own_score is None else "score_drop"


@final
@dataclass(frozen=True, eq=False)
class _Comparison:
    """Measures, and remembers what was measured."""

    prepared: Prepared
    constraints: Mapping[str, Constraints]
    solver: str
    refine: int
    rows: Rows

    @property
    def seed(self) -> int:
        """Seed of random assignments, estimators and solver."""
        return self.prepared.task.seed

    def drawn(self, num_random: int) -> list[tuple[str, Columns]]:
        """Random assignments near every limit, each with that limit."""
        return [
            (text, columns)
            for text, asked in self.constraints.items()
            for columns in random_assignments(
                self.prepared.indifferent(asked), num_random, self.seed
            )
        ]

    def left(self, estimators: Sequence[str], num_random: int) -> tuple[int, list[str]]:
        """How many assignments and which estimators have no row yet."""
        drawn = [columns for _, columns in self.drawn(num_random)]
        names = {_name(columns) for columns in drawn}
        asked = [tuple(columns.tolist()) for columns in drawn]
        own = [text for text in estimators if self._score_name(text, asked) not in self.rows]
        return sum(name not in self.rows for name in names), own

    def measure_by(self, workers: TaskWorkers, drawn: Sequence[tuple[str, Columns]]) -> None:
        """Rows of random assignments, by workers."""
        tasks = {_name(columns): columns for _, columns in drawn}
        left = [columns for name, columns in tasks.items() if name not in self.rows]
        found = workers.sent(self._shipped(), _measured_row)(left)
        self._add(found, len(left), "assignments")

    def score_by(
        self,
        workers: TaskWorkers,
        texts: Sequence[str],
        trials: Sequence[Trial],
        forward_seconds: float,
    ) -> None:
        """Rows of estimators, by workers; those of their optima as well."""
        left = [
            text
            for text in texts
            if self._score_name(text, [trial.columns for trial in trials]) not in self.rows
        ]
        shared = self._shipped(), trials, forward_seconds
        self._add(workers.sent(shared, _score_rows)(left), len(left), "estimators")

    def _add(self, found: Iterator[dict[str, Any]], count: int, purpose: str) -> None:
        for rows in track(found, f"{purpose}, by workers", count):
            # A worker hands on all that it has; two may have found the same optimum.
            for name in [name for name in rows if name not in self.rows]:
                self.rows.add(name, rows[name])

    def _shipped(self) -> "_Comparison":
        """As it is sent: rows and what is kept are here."""
        return replace(self, prepared=replace(self.prepared, cache=None), rows=Memory())

    def trials(self, num_random: int) -> Iterable[Trial]:
        """Random assignments near every limit."""
        for text, columns in track(self.drawn(num_random), "random assignments"):
            row = self.row(columns)
            yield Trial(text, tuple(columns.tolist()), row["divergence"], row["accuracy"])

    def benchmark(self, trials: Sequence[Trial], max_loss: float) -> LossBenchmark:
        """The trials, and structured assignments near every limit."""
        prepared, rows = self.prepared, [_measured(RANDOM_SHAPE, trial) for trial in trials]
        for text, asked in self.constraints.items():
            shapes = structured_assignments(prepared.indifferent(asked), self.seed)
            for shape, columns in track(shapes.items(), "structured assignments"):
                found = self.row(columns)
                trial = Trial(text, tuple(columns.tolist()), found["divergence"], found["accuracy"])
                rows.append(_measured(shape, trial))
        network = prepared.network
        return LossBenchmark(
            network.fingerprint, tuple(layer.name for layer in network.layers),
            tuple(map(str, prepared.candidates)), _unit(prepared), max_loss,
            prepared.held_out.num_examples, tuple(row for row in rows if isfinite(row.loss)),
        )  # fmt: skip

    def row(self, columns: Columns) -> dict[str, Any]:
        """What an assignment loses on the held-out examples."""
        row: dict[str, Any] = remember(self.rows, _name(columns), lambda: self._measured(columns))
        return row

    def _measured(self, columns: Columns) -> dict[str, Any]:
        measured = Session(self.prepared).measure(columns)
        loss = self.prepared.on_held_out.loss(measured)
        # A task's own score has no error of examples.
        error = measured.standard_error if measured.score is None else None
        return {"divergence": loss, "accuracy": measured.accuracy, "standard_error": error}

    def forward_seconds(self) -> float:
        """Median time of a forward pass over the calibration examples, by ``clock``."""
        network = self.prepared.network

        def timed(data: Calibration) -> float:
            times = []
            for _ in range(_TIMINGS):
                start = self.clock()
                with torch.no_grad():
                    for batch in network.batches(data):
                        network.outputs(batch)
                times.append(self.clock() - start)
            return median(times)

        return halved("a forward pass", self.prepared.calibration, timed, network.why_uncut)

    def search_weight_ranges(self) -> None:
        """Rounds every weight once: the search for its range is kept, and no estimator's work."""
        network, quantizer = self.prepared.network, self.prepared.quantizer
        for layer in network.layers:
            for tensor_format in dict.fromkeys(
                precision.weight for precision in self.prepared.candidates
            ):
                quantizer.weight(layer.name, network.layer_module(layer.name), tensor_format)

    def clock(self) -> float:
        """Seconds: of the processor where it does the work, else of the wall."""
        # Processor time leaves out what other programs do meanwhile.
        device = self.prepared.network.device
        return time.process_time() if device.type == "cpu" else now_s(device)

    def score(self, text: str, trials: Sequence[Trial], forward_seconds: float) -> Score:
        """One estimator; what it cannot do is its result."""
        row = remember(
            self.rows,
            self._score_name(text, [trial.columns for trial in trials]),
            lambda: self._estimate(text, trials, forward_seconds),
        )
        solved = tuple(Solved(**one) for one in row.get("solved", ()))
        return Score(**{**row, "solved": solved, "predicted": tuple(row.get("predicted", ()))})

    def _score_name(self, text: str, drawn: Sequence[tuple[int, ...]]) -> str:
        # All that the row depends on beside the journal's key. Parts are built first, since their
        # repr has every option, also those that the spelling leaves to defaults.
        asked = _digest(
            ESTIMATORS.build(text, self.seed), SOLVERS.build(self.solver, self.seed), self.refine,
            list(drawn),
            [
                (limit, held.choosable, held.ties, [budget.to_dict() for budget in held.budgets])
                for limit, held in self.constraints.items()
            ],
        )  # fmt: skip
        return f"estimator {text}, {asked}"

    def _estimate(
        self, text: str, trials: Sequence[Trial], forward_seconds: float
    ) -> dict[str, Any]:
        estimator, solver = ESTIMATORS.build(text, self.seed), SOLVERS.build(self.solver, self.seed)
        # Any of them: the estimate is the same for all limits, which replace this one below.
        first = next(iter(self.constraints.values()))
        alone = self.prepared.judges.asked_alone(self.prepared.asked)
        on, task = with_kept_calls(alone, self.rows, text), self.prepared.task
        start, clock_start = time.perf_counter(), self.clock()
        try:
            problem, memory = peak_memory_bytes(
                lambda: estimated(on, task, first, estimator, solver),
                self.prepared.network.device,
            )
        except MpqError as error:
            return {"estimator": text, "error": str(error)}
        seconds, clock_seconds = time.perf_counter() - start, self.clock() - clock_start
        loss_of = problem.loss_of
        return {
            "estimator": text,
            "predicted": [loss_of(np.array(trial.columns, dtype=np.intp)) for trial in trials],
            "unit": problem.loss.unit,
            "solved": [
                self._solved(limit, replace(problem, constraints=held), estimator)
                for limit, held in self.constraints.items()
            ],
            "seconds": seconds,
            # Relative to a pass, which says more on another machine than seconds do.
            "forward_passes": clock_seconds / forward_seconds,
            "peak_memory_bytes": memory,
        }

    def _solved(
        self, limit: str, problem: Problem, estimator: SensitivityEstimator
    ) -> dict[str, Any]:
        solver = SOLVERS.build(self.solver, self.seed)
        solution = solve(solver, problem)
        tell(SolvedOne.of(solution))
        if self.refine and isinstance(estimator, RefinableEstimator):
            solution, _ = refine_solution(
                estimator, solver, problem, solution,
                self.prepared.on_calibration, self.prepared.calibration, self.refine,
            )  # fmt: skip
        assert solution.columns is not None
        return {"limit": limit, "predicted": solution.loss, **self.row(solution.columns)}
