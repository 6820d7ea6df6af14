"""Pairwise: every two layers quantized together, and what that costs beyond each alone."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, final

import numpy as np
import numpy.typing as npt

from mpq._support.arrays import Array
from mpq._support.rows import Memory, Rows
from mpq._support.workers import TaskWorkers
from mpq.errors import InputError
from mpq.network.examples import Batch
from mpq.network.outputs import check_same_shape, position_weights
from mpq.problem.interactions import Interactions
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import quantized
from mpq.sensitivity._base import Sensitivity, SensitivityEstimator
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.measured import Measured
from mpq.sensitivity.passes.cell_tasks import CellTask, Shipped, measured_by, place_name
from mpq.sensitivity.passes.prefix import Recording, reusing
from mpq.sensitivity.passes.tiles import Cell, Tile, Tiling, measure_layers

Row = dict[str, list[float]]

_MAX_ROUNDS, _SETTLED = 1000, 1e-9
"""When to stop looking for the nearest matrix: after so many rounds, or changes of an entry."""
_TOLD = 1e-4
"""Where one of two losses is below the square of this share of the other, what they have in common
drowns in rounding, and counts as 0."""


@final
@dataclass(frozen=True)
class Pairwise(SensitivityEstimator):
    r"""Divergence of all pairs of layers, and the quadratic form that agrees with it.

    .. math:: \Omega_{\ell b, m c} = D_{\ell b, m c} - D_{\ell b} - D_{m c}, \quad
        D(z) \approx \sum_\ell D_{\ell z_\ell} + \sum_{\ell < m} \Omega_{\ell z_\ell, m z_m}

    where ``D`` is the network's divergence from the original with these layers in these precisions,
    and nothing else changed: exact wherever ``D`` is quadratic in the layers' changes. The table is
    ``D`` of one layer, as ``Measured`` has it, in the unit of the metric; its standard error, too.
    The interactions are a factor ``R`` of a positive semidefinite matrix near ``G``, where
    :math:`G_{\ell b, \ell b} = 2 D_{\ell b}` and :math:`G_{\ell b, m c} = \Omega_{\ell b, m c}`:
    :math:`\tfrac1S \sum_s R_s R_s^T \approx G`, with equality on the diagonal, so that the loss of
    a single layer is the table's.

    References: Deng et al. (2023), CLADO, arXiv:2307.05657; Schaefer et al. (2023), Augmenting
    Hessians with inter-layer dependencies, arXiv:2306.04879. Departs from CLADO in three ways. The
    divergence takes the place of the loss: no labels are needed, and no gradient is left over. What
    is made semidefinite is the matrix of correlations
    :math:`G_{ij} / \sqrt{G_{ii} G_{jj}}`, scaled back to the measured diagonal afterwards: the
    errors of ``G`` itself are those of the lowest precisions, where ``D`` is far from quadratic,
    and clipping its eigenvalues would spread them over all cells. And entries between two
    precisions of one layer, which are never used, are not 0 but what changes the others least.

    For reference and for small networks: it takes one pass over the data for every pair, from the
    second layer on (``PrefixReuse``).

    Args:
        max_passes: How many passes are too many.
        batched: See ``Measured``.
        journal: See ``Measured``; of the pairs.
    """

    name: ClassVar[str] = "pairwise"
    summary: ClassVar[str] = "CLADO: divergence of every pair of layers, for small networks"
    prices_caches: ClassVar[bool] = True
    is_measuring: ClassVar[bool] = True
    asks_workers: ClassVar[bool] = True

    max_passes: int = 20000
    batched: bool = False
    journal: str = ""

    def estimate(self, on: Estimation) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``.

        Raises:
            InputError: If it takes more than ``max_passes``, or the journal is of another
                measurement.
        """
        self._check(len(on.names), len(on.tried))
        on = replace(on, division=None)
        alone = Measured(batched=self.batched).estimate(on)
        key = {"estimator": self.name, "batched": str(self.batched)}
        rows: Rows | None = on.journal(self.journal, key)
        if on.workers is not None:
            rows = self._by_workers(on, on.workers, Memory() if rows is None else rows)
        pairs = _Pairs(on, rows)
        measure_layers(on, self.batched, pairs.add, "pairs of layers", {})
        factor = gram_factor(alone.table.values, pairs.mean).astype(np.float32)
        table = on.table(alone.table.values, self.name)
        return Sensitivity(table, Interactions(factor), alone.standard_error)

    def _by_workers(self, on: Estimation, workers: TaskWorkers, rows: Rows) -> Rows:
        """With the rows of tasks that were not there; a task is all pairs of a layer on a batch."""
        shipped = Shipped.of(replace(self, journal=""), on)
        candidates = [on.candidates[column] for column in on.tried]

        def is_known(batch: int, layer: str) -> bool:
            # How many are tried at once is known on the worker: rows of any such number do, and
            # what is then missing still is measured here.
            return all(
                any(row_name(batch, layer, c, n + 1) in rows for n in range(len(candidates)))
                for c in candidates
            )

        tasks = [
            CellTask(batch, (layer,))
            for batch in range(len(shipped.batches))
            for layer in on.names[:-1]
            if not is_known(batch, layer)
        ]
        measured_by(workers, shipped, pairs_task, tasks, rows, "pairs of layers")
        return rows

    def _check(self, num_layers: int, num_precisions: int) -> None:
        cells = num_layers * num_precisions
        passes = cells + num_layers * (num_layers - 1) // 2 * num_precisions**2
        if passes > self.max_passes:
            raise InputError(
                f"pairwise takes {passes} forward passes over the data ({num_layers} layers, "
                f"{num_precisions} precisions), more than max_passes={self.max_passes}; raise it, "
                "or give fewer layers or precisions"
            )


