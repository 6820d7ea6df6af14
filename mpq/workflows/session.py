"""What is live of a search: the network, its quantizer, the original's answers."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Self, final

import torch

from mpq._support.arrays import Columns
from mpq._support.progress import track
from mpq.hardware_profiles.kv_cache_bytes import KV_CACHE_BYTES
from mpq.hardware_profiles.part_costs import PART_RESOURCES
from mpq.network.kept_tokens import KEPT_NONE
from mpq.network.mapped import streaming
from mpq.network.metrics import METRICS
from mpq.network.network import Network
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.problem.metadata import Metadata, UsedBudget
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.quantization.precision import ORIGINAL, Precision, spell_activation
from mpq.quantization.range_method import ActivationRange
from mpq.quantization.stored import StoredWeights
from mpq.report.frontier import Frontier, FrontierPoint
from mpq.report.measurement import ComparisonRow, Measurement
from mpq.report.safeguard import Safeguard
from mpq.sensitivity import SpotCheck
from mpq.solvers import SOLVERS, Solver
from mpq.workflows.coupled_rows import round_parts
from mpq.workflows.finish import AS_FOUND, Finish
from mpq.workflows.never_worse import never_worse_points
from mpq.workflows.provenance import Provenance, UsedDevice
from mpq.workflows.refine import Refinement
from mpq.workflows.result import SearchResult
from mpq.workflows.setup import Prepared
from mpq.workflows.streamable import refuse_streamed
from mpq.workflows.subject import Subject
from mpq.workflows.task import Task, check_task
from mpq.workflows.uniform import compared


@final
@dataclass(frozen=True, eq=False)
class Session:
    """Measures assignments of one network on its held-out examples.

    A ``SearchResult`` is a record without a network. To measure what it predicts, make a session
    of the same network and data; no estimate is made again::

        result = mpq.search(task, ["weight_bytes=300KiB"])
        session = mpq.Session.of(task)
        frontier = session.measured(result.frontier("weight_bytes"))

    A session of its own knows no codes and ranges that a search made for its answer
    (``sequential_rounding``, ``recalibrate``).

    Args:
        prepared: The network, its data, candidates and costs.
    """

    prepared: Prepared

    @classmethod
    def of(cls, task: Task) -> Self:
        """A session of a task's network and data.

        Raises:
            InputError: If something given cannot be used.
        """
        check_task(task, "Session.of")
        refuse_streamed(task, "Session.of")
        return cls(Prepared.of(task))

    @property
    def network(self) -> Network:
        """The session's own copy of the network."""
        return self.prepared.network

    def measure(self, columns: Columns) -> Measurement:
        """An assignment on the held-out examples; ``columns [L]`` of the session's candidates."""
        names = (layer.name for layer in self.network.layers)
        chosen = (self.prepared.candidates[column] for column in columns.tolist())
        with streaming(bool(self.prepared.task.streamed)):
            return self.prepared.on_held_out.measure(dict(zip(names, chosen, strict=True)))

    def measured(self, frontier: Frontier, safeguard: bool = True) -> Frontier:
        """The same frontier, or alternatives, with all of its points measured.

        Args:
            frontier: Of a search's result.
            safeguard: Whether a point that is measured to be worse than a uniform precision which
                costs no more is that uniform precision in the end (``never_worse_points``).
        """
        asked = [x.precisions for x in frontier.points if x.measured is None]
        with streaming(bool(self.prepared.task.streamed)):
            round_parts(self.prepared, asked)
            points = tuple(map(self._measured, track(frontier.points, "measuring points")))
            others = tuple(map(self._measured, frontier.others))
            kept = never_worse_points(self.prepared, points, others) if safeguard else points
        return replace(frontier, points=kept, others=others)

    def _measured(self, point: FrontierPoint) -> FrontierPoint:
        # The result and the uniform precisions come measured from the search.
        if point.measured is not None:
            return point
        return replace(point, measured=self.prepared.on_held_out.measure(point.precisions))

    def record(
        self,
        problem: Problem,
        solution: Solution,
        solver: Solver,
        estimator: str,
        refinements: tuple[Refinement, ...] = (),
        spot_check: SpotCheck | None = None,
        safeguard: Safeguard | None = None,
        finish: Finish = AS_FOUND,
    ) -> SearchResult:
        """What a search found, with original, solution and uniform precisions measured.

        Args:
            problem: The problem that was solved.
            solution: Its solution, which has an assignment.
            solver: The solver, which may have found a frontier on the way.
            estimator: Name of the estimator that the problem's loss is by.
            refinements: Rounds of refinement, in order; none where it was not refined.
            spot_check: What measuring a few cells said of the prediction.
            safeguard: The solution beside the uniform precisions within the budgets.
            finish: What was made for the solution alone.
        """
        # Made once, as the assignment states a part of it again: both files have to say the same.
        chosen = solution.precisions(problem)
        provenance = self._provenance(solver, estimator, refinements, chosen, finish)
        pricing, precisions = self.prepared.pricing, problem.loss.precisions
        # A maximum over steps has no table by layers.
        shown = [name for name in self._shown(problem) if name in pricing.sums]
        widths = (pricing.uncertainty(name, precisions) for name in shown)
        rows = self._comparisons(problem, solution)
        return SearchResult(
            problem,
            solution,
            self._assignment(problem, solution, rows["result"].measured, provenance),
            pricing.layers,
            tuple(pricing.table(name, precisions) for name in pricing.sums),
            tuple(table for table in widths if table is not None),
            tuple(rows.values()),
            provenance,
            _trials(solver, problem),
            safeguard,
            spot_check,
            self.network.coverage,
            self._ranges(),
        )

    def _ranges(self) -> dict[str, dict[str, ActivationRange]]:
        """Of every layer and candidate, but for ranges of single channels, which would be many."""
        found: dict[str, dict[str, ActivationRange]] = {}
        for (name, chosen), known in self.prepared.quantizer.ranges.known.items():
            if not known.channels:
                found.setdefault(name, {})[spell_activation(chosen)] = known
        return found

    def _provenance(
        self,
        solver: Solver,
        estimator: str,
        refinements: tuple[Refinement, ...],
        chosen: Mapping[str, Precision],
        finish: Finish,
    ) -> Provenance:
        profile, rounded = self.prepared.pricing.profile, self.prepared.rounded
        transformed, plan = self.prepared.transformed, self.prepared.step_plan
        score = self.prepared.task.own_score
        # What is not rounded at all is not rounded to nearest.
        is_rounded = {name for name, p in chosen.items() if p.weight.number.has_codes}
        return Provenance(
            estimator=estimator,
            solver=SOLVERS.spell(solver),
            seed=self.prepared.task.seed,
            device=None if profile is None else UsedDevice.of(profile),
            is_loss_measured=solver.is_measuring,
            refinements=refinements,
            reach=self.network.reach,
            unscored=self.network.unscored,
            higher_score_is_better=None if score is None else score.higher_is_better,
            allow_randomness=self.network.allow_randomness,
            is_mixing=self.network.is_mixing,
            unchecked_rows=self.network.unchecked_rows,
            target=self.prepared.task.to,
            streamed=self.prepared.task.streamed,
            unshipped=dict(self.prepared.unshipped),
            operands_left=self.network.operands_left and dict(self.network.operands_left),
            rounding=self.prepared.task.rounding,
            rounded_to_nearest={n: w for n, w in rounded.to_nearest.items() if n in is_rounded},
            rounding_unhelped=rounded.unhelped,
            rounding_unguided={n: w for n, w in rounded.unguided.items() if n in is_rounded},
            sequential_rounding=finish.sequential,
            recalibration=finish.recalibration,
            ranges_unhelped=dict(self.prepared.calibrated.unhelped),
            steps=plan and plan.told(self.prepared.calibrated.steps_unhelped),
            transforms=tuple(self.prepared.task.transforms),
            untransformed={} if transformed is None else dict(transformed.untransformed),
            transforms_unhelped={} if transformed is None else dict(transformed.unhelped),
            mpq_version=version("mpq"),
            torch_version=str(torch.__version__),
            subject=Subject.of(
                self.prepared.task.model,
                self.prepared.calibration,
                is_split=self.prepared.task.held_out is None,
            ),
            activation_range=self.prepared.task.ranges.activation,
        )

    def _shown(self, problem: Problem) -> tuple[str, ...]:
        """Latency and the cache, where known, bytes of weights, and everything that has a limit."""
        limited = (budget.resource for budget in problem.budgets)
        known = self.prepared.pricing.resources
        usual = ("latency", "weight_bytes", KV_CACHE_BYTES)
        is_shown = problem.parts is None
        shown = (x for x in usual if x in known and (is_shown or x in PART_RESOURCES))
        return tuple(dict.fromkeys((*shown, *limited)))

    def _comparisons(self, problem: Problem, solution: Solution) -> dict[str, ComparisonRow]:
        tried: dict[str, dict[str, Precision]] = {
            "original": self.prepared.on_held_out.uniform(ORIGINAL),
            "result": solution.precisions(problem),
        }
        task = self.prepared.task
        # What layers without weights alone may take is uniform in no network.
        own = self.prepared.allowed
        cached = [p for x in self.network.layers if not x.has_weights for p in own.get(x.name, ())]
        for precision in problem.loss.precisions:
            # The original has its row already, also where it is one of the candidates.
            if precision != ORIGINAL and (precision not in cached or precision in task.precisions):
                columns = compared(problem, precision, task.to is not None or bool(cached))
                tried[str(precision)] = problem.precisions_of(columns)
        return {
            label: self._compared(label, problem, precisions)
            for label, precisions in track(list(tried.items()), "measuring")
        }

    def _compared(
        self, label: str, problem: Problem, precisions: dict[str, Precision]
    ) -> ComparisonRow:
        is_original = label == "original"
        # Losses are counted from the original, which need not have a column.
        predicted = 0.0 if is_original else problem.loss_of(problem.columns_of(precisions))
        pricing = self.prepared.pricing
        costs = {
            pricing.column(name, problem.loss.precisions): float(pricing.amount(name, precisions))
            for name in self._shown(problem)
        }
        if is_original and self.network.coverage is not None:
            # The checkpoint itself, before BatchNorm is folded and computed weights are evaluated.
            costs["weight_bytes"] = float(self.network.coverage.num_bytes)
        return ComparisonRow(label, predicted, self.prepared.on_held_out.measure(precisions), costs)

    def _assignment(
        self, problem: Problem, solution: Solution, measured: Measurement, provenance: Provenance
    ) -> Assignment:
        transformed, used = self.prepared.transformed, provenance.steps
        layers = self._assigned(solution.precisions(problem))
        return Assignment(
            layers,
            problem.ties if problem.parts is None else problem.parts.ties,
            self.network.folded,
            self.prepared.quantizer.weight_range,
            self.prepared.quantizer.numerics,
            self._metadata(problem, solution, measured, provenance),
            self._stored(solution.precisions(problem)),
            None if transformed is None else transformed.reparametrization,
            tokens_kept=self.network.tokens_kept or KEPT_NONE,
            steps=used.clusters if used is not None and any(x.has_steps for x in layers) else None,
        )

    def _stored(self, precisions: Mapping[str, Precision]) -> StoredWeights | None:
        """The chosen precisions' weights that were rounded with regard to data, or have branches.

        A branch is not found again bit for bit on another machine.
        """
        own, shared = self.prepared.own_codes, self.prepared.quantizer
        quantizer = own.quantizer(precisions, shared)
        kept = (
            (name, quantizer.kept(name, self.network.layer_module(name), precision.weight))
            for name, precision in precisions.items()
        )
        found = {name: weight for name, weight in kept if weight is not None}
        return StoredWeights(self.prepared.task.rounding, found) if found else None

    def _assigned(self, precisions: Mapping[str, Precision]) -> tuple[AssignedLayer, ...]:
        prepared = self.prepared
        known = prepared.own_codes.quantizer(precisions, prepared.quantizer).ranges
        return tuple(
            AssignedLayer(
                layer.name,
                layer.kind,
                layer.weight_shape,
                precisions[layer.name],
                # The input of an embedding are indices, which have no range.
                None if layer.kind == "embedding"
                else known.of(layer.name, precisions[layer.name].activation),
                layer.is_transposed,
                layer.computed,
            )
            for layer in self.network.layers
        )  # fmt: skip

    def _metadata(
        self, problem: Problem, solution: Solution, measured: Measurement, provenance: Provenance
    ) -> Metadata:
        columns, workload = solution.columns, self.prepared.pricing.workload
        score = self.prepared.task.own_score
        assert columns is not None
        return Metadata(
            device=provenance.device.name if provenance.device else None,
            batch_size=workload.batch_size,
            phase=workload.phase,
            tokens=workload.tokens,
            budgets=tuple(
                UsedBudget(b.resource, b.unit, b.limit, b.used(columns)) for b in problem.budgets
            ),
            estimator=provenance.estimator,
            # Not the solution's loss, which a solver that measures has measured.
            predicted_loss=problem.loss_of(columns),
            loss_unit=problem.loss.unit,
            measured_loss=measured.divergence,
            measured_unit=measured.metric.unit,
            measured_accuracy=measured.accuracy,
            score=score and score.name,
            measured_score=measured.score,
            num_held_out=measured.num_examples,
            solver=solution.solver,
            solver_status=solution.status.name.lower(),
            bound=solution.bound,
            gap=solution.gap,
            seed=provenance.seed,
            allow_randomness=provenance.allow_randomness,
            metric=METRICS.spell(measured.metric),
            mpq_version=provenance.mpq_version,
            torch_version=provenance.torch_version,
        )


def _trials(solver: Solver, problem: Problem) -> tuple[tuple[Columns, float], ...]:
    """The frontier that a solver finds on its way, if it is one that does."""
    found = solver.found_frontier(problem) or ()
    return tuple((each.columns, each.loss) for each in found if each.columns is not None)
