"""Measured: one layer at a time in one precision, and what that does to the output."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mpq._support.arrays import Array
from mpq._support.rows import Memory, Rows
from mpq._support.workers import TaskWorkers
from mpq.errors import DataError, InputError, UnknownNameError
from mpq.network.examples import Batch
from mpq.network.outputs import check_same_shape, position_weights
from mpq.network.signs import ExampleSigns
from mpq.quantization.precision import Precision
from mpq.sensitivity._base import DivisibleEstimator, Sensitivity
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.own_score import drops, own_drop
from mpq.sensitivity.passes.cell_tasks import CellTask, Shipped, cut, measured_by, place_name
from mpq.sensitivity.passes.checkpoint import Resumable, State
from mpq.sensitivity.passes.factor_rows import FactorRows
from mpq.sensitivity.passes.prefix import Recording, reusing
from mpq.sensitivity.passes.tiles import Cell, Tile, Tiling, measure_layers
from mpq.sensitivity.scores import OWN, SCORES, UNITS

Row = dict[str, Any]

_FEWEST = 16
"""A standard error from fewer examples says too little to stop for it."""


@final
@dataclass(frozen=True)
class Measured(DivisibleEstimator):
    r"""What the output loses when a single layer is quantized, measured.

    .. math:: s_{\ell b} = \mathrm{mean}_n \, d(f_n, f_n^{(\ell \to b)})

    Exact for one layer; that losses add up over layers is an assumption. The scores ``d``, for one
    example, positions averaged by their weights:

    - ``divergence``: the network's metric, in its unit; with KL divergence as ZeroQ (Cai et al.
      2020, arXiv:2001.00281), but on the calibration examples, not on distilled ones.
    - ``loss``: rise of the cross entropy on the targets, in nats, averaged over the targets of an
      example; as in CalibTIP and AdaQuant (Hubara et al. 2020, arXiv:2006.10518). A precision that
      lowers it costs 0: what a few calibration examples seem to gain is not to be bought.
    - ``sqnr``: noise-to-signal ratio :math:`\lVert f' - f \rVert^2 / \lVert f \rVert^2` of the
      outputs, which is ``10 ** (-SQNR / 10)`` for an SQNR in dB, so that smaller is better and
      small errors add up; unit ``relative``. The mean over examples is that of ratios.
    - ``decibels``: how far the SQNR in dB is below 200, which adds up as AIMET's and MixDQ's (Zhao
      et al. 2024, arXiv:2405.17873) do; unit ``decibels``.
    - ``cosine``: one minus the cosine of the outputs at a position; unit ``relative``.
    - ``own``: how much worse the task's own score is (``Task.score``), which looks at examples of
      its own: a call for every layer and precision, without a standard error; unit ``score``.

    Takes one pass for every layer and precision, but only from that layer on: what comes before is
    not computed again (``PrefixReuse``), and the numbers are those of whole passes, bit by bit.
    The standard error is that of the mean over examples.

    Interactions are the change of the outputs before the softmax, projected on probes ``u`` of the
    metric (``OutputMetric.probe``): :math:`R_{n \ell b} = \langle u_n, f_n^{(\ell \to b)} - f_n
    \rangle`. Half of its mean square estimates the divergence to second order in the change of the
    outputs, and changes of several layers are added up where they are nearly linear.

    Args:
        score: ``divergence``, ``loss``, ``sqnr``, ``decibels``, ``cosine`` or ``own``.
        interactions: Whether the factor ``R`` is returned as well; for ``divergence`` only.
        num_probes: Rows of the factor per example.
        shrinkage: Share of the interactions that is left out, from 0 to 1; ``None``: in closed form
            (``FactorRows.shrinkage``).
        tolerance: A cell whose standard error is below this share of its mean, after at least 16
            examples, is not measured on further batches; 0: all batches are used.
        batched: Whether small batches are copied, so that a pass tries several precisions
            (``Tiling``). Faster for small batches only, where starting an operation takes longer
            than computing it; the last digits of outputs then differ from those of single passes.
        journal: Path of a file that keeps what is measured, batch by batch and layer by layer: the
            same call goes on where it was stopped. Empty: none.
        seed: Seed of the probes.
    """

    name: ClassVar[str] = "measured"
    summary: ClassVar[str] = "divergence or loss measured one layer at a time, L x B passes"
    prices_caches: ClassVar[bool] = True
    is_measuring: ClassVar[bool] = True
    asks_workers: ClassVar[bool] = True

    score: str = "divergence"
    interactions: bool = False
    num_probes: int = 1
    shrinkage: float | None = None
    tolerance: float = 0.0
    batched: bool = False
    journal: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.score not in (*SCORES, OWN):
            raise UnknownNameError("score", self.score, (*SCORES, OWN))
        if self.num_probes < 1:
            raise InputError(f"measured needs num_probes >= 1; got {self.num_probes}")
        if not 0 <= self.tolerance < 1:
            raise InputError(f"measured needs a tolerance from 0 to 1; got {self.tolerance}")
        if self.shrinkage is not None and not 0 <= self.shrinkage <= 1:
            raise InputError(f"measured needs a shrinkage from 0 to 1; got {self.shrinkage}")
        if self.score == OWN and (self.tolerance or self.journal or self.batched):
            raise InputError(
                "score=own asks the task's score of whole networks: tolerance, journal and batched "
                "are of examples; what it measured is kept by cache (--cache)"
            )
        if self.interactions and (self.score != "divergence" or self.tolerance):
            raise InputError(
                "interactions are those of the divergence, on every batch: measured takes them "
                "with score=divergence and tolerance=0"
            )

    @property
    def asks_score(self) -> bool:
        """See ``SensitivityEstimator.asks_score``."""
        return self.score == OWN

    def estimate(self, on: Estimation) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``; targets are used by ``loss``.

        Raises:
            DataError: If ``loss`` has no targets.
            InputError: If ``loss`` is asked of a network without probabilities, or the journal is
                of another measurement.
        """
        return self.measure(on, "measured, layer by layer")

    def measure(
        self, on: Estimation, purpose: str, cells: Mapping[str, Collection[int]] | None = None
    ) -> Sensitivity:
        """``estimate``, with a progress bar that says what it is for.

        Args:
            on: Network, examples, quantizer and candidates.
            purpose: For the progress bar.
            cells: Layer to the columns that are measured, the others cost 0; ``None``: all.
        """
        if self.score == OWN and cells is None:
            return Sensitivity(on.table(drops(on, own_drop(on)), self.name, "score"))
        return self._run(on, purpose, cells).sensitivity()

    def collect(self, on: Estimation) -> None:
        """See ``DivisibleEstimator.collect``.

        Raises:
            InputError: If there is a tolerance, or a journal.
        """
        if self.tolerance or self.journal:
            raise InputError(
                "measured is split without a tolerance, which looks at all batches before, and "
                "without a journal, as the parts are one: leave out tolerance and journal"
            )
        self._run(on, "measured, layer by layer")

    def _run(
        self, on: Estimation, purpose: str, cells: Mapping[str, Collection[int]] | None = None
    ) -> "_Run":
        metric = on.network.metric
        if self.score == "loss" and not metric.is_classification:
            raise InputError(
                f"score=loss needs class probabilities, and the metric is {metric.name!r}; "
                "use score=divergence"
            )
        rows: Rows | None = on.journal(self.journal, self._key())
        # Single cells are few, and measured before another process has begun.
        if on.workers is not None and cells is None:
            rows = self._by_workers(on, on.workers, Memory() if rows is None else rows, purpose)
        # Rows have every cell by itself, and whether a cell is settled is known in order only.
        on = on if rows is None and not self.tolerance else replace(on, division=None)
        run = _Run(self, on, rows, cells=cells)
        measure_layers(on, self.batched, run.batch, purpose, run.parts)
        return run

    def _by_workers(self, on: Estimation, workers: TaskWorkers, rows: Rows, purpose: str) -> Rows:
        """With the rows that were not there."""
        if self.tolerance:
            raise InputError(
                "whether a cell is settled depends on all batches before, so that workers cannot "
                "measure them at a time: leave out tolerance, or --workers"
            )
        shipped = Shipped.of(replace(self, journal=""), on)
        left = []
        for index in range(len(shipped.batches)):
            names = tuple(name for name in on.names if row_name(index, name) not in rows)
            left += [CellTask(index, names)] if names and on.tried else []
        tasks = list(cut(left, workers.count)) if left else []
        measured_by(workers, shipped, measured_task, tasks, rows, purpose)
        return rows

    def _key(self) -> dict[str, str]:
        """The options that measurements depend on; those of probes only where there are some."""
        # Shrinkage is left out: it comes after the measurement, and may change in a resumed run.
        names = ["score", "interactions", "tolerance", "batched"]
        names += ["num_probes", "seed"] if self.interactions else []
        return {"estimator": self.name, **{name: str(getattr(self, name)) for name in names}}


