"""The sum of layers: what an assignment takes by its layers' own times, part by part."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

import numpy as np
import numpy.typing as npt

from mpq._support.arrays import Array, Columns
from mpq.hardware_profiles.profiling._base import Runtime
from mpq.hardware_profiles.profiling.compiled_network import CompiledNetwork
from mpq.hardware_profiles.profiling.layer_times import Cell, LayerTimes
from mpq.problem.cost_table import CostTable, PairwiseCost
from mpq.quantization.precision import Precision


@final
@dataclass(frozen=True, eq=False)
class LayerSums:
    """Seconds of one run by what causes them.

    Args:
        layers: ``[L]`` names, in the network's order.
        precisions: ``[B]`` precisions, in the tables' order.
        alone: ``[L, B]``; ``nan``: not measured.
        half_width: ``[L, B]`` half of its 95 % interval.
        between_s: What is between layers that follow each other, on average over their kernels.
        pairs: What the kernels of such layers change of that, centred: what conversions between
            number formats and memory layouts cost, or what fusion saves.
        kernel: ``[L, B]`` index of the kernel that runs there.
        kernels: Names of the kernels; an empty one is of cells that do not run.
    """

    layers: tuple[str, ...]
    precisions: tuple[Precision, ...]
    alone: Array
    half_width: Array
    between_s: float
    pairs: tuple[PairwiseCost, ...]
    kernel: npt.NDArray[np.intp]
    kernels: tuple[str, ...]

    @classmethod
    def of(
        cls,
        compiled: CompiledNetwork,
        runtime: Runtime,
        precisions: Sequence[Precision],
        times: LayerTimes,
    ) -> Self:
        """From the times of layers and neighbours."""
        layers = compiled.layers
        names = [[runtime.kernel(x.kind, p) for p in precisions] for x in layers]
        # In the order of first use: a set would number them differently in every process.
        kernels = tuple(dict.fromkeys(name for row in names for name in row))
        alone = [[times.seconds(x.name, p) for p in precisions] for x in layers]
        width = [[times.half_width(x.name, p) for p in precisions] for x in layers]
        kernel = np.array([[kernels.index(name) for name in row] for row in names])
        between_s, pairs = _pairs(compiled, precisions, times, kernel)
        return cls(
            tuple(layer.name for layer in layers), tuple(precisions),
            np.array(alone), np.array(width), between_s, pairs, kernel, kernels,
        )  # fmt: skip

    def table(self) -> CostTable:
        """The plain sum of layers and of what is between them, ``[L, B]`` seconds."""
        return CostTable(
            "latency",
            "seconds",
            self.layers,
            self.precisions,
            self.alone,
            self.between_s,
            self.pairs,
        )

    def cells(self, candidate: Columns) -> Array:
        """``[L * B]`` seconds of each layer alone where it is chosen, else 0."""
        # 0 where a precision is not chosen: these numbers are a row of a linear model.
        found = np.zeros_like(self.alone)
        rows = np.arange(len(candidate))
        found[rows, candidate] = self.alone[rows, candidate]
        return found.reshape(-1)

    def by_kernel(self, candidate: Columns) -> Array:
        """``[K + 1]`` seconds in every kernel, then what pairs add."""
        rows = np.arange(len(candidate))
        # `minlength`, so that kernels which nothing chosen uses have their column too.
        sums = np.bincount(
            self.kernel[rows, candidate], self.alone[rows, candidate], minlength=len(self.kernels)
        )
        place = {name: row for row, name in enumerate(self.layers)}
        between = sum(
            float(pair.values[candidate[place[pair.first]], candidate[place[pair.second]]])
            for pair in self.pairs
        )
        return np.append(sums, between)


def _pairs(
    compiled: CompiledNetwork,
    precisions: Sequence[Precision],
    times: LayerTimes,
    kernel: npt.NDArray[np.intp],
) -> tuple[float, tuple[PairwiseCost, ...]]:
    """Seconds between layers, and ``[B, B]`` around them, alike for precisions of one kernel."""
    row_of = {layer.name: row for row, layer in enumerate(compiled.layers)}
    measured: dict[tuple[str, str], list[tuple[Cell, Cell]]] = {}
    for cells in times.together:
        measured.setdefault((cells[0][0], cells[1][0]), []).append(cells)
    between_s, pairs = 0.0, []
    for (one, other), combinations in measured.items():
        calls = times.calls[one, other]
        # What all combinations have in common goes to the constant, so that pairs say only what a
        # choice of kernels changes.
        mean = float(np.mean([times.excess(*cells) for cells in combinations]))
        # 0 stays where a layer does not run, as its own cell is nan there and a pair is finite.
        values = np.zeros((len(precisions), len(precisions)))
        for first, second in combinations:
            # A combination was timed once per pair of kernels, and stands for all their precisions.
            rows = kernel[row_of[one]] == kernel[row_of[one], precisions.index(first[1])]
            columns = kernel[row_of[other]] == kernel[row_of[other], precisions.index(second[1])]
            values[np.ix_(rows, columns)] = calls * (times.excess(first, second) - mean)
        between_s += calls * mean
        pairs.append(PairwiseCost(one, other, values))
    return between_s, tuple(pairs)
