"""Which estimator to trust: predictions against what random assignments really lose."""

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, final

import numpy as np
import torch

from mpq._support.files import prepare_folder
from mpq._support.journal import Journal
from mpq._support.progress import showing_progress, track
from mpq.errors import InputError, MpqError
from mpq.hardware_profiles import Phase, Profile
from mpq.network.metric import OutputMetric
from mpq.problem.arrays import Columns
from mpq.problem.constraints import Constraints
from mpq.problem.limits import Limit
from mpq.problem.problem import Problem
from mpq.quantization.fingerprint import measurement_key
from mpq.quantization.precision import Precision
from mpq.quantization.ranges import RangeMethod
from mpq.report.estimators import EstimatorComparison, Score, Solved, Trial
from mpq.sensitivity import ESTIMATORS, RefinableEstimator, SensitivityEstimator
from mpq.solvers import SOLVERS
from mpq.solvers.queries.solve import solve
from mpq.workflows.peak_memory import peak_memory_bytes
from mpq.workflows.random_assignments import random_assignments
from mpq.workflows.refine import refine as refine_solution
from mpq.workflows.search import estimated
from mpq.workflows.setup import Prepared

DEFAULT_ESTIMATORS = (
    "sketch",
    "sketch:interactions=false",
    "hessian-trace",
    "fisher",
    "output-gradient",
    "measured",
    "layer-output",
    "weight-error",
)
"""What is compared where nothing is named."""
JOURNAL = "measured.jsonl"
_TIMINGS = 3


def compare(
    model: torch.nn.Module,
    calibration: Any,
    *,
    limits: Sequence[str],
    estimators: Sequence[str] = DEFAULT_ESTIMATORS,
    solver: str = "auto",
    num_random: int = 100,
    max_loss: float = 0.5,
    refine: int = 0,
    folder: Path | str | None = None,
    seed: int = 0,
    progress: bool = False,
    device: str | Profile | None = None,
    precisions: Sequence[str | Precision] | None = None,
    held_out: Any = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    fix: Mapping[str, str | Precision] | None = None,
    allow: Mapping[str, Sequence[str | Precision]] | None = None,
    tie: Sequence[str] = (),
    find_ties: bool = True,
    fold: bool = True,
    metric: str | OutputMetric = "kl",
    batch_size: int = 1,
    phase: Phase | None = None,
    tokens: int | None = None,
    weight_range: RangeMethod = "mse",
    activation_range: RangeMethod = "mse",
) -> EstimatorComparison:
    """Measures which estimators predict this network's loss, on held-out examples.

    Args:
        model: In evaluation mode.
        calibration: Examples that estimators see; see ``Calibration``.
        limits: Each a budget of its own, near which random assignments are drawn and within which
            every estimator's optimum is measured: ``effective_bits=4``, ``latency=0.6x:w8a8``.
        estimators: Names with options, such as ``hessian-trace:num_probes=8``.
        solver: Of the optima.
        num_random: Random assignments near each limit.
        max_loss: Assignments that lose more are not correlated, in the metric's unit.
        refine: Rounds of refinement of an optimum, for estimators that can; predictions for random
            assignments stay those of the first estimate.
        folder: Where measurements land as they are made, so that a killed run goes on.
        seed: Of random assignments, estimators and solver.
        progress: Whether bars are shown on standard error.
        device: This and what follows: as in ``mpq.search``.
        precisions: Candidates.
        held_out: Examples to measure on; default: the last quarter of the calibration examples.
        include: Globs of layer names.
        exclude: Globs of layer names.
        fix: Precisions of layers that are not chosen.
        allow: Candidates of single layers.
        tie: Globs of layers that share a precision.
        find_ties: Whether layers that read the same tensor share one.
        fold: Whether BatchNorm is folded first.
        metric: How outputs are compared.
        batch_size: At which latency and energy are priced.
        phase: For which resources are priced: ``prefill`` or ``decode``.
        tokens: Of the prompt.
        weight_range: How weights' ranges are chosen.
        activation_range: How activations' ranges are chosen.

    Raises:
        InputError: If something given cannot be used, or the folder holds another comparison.
        InfeasibleError: If a limit cannot be met.
    """
    for text in estimators:
        ESTIMATORS.build(text, seed)
    parsed = [(text, Limit.parse(text)) for text in dict.fromkeys(limits)]
    if not parsed or num_random < 3 or refine < 0:
        raise InputError("give at least one limit, num_random >= 3 and refine >= 0")
    with showing_progress(progress):
        prepared = Prepared.of(
            model, calibration, device=device, precisions=precisions, held_out=held_out,
            include=include, exclude=exclude, fix=fix, allow=allow, tie=tie, find_ties=find_ties,
            fold=fold, metric=metric, batch_size=batch_size, phase=phase, tokens=tokens,
            weight_range=weight_range, activation_range=activation_range,
        )  # fmt: skip
        constraints = {text: prepared.constraints([limit]) for text, limit in parsed}
        journal = _journal(prepared, folder)
        run = _Comparison(prepared, constraints, solver, refine, seed, journal)
        trials = tuple(run.trials(num_random))
        run.search_weight_ranges()
        forward_seconds = run.forward_seconds()
        scores = tuple(
            run.score(text, trials, forward_seconds) for text in track(estimators, "estimators")
        )
        return EstimatorComparison(
            trials, scores, prepared.network.metric.unit, max_loss, forward_seconds,
            prepared.tuning.num_examples, prepared.testing.num_examples,
        )  # fmt: skip