def row_name(batch: int, layer: str, piece: Batch | None = None) -> str:
    """Of the row that a layer has on a batch, see ``place_name``."""
    return f"{place_name(batch, piece)}, layer {layer}"


def measured_task(shipped: Shipped, task: CellTask) -> dict[str, Row]:
    """Rows of some layers on a batch, in another process."""
    estimator, on, found = shipped.estimator, shipped.on, Memory()
    run = _Run(estimator, on, found, task.batch, task.layers)
    batch = shipped.batches[task.batch].to(on.network.device)
    with reusing(on.network) as reuse:
        for _ in run.batch(Tiling(on, reuse, estimator.batched), batch):
            pass
    return found.all


class _Run:
    """One estimate: what is measured so far.

    Args:
        estimator: With its options.
        on: What it is asked.
        rows: Where what is measured is kept; ``None``: it is added up only.
        first: Index of the first batch.
        layers: The only ones that are measured; ``None``: all.
        cells: Layer to the columns that are measured; ``None``: all.
    """

    def __init__(
        self,
        estimator: Measured,
        on: Estimation,
        rows: Rows | None,
        first: int = 0,
        layers: Collection[str] | None = None,
        cells: Mapping[str, Collection[int]] | None = None,
    ) -> None:
        self.estimator = estimator
        self.on = on
        self.rows = rows
        self.layers = frozenset(on.names if layers is None else layers)
        self.index = {name: row for row, name in enumerate(on.names)}
        self.is_asked = np.zeros(on.shape, bool)  # [L, B]
        for name, row in self.index.items():
            tried = [c for c in on.tried if cells is None or c in cells[name]]
            self.is_asked[row, tried] = True
        self.sums = _Sums(on.shape)
        self.factor = FactorRows(*on.shape)
        self.num_batches = first

    @property
    def parts(self) -> dict[str, Resumable]:
        """What batches add to."""
        return {"losses": self.sums, "factor": self.factor}

    def batch(self, tiling: Tiling, batch: Batch) -> Iterator[str]:
        """Measures every layer on a batch; yields their names as they are done."""
        is_open = self.is_asked & ~self.sums.is_settled(self.estimator.tolerance)  # [L, B]
        num_probes = self.estimator.num_probes if self.estimator.interactions else 0
        rows: dict[str, Row] = {}
        for tile in tiling.tiles(batch):
            scale: _Scale | None = None
            # Backwards, because of modules that keep something between calls (see ``PrefixReuse``).
            for layer in reversed(tile.axes):
                columns: list[int] = is_open[self.index[layer]].nonzero()[0].tolist()
                piece = None if self.on.data.at_once is None else batch
                name = row_name(self.num_batches, layer, piece)
                if self.rows is not None and name in self.rows:
                    rows[layer] = self.rows[name]
                elif columns and layer in self.layers:
                    # Only where something is left to measure, so that a resumed run does not repeat
                    # passes.
                    scale = scale or _Scale.of(tile, batch, num_probes, self.estimator.seed)
                    rows[layer] = self._measure(scale, layer, columns)
                    if self.rows is not None:
                        self.rows.add(name, rows[layer])
                yield layer
        for layer, row in rows.items():
            self.sums.add(self.index[layer], row)
        if self.estimator.interactions:
            self._add_factor(rows, batch.size)
        self.num_batches += 1

    def _measure(self, scale: "_Scale", layer: str, columns: Sequence[int]) -> Row:
        row: Row = {"columns": columns, "count": 0, "total": [], "square": [], "factor": []}
        score, metric = SCORES[self.estimator.score], self.on.network.metric
        for cell in scale.cells(layer, [self.on.candidates[column] for column in columns]):
            check_same_shape(cell.original, cell.changed)
            scores = score(metric, scale.batch, cell.original, cell.changed)  # [M]
            row["count"] = len(scores)
            # Plain numbers, because rows are written to the journal as JSON.
            row["total"].append(float(scores.sum()))
            row["square"].append(float(scores.square().sum()))
            if self.estimator.interactions:
                row["factor"].append(scale.products(cell).tolist())
        return row

    def _add_factor(self, rows: dict[str, Row], size: int) -> None:
        shape = (self.estimator.num_probes, size, *self.sums.total.shape)
        # A candidate that is not tried is the original precision, which changes nothing.
        factor = np.zeros(shape)  # [K, N, L, B]
        for layer, row in rows.items():
            for column, products in zip(row["columns"], row["factor"], strict=True):
                factor[:, :, self.index[layer], column] = products
        for probe in factor:
            self.factor.add(probe, size)

    def sensitivity(self) -> Sensitivity:
        """What was found."""
        name, unit = self.estimator.name, UNITS.get(self.estimator.score, "")
        count = self.sums.count[self.is_asked]
        if not count.all():
            raise DataError("score=loss: no target of the data is counted")
        table, error = self.on.table(np.maximum(self.sums.mean, 0.0), name, unit), None
        # One example has no spread, and a table of errors is all known or not given.
        if (count > 1).all():
            error = self.on.table(self.sums.standard_error, f"{name}_standard_error", unit)
        if not self.estimator.interactions:
            return Sensitivity(table, None, error)
        return Sensitivity(table, self.factor.interactions(self.estimator.shrinkage), error)


