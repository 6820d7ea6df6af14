"""What parts of long work will take, told from the first batch of it."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, isinf
from time import perf_counter
from typing import Final, TypeVar, final

from mpq.errors import GradientError
from mpq.network.examples import Calibration
from mpq.network.layer import Layer
from mpq.network.modules import share_parameters
from mpq.problem.constraints import Constraints
from mpq.problem.problem import Problem
from mpq.quantization.quantizer import Quantizer, quantized
from mpq.rounding import AutoRounding
from mpq.sensitivity import Estimation, Sensitivity, SensitivityEstimator
from mpq.sensitivity.measured import Measured
from mpq.solvers import Solver
from mpq.solvers.queries.solve import solve
from mpq.workflows.clock import clocked
from mpq.workflows.codes_keys import ToRoundTogether
from mpq.workflows.evaluate import Reference
from mpq.workflows.evaluator import Evaluator
from mpq.workflows.measuring_s import measuring_s
from mpq.workflows.room import rounds_in_calls
from mpq.workflows.rounded_weights import NUM_TRIED, information, to_round
from mpq.workflows.setup import Prepared
from mpq.workflows.shown_examples import Shown

Value = TypeVar("Value")
SHARE: Final = 1 / 8
"""Of the examples, or of the codes, that are looked at more than the work itself does."""
FEWEST: Final = 2
"""Examples that an estimate takes; with fewer than four times as many, nothing is planned."""


@final
@dataclass(frozen=True, eq=False)
class FirstBatch:
    """The first batch of a task, or as much of it as is an eighth of the examples.

    Ranges of inputs are found in all of the data, and kept for the work itself; so are ranges of
    weights. Nothing here waits for other processes: what they share is divided by their number.

    Args:
        prepared: The task.
    """

    prepared: Prepared

    @property
    def is_small(self) -> bool:
        """Whether looking at it takes little beside the work."""
        return self.prepared.calibration.num_examples >= 4 * FEWEST

    @cached_property
    def _calibration(self) -> Calibration:
        return _first_of(self.prepared.calibration)

    def _timed(self, compute: Callable[[], Value]) -> tuple[Value, float]:
        """What it gives, and seconds; without its memory, whose count takes long."""
        return clocked(compute, self.prepared.network.device)

    @property
    def num_ranks(self) -> int:
        """Processes of ``torchrun`` that share the passes."""
        return 1 if self.prepared.ranks is None else self.prepared.ranks.size

    @property
    def num_workers(self) -> int:
        """Processes of Ray that do tasks; of a cluster elsewhere it is not known, and 1."""
        workers = self.prepared.task.built_workers
        if workers is None or workers.kind != "ray" or workers.address:
            return 1
        return workers.count or os.cpu_count() or 1

    @cached_property
    def _nearest(self) -> Quantizer:
        # Branches by gradients have to wait for these: something that takes as long stands in.
        return replace(self.prepared.nearest, is_rehearsal=True)

    @cached_property
    def _evaluator(self) -> Evaluator:
        prepared, network = self.prepared, self.prepared.network
        plain, few = share_parameters(prepared.task.model), _first_of(prepared.held_out)
        reference = Reference(plain, few, network.metric, prepared.task.allow_randomness)
        return Evaluator(network, self._nearest, reference)

    @cached_property
    def _measurement(self) -> tuple[float, float]:
        """Seconds whatever the examples, and for each: of one network, rounded to nearest."""
        evaluator, network = self._evaluator, self.prepared.network
        chosen = evaluator.uniform(self.prepared.candidates[0])
        evaluator.sums(chosen)  # what the original answers is asked once, and not counted
        _, seconds = self._timed(lambda: evaluator.sums(chosen))

        def rounded() -> None:
            with quantized(network, chosen, evaluator.quantizer, rounds_in_calls(network)):
                pass

        fixed_s = min(self._timed(rounded)[1], seconds)
        return fixed_s, (seconds - fixed_s) / evaluator.reference.data.num_examples

    def measurement_s(self, num_examples: int) -> float:
        """Of one network, on so many examples."""
        fixed_s, example_s = self._measurement
        return fixed_s + example_s * num_examples / self.num_ranks

    @property
    def held_out_s(self) -> float:
        """Of one network, on all held-out examples."""
        return self.measurement_s(self.prepared.held_out.num_examples)

    @property
    def calibration_s(self) -> float:
        """Of one network, on all calibration examples."""
        return self.measurement_s(self.prepared.calibration.num_examples)

    @property
    def _cells_s(self) -> float:
        """Of every cell by itself, and what they are compared with.

        A cell is passed on every batch, and its weight rounded anew for it: where layers are tiny
        and batches many, that takes longer than the passes.
        """
        fixed_s, example_s = self._measurement
        data, candidates = self.prepared.calibration, len(self.prepared.candidates)
        num_batches = data.num_batches or ceil(data.num_examples / data.first().size)
        num_cells = len(self.prepared.network.layers) * candidates
        passes_s = (num_cells + 1) * data.num_examples * example_s
        # One candidate of all layers is the whole network, rounded once.
        return (passes_s + candidates * num_batches * fixed_s) / self.num_ranks

    def estimate(self, estimator: SensitivityEstimator) -> tuple[float, Sensitivity | None]:
        """Seconds on all examples, and what is found on few.

        Of an estimator that measures cells nothing is found, and seconds are those that measuring
        every cell by itself would take: it takes less, as passes have parts in common.

        Raises:
            InputError: If it cannot be made of these examples.
        """
        prepared = self.prepared
        if estimator.is_measuring:
            return self._cells_s / self.num_workers, None
        on = Estimation(prepared.network, self._calibration, self._nearest, prepared.candidates)
        estimator = estimator.for_examples(prepared.calibration.num_examples)
        try:
            estimator.estimate(on)
        except GradientError:  # as ``auto`` does; of others the work itself says it
            return self.estimate(Measured())
        # Once more: the first time ranges of weights were searched for.
        found, seconds = self._timed(lambda: estimator.estimate(on))
        times = prepared.calibration.num_examples / self._calibration.num_examples
        return seconds * times / self.num_ranks, found

    @cached_property
    def codes_s(self) -> float:
        """Of second moments, codes of all weights, and the trial of ``auto``; 0: to nearest."""
        prepared, rounding = self.prepared, self.prepared.task.weight_rounding
        on = Estimation(prepared.network, self._calibration, self._nearest, prepared.candidates)
        formats = [f for f in on.weights.formats if f.number.has_codes]
        if not rounding.reads_inputs or not formats:
            return 0.0
        seed = prepared.task.seed
        shown = information(Shown.all_of(on, seed, prepared.most_moment_bytes), rounding, seed)
        moments, seconds = self._timed(lambda: next(shown))
        layers = [x for x in prepared.network.layers if x.has_weights and x.weight_of is None]
        known = [layer for layer in layers if layer.name in moments.values]
        if not known:
            return 0.0

        def one_s(layer: Layer) -> float:
            weight = to_round(on, layer.name, moments.values[layer.name], formats, rounding)
            return self._timed(ToRoundTogether([weight]).codes)[1]

        # Of a streamed network a pass is for some layers alone.
        passes = len(layers) / len(known)
        times = prepared.calibration.num_examples / self._calibration.num_examples
        passes_s = seconds * times * passes / self.num_ranks
        codes_s = _all_codes_s(known, one_s) * passes
        if not isinstance(rounding, AutoRounding):
            return passes_s + codes_s
        tried = min(NUM_TRIED, len(formats))
        # The original, and networks by both roundings, on the share that is left out.
        trial_s = (1 + 2 * tried) * rounding.share * self.calibration_s
        return passes_s + codes_s * (1 + tried / len(formats)) + trial_s

    def solving(
        self, solver: Solver, constraints: Constraints, found: Sensitivity | None
    ) -> tuple[float | None, float | None]:
        """Seconds of one solution, and at most; ``None``: not known.

        A sum over layers is solved by the first batch's prices. Interactions of few examples are
        solved sooner than those of many: of these the solver's own limit counts.
        """
        if solver.is_measuring:
            each_s = self.calibration_s / self.num_workers
            asked = self.prepared.indifferent(constraints)
            return None, _finite(measuring_s(solver, each_s, asked))
        if found is None or not solver.is_repeatable:
            return None, None
        interactions = found.interactions if solver.takes_interactions else None
        problem = Problem(found.table, constraints, interactions)
        if interactions is not None or len(problem.grouped.pairwise):
            return None, _finite(solver.at_most_s(problem))
        start = perf_counter()
        solve(solver, problem)
        return perf_counter() - start, None


def _first_of(data: Calibration) -> Calibration:
    return data.until(max(FEWEST, min(data.first().size, int(SHARE * data.num_examples))))


def _finite(seconds: float) -> float | None:
    return None if isinf(seconds) else seconds


def _all_codes_s(layers: Sequence[Layer], one_s: Callable[[Layer], float]) -> float:
    """Seconds of the codes of all weights, from those of two of them.

    The cheapest one, and the dearest of at most an eighth of the work; between and beyond these
    seconds grow with the work.
    """
    works = [_work(layer) for layer in layers]
    order = sorted(range(len(layers)), key=works.__getitem__)
    least = order[0]
    most = max(
        (i for i in order if works[i] <= SHARE * sum(works)), key=works.__getitem__, default=least
    )
    least_s = one_s(layers[least])
    if works[most] == works[least]:
        return sum(least_s * work / works[least] for work in works)
    slope = max(one_s(layers[most]) - least_s, 0.0) / (works[most] - works[least])
    return sum(least_s + slope * (work - works[least]) for work in works)


def _work(layer: Layer) -> float:
    """What a weight's codes take grows with its numbers, and with its inputs."""
    return float(layer.num_weights) * layer.num_weights / layer.weight_shape[0]