def _journal(prepared: Prepared, folder: Path | str | None) -> Journal | None:
    if folder is None:
        return None
    tuning, testing = (
        measurement_key(prepared.network, data, prepared.quantizer, prepared.candidates)
        for data in (prepared.tuning, prepared.testing)
    )
    key = {**tuning, "held_out": testing["data"]}
    return Journal(prepare_folder(Path(folder)) / JOURNAL, key)


def _digest(*values: Any) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


@final
@dataclass(frozen=True, eq=False)
class _Comparison:
    """Measures, and remembers what was measured."""

    prepared: Prepared
    constraints: Mapping[str, Constraints]
    solver: str
    refine: int
    seed: int
    journal: Journal | None

    def trials(self, num_random: int) -> Iterable[Trial]:
        """Random assignments near every limit."""
        drawn = [
            (text, columns)
            for text, asked in self.constraints.items()
            for columns in random_assignments(
                self.prepared.indifferent(asked), num_random, self.seed
            )
        ]
        for text, columns in track(drawn, "random assignments"):
            row = self._row(columns)
            yield Trial(text, tuple(columns.tolist()), row["divergence"], row["accuracy"])

    def _row(self, columns: Columns) -> dict[str, Any]:
        """What an assignment loses on the held-out examples."""
        name = f"columns {' '.join(map(str, columns.tolist()))}"
        return self._remembered(name, lambda: self._measured(columns))

    def _measured(self, columns: Columns) -> dict[str, Any]:
        names = [layer.name for layer in self.prepared.network.layers]
        precisions = (self.prepared.candidates[column] for column in columns.tolist())
        measured = self.prepared.on_held_out.measure(dict(zip(names, precisions, strict=True)))
        return {"divergence": measured.divergence, "accuracy": measured.accuracy}

    def _remembered(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if self.journal is None:
            return make()
        if name not in self.journal:
            self.journal.add(name, make())
        found: dict[str, Any] = self.journal[name]
        return found

    def forward_seconds(self) -> float:
        """Median time of a forward pass over the calibration examples, by ``clock``."""
        network, times = self.prepared.network, []
        for _ in range(_TIMINGS):
            start = self.clock()
            with torch.no_grad():
                for batch in network.batches(self.prepared.tuning):
                    network.outputs(batch)
            times.append(self.clock() - start)
        return median(times)

    def search_weight_ranges(self) -> None:
        """Rounds every weight once: the search for its range is kept, and no estimator's work."""
        network, quantizer = self.prepared.network, self.prepared.quantizer
        for layer in network.layers:
            for tensor_format in dict.fromkeys(
                columns.weight for columns in self.prepared.candidates
            ):
                quantizer.weight(layer.name, network.layer_module(layer.name), tensor_format)

    def clock(self) -> float:
        """Seconds: of the processor where it does the work, else of the wall."""
        if self.prepared.network.device.type == "cpu":
            return time.process_time()
        torch.accelerator.synchronize()
        return time.perf_counter()

    def score(self, text: str, trials: Sequence[Trial], forward_seconds: float) -> Score:
        """One estimator; what it cannot do is its result."""
        asked = _digest(
            ESTIMATORS.build(text, self.seed), SOLVERS.build(self.solver, self.seed), self.refine,
            [trial.columns for trial in trials],
            [
                (limit, held.choosable, held.ties, [budget.to_dict() for budget in held.budgets])
                for limit, held in self.constraints.items()
            ],
        )  # fmt: skip
        row = self._remembered(
            f"estimator {text}, {asked}", lambda: self._estimate(text, trials, forward_seconds)
        )
        solved = tuple(Solved(**one) for one in row.get("solved", ()))
        return Score(**{**row, "solved": solved, "predicted": tuple(row.get("predicted", ()))})

    def _estimate(
        self, text: str, trials: Sequence[Trial], forward_seconds: float
    ) -> dict[str, Any]:
        estimator, solver = ESTIMATORS.build(text, self.seed), SOLVERS.build(self.solver, self.seed)
        first = next(iter(self.constraints.values()))
        start, clock_start = time.perf_counter(), self.clock()
        try:
            problem, memory = peak_memory_bytes(
                lambda: estimated(self.prepared, first, estimator, solver),
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
            "forward_passes": clock_seconds / forward_seconds,
            "peak_memory_bytes": memory,
        }

    def _solved(
        self, limit: str, problem: Problem, estimator: SensitivityEstimator
    ) -> dict[str, Any]:
        solver = SOLVERS.build(self.solver, self.seed)
        solution = solve(solver, problem)
        if self.refine and isinstance(estimator, RefinableEstimator):
            solution, _ = refine_solution(
                estimator, solver, problem, solution,
                self.prepared.on_calibration, self.prepared.tuning, self.refine,
            )  # fmt: skip
        assert solution.columns is not None
        return {"limit": limit, "predicted": solution.loss, **self._row(solution.columns)}