@dataclass(frozen=True, eq=False)
class _Scale:
    """What cells of one tile are compared with."""

    tile: Tile
    batch: Batch
    recording: Recording
    probes: Tensor  # [K, N, P, C]

    @classmethod
    def of(cls, tile: Tile, batch: Batch, num_probes: int, seed: int) -> "_Scale":
        recording = tile.reuse.record(tile.batch)
        # Copies differ in the last digits at most; the first one's probes serve them all.
        outputs = recording.outputs.chunk(tile.copies)[0]
        weights = position_weights(batch, outputs)
        probe = tile.on.network.metric.probe
        # Both tiles of a batch get the same.
        signs = (ExampleSigns.of(seed, number, batch) for number in range(num_probes))
        drawn = [probe(outputs, weights, each).double() for each in signs]
        probes = torch.stack(drawn) if drawn else outputs.new_zeros(0, *outputs.shape)
        return cls(tile, batch, recording, probes)

    def cells(self, layer: str, precisions: Sequence[Precision]) -> Iterator[Cell]:
        return self.tile.cells(self.recording, self.recording.outputs, layer, precisions)

    def products(self, cell: Cell) -> Tensor:
        """``[K, N]``: the probes with the change of the outputs."""
        change = cell.changed.double() - cell.original.double()
        return (self.probes * change).flatten(2).sum(dim=2)


