"""What a search found, and everything that can be done with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, final

import numpy as np
import torch
from torch import nn

from mpq._support.files import write_files
from mpq._support.progress import track
from mpq.backends import apply
from mpq.errors import UnknownNameError
from mpq.hardware_profiles import PEAK_RAM, Pricing
from mpq.problem.arrays import Columns
from mpq.problem.assignment import AssignedLayer, Assignment, Record, UsedBudget
from mpq.problem.budget import total
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.quantization.observer import needs_range
from mpq.quantization.precision import ORIGINAL, Precision
from mpq.report import comparison_table, draw_bits, draw_frontier, frontier_table, layer_table, png
from mpq.report.frontier import Frontier, FrontierPoint
from mpq.report.measurement import Compared, Measurement
from mpq.solvers import Auto, Solver
from mpq.solvers.additive.default import additive_solver
from mpq.solvers.queries.alternatives import alternatives
from mpq.solvers.queries.frontier import pareto_front, solve_frontier, solve_hull
from mpq.workflows.evaluator import Evaluator

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
from mpq.workflows.refine import Refinement


@final
@dataclass(frozen=True)
class Origin:
    """Names of what made a result, for its record.

    Args:
        estimator: Name of the estimator.
        device: Name of the device, if there is one.
        seed: Of estimator and solver.
        refinements: Rounds in which the estimate was made anew at the incumbent.
    """

    estimator: str
    device: str | None
    seed: int
    refinements: tuple[Refinement, ...] = ()


@final
@dataclass(frozen=True, eq=False)
class SearchResult:
    """The answer of ``mpq.search``.

    Args:
        problem: What was solved.
        solution: How it ended and what was proved.
        solver: That solved it; used again for frontiers.
        pricing: Costs of the layers.
        evaluator: Where assignments are tried.
        origin: What made it.
        comparisons: The original, the result, and every uniform precision among the choices.
    """

    problem: Problem
    solution: Solution
    solver: Solver
    pricing: Pricing
    evaluator: Evaluator
    origin: Origin
    comparisons: tuple[Compared, ...] = ()

    @classmethod
    def measure(
        cls,
        problem: Problem,
        solution: Solution,
        solver: Solver,
        pricing: Pricing,
        evaluator: Evaluator,
        origin: Origin,
    ) -> Self:
        """The result, with original, solution and uniform precisions tried on the testbed."""
        unmeasured = cls(problem, solution, solver, pricing, evaluator, origin)
        chosen = solution.precisions(problem)
        tried: list[tuple[str, dict[str, Precision]]] = [
            ("original", evaluator.uniform(ORIGINAL)),
            ("result", chosen),
            *((str(p), evaluator.uniform(p)) for p in problem.loss.precisions if p != ORIGINAL),
        ]
        comparisons = tuple(
            unmeasured._compare(label, precisions)
            for label, precisions in track(tried, "measuring")
        )
        return replace(unmeasured, comparisons=comparisons)

    def _compare(self, label: str, precisions: dict[str, Precision]) -> Compared:
        predicted = 0.0 if label == "original" else self.problem.loss_of(self._columns(precisions))
        costs = {
            self._column(resource): self.pricing.amount(resource, precisions)
            for resource in self._shown_resources
        }
        return Compared(label, predicted, self.evaluator.measure(precisions), costs)

    def _columns(self, precisions: Mapping[str, Precision]) -> Columns:
        table = self.problem.loss
        return np.array([table.index_of(precisions[n]) for n in table.layers], dtype=np.intp)

    def _column(self, resource: str) -> str:
        """Name with unit; a maximum over steps has no table of its own."""
        is_sum = resource != PEAK_RAM
        return self.cost_table(resource).column if is_sum else f"{PEAK_RAM}_bytes"

    @property
    def _shown_resources(self) -> tuple[str, ...]:
        """Latency, where it is known, bytes, and everything that has a limit."""
        limited = (budget.resource for budget in self.problem.budgets)
        latency = ("latency",) if "latency" in self.pricing.resources else ()
        return tuple(dict.fromkeys((*latency, "weight_bytes", *limited)))

    @property
    def shown_tables(self) -> tuple[CostTable, ...]:
        """``[L, B]`` of every shown resource that is a sum over layers."""
        return tuple(map(self.cost_table, (r for r in self._shown_resources if r != PEAK_RAM)))

    @property
    def loss_name(self) -> str:
        """What ``solution.loss`` is: predicted, or measured on the calibration examples."""
        is_measuring = self.solver.is_measuring
        return "measured loss (calibration examples)" if is_measuring else "predicted loss"

    def cost_table(self, resource: str) -> CostTable:
        """``[L, B]`` cost of any resource over the problem's precisions.

        Raises:
            UnknownNameError: If there is no such resource.
        """
        return self.pricing.table(resource, self.problem.loss.precisions)

    @property
    def measured(self) -> Measurement:
        """The result on held-out examples."""
        return self.comparison("result").measured

    def comparison(self, label: str) -> Compared:
        """One row of the comparison: ``original``, ``result`` or a precision.

        Raises:
            UnknownNameError: If there is no such row.
        """
        found = {row.label: row for row in self.comparisons}
        if label not in found:
            raise UnknownNameError("row of the comparison", label, found)
        return found[label]

    @cached_property
    def assignment(self) -> Assignment:
        """The chosen precisions with everything that a backend needs, and their record."""
        layers = tuple(
            self._assigned(name, precision)
            for name, precision in self.solution.precisions(self.problem).items()
        )
        network = self.evaluator.network
        weight_range = self.evaluator.quantizer.weight_range
        return Assignment(layers, self.problem.ties, network.folded, weight_range, self._record())

    def _assigned(self, name: str, precision: Precision) -> AssignedLayer:
        layer = next(layer for layer in self.evaluator.network.layers if layer.name == name)
        reads_numbers = layer.kind != "embedding"
        activation = precision.activation
        known = self.evaluator.quantizer.ranges
        calibrated = None
        if reads_numbers and needs_range(activation):
            calibrated = known.of(name, activation)
        return AssignedLayer(name, layer.kind, layer.weight_shape, precision, calibrated)

    def _record(self) -> Record:
        columns = self.solution.columns
        assert columns is not None
        measured = self.measured
        return Record(
            device=self.origin.device,
            batch_size=self.pricing.workload.batch_size,
            phase=self.pricing.workload.phase,
            tokens=self.pricing.workload.tokens,
            budgets=tuple(
                UsedBudget(b.resource, b.unit, b.limit, b.used(columns))
                for b in self.problem.budgets
            ),
            estimator=self.origin.estimator,
            predicted_loss=self.problem.loss_of(columns),
            loss_unit=self.problem.loss.unit,
            measured_loss=measured.divergence,
            measured_unit=measured.metric.unit,
            measured_accuracy=measured.accuracy,
            num_held_out=measured.num_examples,
            solver=self.solution.solver,
            solver_status=self.solution.status.name.lower(),
            bound=self.solution.bound,
            gap=self.solution.gap,
            seed=self.origin.seed,
            mpq_version=version("mpq"),
            torch_version=str(torch.__version__),
        )

    def apply(self, model: nn.Module) -> nn.Module:
        """A new model that computes in the chosen precisions; see ``mpq.apply``."""
        return apply(model, self.assignment)

    def frontier(
        self,
        resource: str | None = None,
        num_points: int = 20,
        measure: bool = False,
        hull: bool = False,
    ) -> Frontier:
        """Least predicted loss for every amount of a resource, the other budgets held.

        Solved by ``auto`` where the result comes from a measured search; but one over
        ``objectives=loss+costs`` has found its frontier on the way.

        Args:
            resource: Any that is a sum over layers; default: that of the first such limit, or
                bytes of weights.
            num_points: How many limits are solved for; equal answers are one point.
            measure: Whether every point is tried on the held-out examples.
            hull: Whether it is the complete lower convex hull of the additive frontier instead
                of evenly spaced limits. With interactions, the corners that pay with them too.

        Raises:
            UnknownNameError: If there is no such resource.
        """
        table = self.cost_table(resource or self._first_resource)
        trials = self.solver.found_frontier(self.problem)
        if trials is not None:
            return self._measured_front(trials, table, measure)
        if hull:
            candidates, statuses = self._hull(table)
        else:
            solver = self._repeatable_solver
            candidates, statuses = solve_frontier(self.problem, table, solver, num_points)
        pairs = list(zip(candidates, statuses, strict=True))
        points = [
            self._point("frontier", table, columns, status, measure)
            for columns, status in track(pairs, "frontier points")
        ]
        others = tuple(
            self._beside(table, row) for row in self.comparisons if row.label != "original"
        )
        return Frontier(table.name, table.unit, self.problem.loss.unit, tuple(points), others)

    def _hull(self, table: CostTable) -> tuple[list[Columns], list[Status]]:
        additive = self.problem.additive()
        candidates, statuses = solve_hull(additive, table, additive_solver(additive))
        if self.problem.interactions is None:
            return candidates, statuses
        costs = [total(table, columns) for columns in candidates]
        front = pareto_front(costs, [self.problem.loss_of(columns) for columns in candidates])
        return [candidates[i] for i in front], [Status.FEASIBLE] * len(front)

    def _measured_front(
        self, trials: Sequence[Solution], table: CostTable, measure: bool
    ) -> Frontier:
        """Of all trials of the search that those within the budgets do not better."""
        found = [(each.columns, each.loss) for each in trials if each.columns is not None]
        costs = [total(table, columns) for columns, _ in found]
        chosen = [found[i] for i in pareto_front(costs, [loss for _, loss in found])]
        points = tuple(
            replace(self._point("frontier", table, columns, Status.FEASIBLE, measure), loss=loss)
            for columns, loss in track(chosen, "frontier points")
        )
        name = "calibration_loss" if self.solver.is_measuring else "predicted_loss"
        return Frontier(table.name, table.unit, self.problem.loss.unit, points, (), name)

    def alternatives(
        self, count: int, min_differing_layers: int = 1, measure: bool = True
    ) -> Frontier:
        """The best assignments that differ from each other, to be tried on what really counts.

        Args:
            count: At most so many; the first one is the result's problem solved again.
            min_differing_layers: In how many layers any two of them differ at least.
            measure: Whether each is tried on the held-out examples.

        Returns:
            Points over the first limit's resource, by rank.

        Raises:
            InputError: If a number is below 1.
        """
        table = self.cost_table(self._first_resource)
        found = alternatives(self.problem, self._repeatable_solver, count, min_differing_layers)
        points = [
            self._point(f"alternative {rank}", table, s.columns, s.status, measure)
            for rank, s in enumerate(track(found, "measuring alternatives"), start=1)
            if s.columns is not None
        ]
        return Frontier(table.name, table.unit, self.problem.loss.unit, tuple(points))

    @property
    def _first_resource(self) -> str:
        limited = (budget.resource for budget in self.problem.budgets)
        return next((name for name in limited if name != PEAK_RAM), "weight_bytes")

    @property
    def _repeatable_solver(self) -> Solver:
        """One that can be asked many times: a measured search is not."""
        return self.solver if self.solver.is_repeatable else Auto(seed=self.origin.seed)

    def _point(
        self, label: str, table: CostTable, columns: Columns, status: Status, measure: bool
    ) -> FrontierPoint:
        precisions = self._precisions(columns)
        measured = self.evaluator.measure(precisions) if measure else None
        cost, loss = total(table, columns), self.problem.loss_of(columns)
        return FrontierPoint(label, cost, loss, precisions, status, measured)

    def _precisions(self, columns: Columns) -> dict[str, Precision]:
        return replace(self.solution, columns=columns).precisions(self.problem)

    def _beside(self, table: CostTable, row: Compared) -> FrontierPoint:
        is_result = row.label == "result"
        precisions = (
            self.solution.precisions(self.problem)
            if is_result
            else self.evaluator.uniform(Precision.parse(row.label))
        )
        columns = self._columns(precisions)
        loss = self.problem.loss_of(columns)
        status = self.solution.status if is_result else None
        cost = total(table, columns)
        held = (b for b in self.problem.budgets if b.resource != table.name)
        meets = all(budget.is_met(columns) for budget in held)
        return FrontierPoint(row.label, cost, loss, precisions, status, row.measured, meets)

    def layer_table(self) -> "pd.DataFrame":
        """One row per layer: kind, weights, MACs, precision, its share of loss and costs.

        Where a device was measured, with half widths of the 95 % intervals.
        """
        chosen = self.solution.columns
        assert chosen is not None
        tables = [self.problem.loss, *self.shown_tables]
        return layer_table(
            self.pricing.layers, self.solution.precisions(self.problem), tables, chosen,
            self.half_widths,
        )  # fmt: skip

    @property
    def half_widths(self) -> tuple[CostTable, ...]:
        """``[L, B]`` each: of the 95 % intervals of the resources shown, where they are known."""
        candidates = self.problem.loss.precisions
        found = (self.pricing.uncertainty(table.name, candidates) for table in self.shown_tables)
        return tuple(table for table in found if table is not None)

    def comparison_table(self) -> "pd.DataFrame":
        """One row per network: the original, the result, every uniform precision."""
        return comparison_table(self.comparisons, self.problem.loss.unit)

    def plot(
        self, what: Literal["frontier", "bits"] = "frontier", frontier: Frontier | None = None
    ) -> "Figure":
        """A picture: the frontier (given, or with 20 points), or the bits of every layer."""
        if what == "bits":
            return draw_bits(self.assignment)
        return draw_frontier(self.frontier() if frontier is None else frontier)

    def save(self, folder: Path | str, frontier: Frontier | None = None) -> list[Path]:
        """Writes assignment.json, table.csv, comparison.csv, problem.json, frontier.csv, pictures.

        Args:
            folder: Made if it does not exist; files of an earlier result are replaced.
            frontier: Default: 20 points over the first limit's resource.

        Raises:
            OutputError: If the folder cannot be written to.
        """
        frontier = self.frontier() if frontier is None else frontier
        files = {
            "assignment.json": self.assignment.to_json(),
            "table.csv": self.layer_table().to_csv(index=False),
            "comparison.csv": self.comparison_table().to_csv(index=False),
            "problem.json": self.problem.to_json(),
            "frontier.csv": frontier_table(frontier).to_csv(index=False),
            "frontier.json": frontier.to_json(),
        }
        pictures = {
            "frontier.png": png(self.plot("frontier", frontier)),
            "bits.png": png(self.plot("bits")),
        }
        return write_files(Path(folder), {n: t.encode() for n, t in files.items()} | pictures)