def row_name(
    batch: int, layer: str, candidate: Precision, at_once: int, piece: Batch | None = None
) -> str:
    """Of the row of a cell with all cells of later layers, on a batch, see ``place_name``."""
    return f"{place_name(batch, piece)}, layer {layer} at {candidate}, {at_once} at once"


def pairs_task(shipped: Shipped, task: CellTask) -> dict[str, Row]:
    """Rows of some earlier layers on a batch, in another process."""
    on, found = shipped.on, Memory()
    pairs = _Pairs(on, found, task.batch, task.layers)
    batch = shipped.batches[task.batch].to(on.network.device)
    with reusing(on.network) as reuse:
        for _ in pairs.add(Tiling(on, reuse, shipped.estimator.batched), batch):
            pass
    return found.all


class _Pairs:
    """Sums over examples of the divergence of two layers.

    Args:
        on: What is asked.
        rows: Where what is measured is kept; ``None``: it is added up only.
        first: Index of the first batch.
        layers: The only earlier layers that are looked at; ``None``: all.
    """

    def __init__(
        self,
        on: Estimation,
        rows: Rows | None,
        first: int = 0,
        layers: Collection[str] | None = None,
    ) -> None:
        self.on = on
        self.rows = rows
        self.layers = frozenset(on.names if layers is None else layers)
        self.total = np.zeros(on.shape * 2)  # [L, B, L, B], the earlier layer first
        self.examples, self.num_batches = 0, first

    def add(self, tiling: Tiling, batch: Batch) -> Iterator[str]:
        """Measures all pairs on a batch; yields the names of earlier layers as they are done."""
        for number, tile in enumerate(tiling.tiles(batch)):
            base = _Base(tile, batch)
            for place, first in reversed(list(enumerate(self.on.names))):
                # A pair is measured in the tile of its later layer; the earlier one is alike in all
                # copies.
                later = [name for name in self.on.names[place + 1 :] if name in tile.axes]
                for column in self.on.tried if later and first in self.layers else ():
                    found = self._known(base, first, self.on.candidates[column], later)
                    for second in later:
                        at = (place, column, self.on.names.index(second), list(self.on.tried))
                        self.total[at] += found[second]
                # Once a batch, however many tiles it is cut into.
                if number == 0:
                    yield first
        self.examples += batch.size
        self.num_batches += 1

    def _known(self, base: "_Base", first: str, candidate: Precision, later: Sequence[str]) -> Row:
        """Summed divergences of one cell and every cell of later layers."""
        at_once = base.tile.copies
        # Both tiles of a batch have this cell, with other later layers: the copies tell them apart.
        piece = None if self.on.data.at_once is None else base.batch
        name = row_name(self.num_batches, first, candidate, at_once, piece)
        if self.rows is not None and name in self.rows:
            row: Row = self.rows[name]
            return row
        found = self._measure(base, first, candidate, later)
        if self.rows is not None:
            self.rows.add(name, found)
        return found

    def _measure(
        self, base: "_Base", first: str, candidate: Precision, later: Sequence[str]
    ) -> Row:
        tile, original = base.tile, base.recording.outputs
        precisions = [self.on.candidates[column] for column in self.on.tried]
        found = {}
        with quantized(self.on.network, {first: candidate}, self.on.quantizer):
            # With the earlier layer changed, so that later passes need not compute it again.
            recording = tile.reuse.record(tile.batch, base.recording, first)
            for second in reversed(later):
                cells = tile.cells(recording, original, second, precisions)
                found[second] = [base.divergence(cell) for cell in cells]
        return found

    @property
    def mean(self) -> Array:
        """``[L, B, L, B]`` divergence of two layers, the earlier one first."""
        found: Array = self.total / self.examples
        return found