class _Sums:
    """Sums over examples, for every cell."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.count, self.total, self.square = np.zeros((3, *shape))

    @property
    def state(self) -> State:
        return {"count": self.count, "total": self.total, "square": self.square}

    def restore(self, state: State) -> None:
        self.count, self.total, self.square = (state[k] for k in ("count", "total", "square"))

    def add(self, layer: int, row: Row) -> None:
        self.count[layer, row["columns"]] += row["count"]
        self.total[layer, row["columns"]] += row["total"]
        self.square[layer, row["columns"]] += row["square"]

    @property
    def mean(self) -> Array:
        found: Array = self.total / np.maximum(self.count, 1)
        return found

    @property
    def standard_error(self) -> Array:
        """Of the mean."""
        # For cells with fewer examples this is 0 and not an error; who asks looks at the count.
        count = np.maximum(self.count, 2)
        # A small variance is the difference of two large sums, which rounding can leave below 0.
        deviations = np.maximum(self.square - count * self.mean**2, 0.0)
        found: Array = np.sqrt(deviations / (count - 1) / count)
        return found

    def is_settled(self, tolerance: float) -> npt.NDArray[np.bool_]:
        """Where no further batch is needed; a mean of 0 may be of a layer not yet called."""
        # Strictly below, so that a tolerance of 0 settles nothing, not even cells whose error is 0.
        is_close: npt.NDArray[np.bool_] = self.standard_error < tolerance * np.abs(self.mean)
        return is_close & (self.count >= _FEWEST)
