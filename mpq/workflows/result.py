"""What a search found: a plain record that can be saved, loaded again, and asked further."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Literal, final

import numpy as np

from mpq._support.arrays import Array, Columns
from mpq._support.phases import phase, recorded_phases
from mpq.errors import InputError, UnknownNameError
from mpq.hardware_profiles import check_sum
from mpq.hardware_profiles.kv_cache_bytes import KV_CACHE_BYTES
from mpq.hardware_profiles.part_costs import PART_RESOURCES, check_part_resource, part_costs
from mpq.network.coverage import Coverage
from mpq.network.layer import Layer
from mpq.network.mapped import streaming
from mpq.problem.assignment import Assignment
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.quantization.precision import ORIGINAL
from mpq.quantization.range_method import ActivationRange
from mpq.report.frontier import LOSS_TITLES, Frontier, FrontierPoint
from mpq.report.measurement import ComparisonRow, Measurement
from mpq.report.page.made import Made
from mpq.report.safeguard import Safeguard
from mpq.sensitivity import SpotCheck
from mpq.sensitivity.step_shares import StepShares
from mpq.solvers import SOLVERS, Solver
from mpq.workflows.loss_kind import loss_kind
from mpq.workflows.page.summary import summary_facts
from mpq.workflows.page.write import page_beside
from mpq.workflows.points import (
    alternative_points,
    found_points,
    frontier_points,
    repeatable,
    row_point,
)
from mpq.workflows.provenance import Provenance
from mpq.workflows.result_json import result_to_dict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@final
@dataclass(frozen=True, eq=False)
class SearchResult:
    """The answer of ``mpq.search``: numbers and names only, so that it can be saved and loaded.

    Whatever is predicted can be asked of it, also after ``mpq.load``. What has to be measured takes
    the network: ``Session.measured`` measures the points of a frontier that this predicts.

    Args:
        problem: The problem that was solved.
        solution: The assignment, and what was proved about it.
        assignment: The same with everything that a backend needs.
        layers: ``L`` layers; none in a record that mpq 0.1 saved.
        tables: ``[L, B]`` each: every resource that is a sum over layers.
        half_widths: ``[L, B]`` each: 95 % intervals of the resources shown, where they are known.
        comparisons: The original, the result, and every uniform precision among the candidates.
        provenance: Estimator, solver, seed, device and versions that made it.
        trials: What a search found on its way over ``objectives=loss+costs``: columns ``[L]`` and
            loss of the trials that no other one betters in loss and costs.
        safeguard: The answer beside the uniform precisions within the budgets; ``None`` where that
            was not asked for, as by a recipe, and in records of mpq 0.1.
        spot_check: What measuring a few cells said of the prediction; ``None`` where every cell was
            measured.
        coverage: What of the model lies in layers, and what stays as it is; ``None`` in records of
            mpq 0.1.
        ranges: Layer to the spelling of an input's format, such as ``a8``, to its calibrated range:
            what another assignment of the problem needs; but for those of single channels.
        steps: Which steps of a diffusion the prices of layers come from, where the estimate knows.
        made: How it was called, and what it took; of no matter for the answer.
    """

    problem: Problem
    solution: Solution
    assignment: Assignment
    layers: tuple[Layer, ...]
    tables: tuple[CostTable, ...]
    half_widths: tuple[CostTable, ...]
    comparisons: tuple[ComparisonRow, ...]
    provenance: Provenance
    trials: tuple[tuple[Columns, float], ...] = field(default=())
    safeguard: Safeguard | None = None
    spot_check: SpotCheck | None = None
    coverage: Coverage | None = None
    ranges: Mapping[str, Mapping[str, ActivationRange]] = field(default_factory=dict)
    steps: StepShares | None = None
    made: Made = field(default_factory=Made, repr=False)

    def __repr__(self) -> str:
        unit, status = self.loss_unit, self.solution.status.name.lower()
        return (
            f"<SearchResult: {len(self.problem.loss.layers)} layers, loss "
            f"{self.solution.loss:.4g} {unit}, {status}, {self.run_id}>"
        )

    @property
    def columns(self) -> Columns:
        """``[L]`` the chosen column of every layer."""
        assert self.solution.columns is not None
        return self.solution.columns

    @property
    def step_losses(self) -> Array | None:
        """``[L, B, T]`` mean predicted loss over the examples of each cluster of steps.

        Weighted by ``steps.examples [T]``, they add up to ``problem.loss``. ``None``: not known, or
        rows of the problem are parts of layers.
        """
        is_by_layer = self.problem.parts is None
        return self.steps.losses(self.problem.loss.values) if self.steps and is_by_layer else None

    @property
    def shown_tables(self) -> tuple[CostTable, ...]:
        """``[L, B]`` each: latency and cache, where known, bytes of weights, what is limited."""
        limited = (budget.resource for budget in self.problem.budgets)
        names = dict.fromkeys(("latency", "weight_bytes", KV_CACHE_BYTES, *limited))
        is_shown = self.problem.parts is None
        known = {x.name: x for x in self.tables if is_shown or x.name in PART_RESOURCES}
        return tuple(known[name] for name in names if name in known)

    @property
    def _is_as_allowed(self) -> bool:
        """Whether uniform precisions are as far as layers may take them, see ``compared``."""
        return self.provenance.target is not None or not all(x.has_weights for x in self.layers)

    @property
    def loss_name(self) -> str:
        """What ``solution.loss`` is: predicted, or measured, and on what."""
        return LOSS_TITLES[loss_kind(self.provenance, self.assignment)]

    @property
    def loss_unit(self) -> str:
        """Of ``solution.loss``: the estimate's, or, where it is measured, the metric's."""
        if not self.provenance.is_loss_measured:
            return self.problem.loss.unit
        is_scored = self.assignment.metadata.score is not None
        return "of the score" if is_scored else self.measured.metric.unit

    def cost_table(self, resource: str) -> CostTable:
        """``[L, B]`` cost of any resource over the problem's rows and precisions.

        Raises:
            InputError: If the resource needs a device and there was none, is no sum over layers, or
                none over the channels of layers that are divided.
            UnknownNameError: If there is no such resource.
        """
        known = {table.name: table for table in self.tables}
        if resource not in known:
            # First what has a remedy: that a device is missing, or that a maximum has no table.
            check_sum(resource, self.provenance.device is not None)
            raise UnknownNameError("resource of this result", resource, known)
        if self.problem.parts is None:
            return known[resource]
        check_part_resource(resource)
        return part_costs(self.problem.parts, known[resource], self.layers)

    def _by_layer(self, table: CostTable) -> CostTable:
        """``[L, 1]`` what each layer costs as it was chosen, where rows are parts of layers."""
        parts, columns = self.problem.parts, self.columns
        assert parts is not None
        cells = table.values[np.arange(len(columns)), columns]
        values = parts.by_layer(cells)[:, None]
        return replace(table, layers=parts.layers, precisions=(ORIGINAL,), values=values, scores={})

    @property
    def measured(self) -> Measurement:
        """The result on held-out examples."""
        return self.comparison("result").measured

    def comparison(self, label: str) -> ComparisonRow:
        """One row of the comparison: ``original``, ``result`` or a precision.

        Raises:
            UnknownNameError: If there is no such row.
        """
        found = {row.label: row for row in self.comparisons}
        if label not in found:
            raise UnknownNameError("row of the comparison", label, found)
        return found[label]

    def with_answer(
        self, assignment: Assignment, measured: Mapping[str, Measurement]
    ) -> "SearchResult":
        """The same search with other numbers in the same precisions.

        Args:
            assignment: The answer's, which says the measurement of ``result`` in the end.
            measured: Rows of the comparison, ``result`` among them, to what they are now.
        """
        result = measured["result"]
        metadata = replace(
            assignment.metadata,
            measured_loss=result.divergence,
            measured_accuracy=result.accuracy,
            measured_score=result.score,
            num_held_out=result.num_examples,
        )
        rows = (replace(x, measured=measured.get(x.label, x.measured)) for x in self.comparisons)
        answer = replace(assignment, metadata=metadata)
        return replace(self, assignment=answer, comparisons=tuple(rows))

    def frontier(
        self,
        resource: str | None = None,
        num_points: int | None = 20,
        solver: Solver | None = None,
    ) -> Frontier:
        """Least predicted loss for every amount of a resource, the other budgets held.

        A search over ``objectives=loss+costs`` has found its frontier on the way. To measure the
        points, without another estimate: ``Session.of(...).measured(result.frontier())``.

        Args:
            resource: Any that is a sum over layers; default: that of the first such limit, or
                bytes of weights.
            num_points: How many limits are solved for, evenly spaced; equal answers are one point.
                ``None``: the complete lower convex hull of the additive frontier instead. With
                interactions, the corners that pay with them too.
            solver: Solves for the points; default: the search's own, ``auto`` where that measured.

        Raises:
            UnknownNameError: If there is no such resource.
        """
        table = self.cost_table(resource or self._first_resource)
        # Solving again would lose what a search over loss and costs has found on its way.
        if self.trials and solver is None:
            points = found_points(self.problem, table, self.trials)
            unit, kind = self.loss_unit, loss_kind(self.provenance, self.assignment)
            found = Frontier(table.name, table.unit, unit, points, (), kind)
            return self._transformed(found if found.is_by_trials else self._checked(found))
        points = frontier_points(self.problem, table, solver or self._solver, num_points)
        found = Frontier(
            table.name, table.unit, self.problem.loss.unit, points, self.beside(table.name)
        )
        return self._transformed(self._checked(found))

    def beside(self, resource: str) -> tuple[FrontierPoint, ...]:
        """The answer and the uniform precisions, as points beside a frontier over a resource.

        Raises:
            UnknownNameError: If there is no such resource.
        """
        table = self.cost_table(resource)
        return tuple(
            row_point(self.problem, self.solution, table, row, self._is_as_allowed)
            for row in self.comparisons
            # Its precision need not be a column, and then nothing here knows its costs.
            if row.label != "original"
        )

    def _transformed(self, frontier: Frontier) -> Frontier:
        """With what was done to the parameters of the network that it is of."""
        done, unhelped = self.assignment.reparametrization, self.provenance.transforms_unhelped
        transforms = () if done is None else done.transforms
        return replace(frontier, transforms=transforms, transforms_unhelped=unhelped)

    def _checked(self, frontier: Frontier) -> Frontier:
        """With what the spot check says of its predictions."""
        check = self.spot_check
        if check is None:
            return frontier
        return replace(frontier, spot_check=check.sentences, untrusted=check.untrusted)

    def alternatives(self, count: int, min_differing_layers: int = 1) -> Frontier:
        """The best assignments that differ from each other, to be tried on what really counts.

        Args:
            count: At most so many; the first one is the result's problem solved again.
            min_differing_layers: In how many layers any two of them differ at least.

        Returns:
            Points over the first limit's resource, by rank; ``Session.measured`` tries them.

        Raises:
            InputError: If a number is below 1, or rows are parts of layers.
        """
        table = self.cost_table(self._first_resource)
        points = alternative_points(self.problem, table, self._solver, count, min_differing_layers)
        found = Frontier(table.name, table.unit, self.problem.loss.unit, points)
        return self._transformed(found)

    @property
    def _first_resource(self) -> str:
        # A maximum over steps cannot be an axis: its steps have no common table.
        sums = (b.resource for b in self.problem.budgets if b.sum_table is not None)
        return next(sums, "weight_bytes")

    @property
    def _solver(self) -> Solver:
        """The search's own, built again from how it is spelled."""
        return repeatable(SOLVERS.build(self.provenance.solver), self.provenance.seed)

    def layer_table(self) -> "pd.DataFrame":
        """One row per layer: kind, weights, MACs, precision, its share of loss and costs.

        Where a device was measured, with half widths of the 95 % intervals.

        Raises:
            InputError: If mpq 0.1 saved the record, without the layers' shapes.
        """
        # pandas is loaded only by whoever asks for a table, here and below.
        from mpq.report import layer_table

        if not self.layers:
            raise InputError(
                "this result was saved by mpq 0.1, without its layers: its own table.csv has them, "
                "or search again"
            )
        tables = [self.problem.loss, *self.shown_tables]
        precisions, columns = self.solution.precisions(self.problem), self.columns
        if self.problem.parts is not None:
            rows = [self.problem.loss, *(self.cost_table(x.name) for x in self.shown_tables)]
            tables = list(map(self._by_layer, rows))
            columns = np.zeros(len(self.layers), dtype=np.intp)
        widths = self.half_widths if self.problem.parts is None else ()
        return layer_table(self.layers, precisions, tables, columns, widths)

    def comparison_table(self) -> "pd.DataFrame":
        """One row per network: the original, the result, every uniform precision."""
        from mpq.report import comparison_table

        return comparison_table(self.comparisons, self.problem.loss.unit)

    def plot(
        self, what: Literal["frontier", "bits"] = "frontier", frontier: Frontier | None = None
    ) -> "Figure":
        """A picture: the frontier (given, or with 20 points), or the bits of every layer.

        ``mpq.report.draw_frontier`` and ``draw_bits`` draw into axes of your own.
        """
        from mpq.report.pictures import draw_bits, draw_frontier, figure_of

        if what == "bits":
            return figure_of(draw_bits(self.assignment))
        return figure_of(draw_frontier(self.frontier() if frontier is None else frontier))

    def _repr_html_(self) -> str:
        """What a notebook shows: the answer beside the original and every uniform precision."""
        from mpq.report.page.render import summary_of

        return summary_of(summary_facts(self))

    def save(
        self, folder: Path | str, frontier: Frontier | None = None, sections: Iterable[str] = ()
    ) -> list[Path]:
        """Writes the files of ``mpq.report.save.save_result``, which ``mpq.load`` reads again,
        made.json and the page, report.html.

        Args:
            folder: Made if it does not exist; files of an earlier result are replaced.
            frontier: Default: 20 points over the first limit's resource.
            sections: Names of further report sections (``mpq sections``), with options.

        Raises:
            InputError: If there is no such section, or it would replace a file.
            OutputError: If the folder cannot be written to.
        """
        from mpq.report.save import save_result
        from mpq.report.sections import sections_of

        with recorded_phases() as phases, phase("frontier"):
            drawn = self.frontier() if frontier is None else frontier
        # One that was given took its time before.
        spent = phases.in_order if frontier is None else ()
        result = replace(self, made=self.made.then(spent))
        # What lies in files is copied piece by piece.
        with streaming(bool(self.provenance.streamed)):
            files = save_result(self, folder, drawn, sections_of(sections))
        return files + page_beside(result, drawn, Path(folder))

    @cached_property
    def run_id(self) -> str:
        """What every file of this result is marked with: a checksum of all that it says."""
        # A checksum instead of a drawn number: saving the same result again gives the same mark.
        # The separator is in no JSON, so that text cannot move from one part to the next unseen.
        parts = (self.to_json(), self.problem.to_json(), self.assignment.to_json())
        return f"mpq-run-{sha256(chr(0).join(parts).encode()).hexdigest()[:16]}"

    def to_json(self) -> str:
        """All that is neither in the problem's JSON nor in the assignment's."""
        return json.dumps(result_to_dict(self), indent=1) + "\n"