@final
class _Base:
    """The original network on a tile; not run where everything is known.

    Args:
        tile: Copies of the batch that are run together.
        batch: The batch itself, one copy of it; its mask weights positions.
    """

    def __init__(self, tile: Tile, batch: Batch) -> None:
        self.tile = tile
        self.batch = batch

    @cached_property
    def recording(self) -> Recording:
        """Of the original network."""
        return self.tile.reuse.record(self.tile.batch)

    def divergence(self, cell: Cell) -> float:
        """Summed over examples."""
        check_same_shape(cell.original, cell.changed)
        apart = self.tile.on.network.metric.divergence(cell.original, cell.changed)
        return float((apart * position_weights(self.batch, cell.changed)).sum())


def gram_factor(alone: Array, pairs: Array) -> Array:
    r"""Factor of the quadratic form that agrees with single divergences and best with pairs.

    Args:
        alone: ``[L, B]`` divergence of one layer.
        pairs: ``[L, B, L, B]`` of two layers, the earlier one first; read where both lose.

    Returns:
        ``[S, L, B]`` with :math:`\tfrac{1}{2S} \sum_s R_s^2` the divergence of one layer, exactly.
    """
    num_layers, num_precisions = alone.shape
    same_layer = np.kron(np.eye(num_layers, dtype=bool), np.ones((num_precisions,) * 2, dtype=bool))
    scale = np.sqrt(2 * alone).ravel()  # [L B]
    cross = pairs - alone[:, :, None, None] - alone  # of the earlier with the later layer
    earlier = np.arange(num_layers)[:, None] < np.arange(num_layers)
    # Pairs are measured in one order; in the other, `cross` is what no pass has found.
    upper = (cross * earlier[:, None, :, None]).reshape(same_layer.shape)
    is_told = np.minimum.outer(scale, scale) > _TOLD * np.maximum.outer(scale, scale)
    correlations = np.zeros_like(upper)
    np.divide(upper + upper.T, np.outer(scale, scale), out=correlations, where=is_told)
    # A cell that loses nothing has no direction, and stays out of the factor.
    np.fill_diagonal(correlations, scale > 0)
    values, vectors = nearest_semidefinite(correlations, ~same_layer)
    rows = (vectors * np.sqrt(values)).T  # [S, L B]
    lengths = np.linalg.norm(rows, axis=0)
    # Clipping has lengthened the columns: each is put back to the measured diagonal. The root of S
    # undoes the mean over rows.
    rows *= scale / np.where(lengths > 0, lengths, 1.0) * np.sqrt(len(rows))
    return rows.reshape(-1, num_layers, num_precisions)


def nearest_semidefinite(matrix: Array, is_known: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
    """The positive semidefinite matrix with the least squared error in the known entries.

    In turn, negative eigenvalues become 0, and unknown entries those of the matrix that this gives;
    the error never rises.

    Args:
        matrix: ``[M, M]``, symmetric; its diagonal is known, other unknown entries are 0.
        is_known: ``[M, M]``, symmetric.

    Returns:
        Eigenvalues ``[M]``, at least 0, and eigenvectors ``[M, M]``, in columns.
    """
    # A free diagonal would grow until any pairs fit, and it is the measured loss of one layer.
    is_known = is_known | np.eye(len(matrix), dtype=bool)
    guess = matrix
    for _ in range(_MAX_ROUNDS):
        values, vectors = np.linalg.eigh(guess)
        # Without its negative eigenvalues a symmetric matrix is the nearest semidefinite one in the
        # Frobenius norm.
        values = values.clip(0.0)
        found = np.where(is_known, matrix, (vectors * values) @ vectors.T)
        if np.abs(found - guess).max() < _SETTLED:
            break
        guess = found
    return values, vectors
