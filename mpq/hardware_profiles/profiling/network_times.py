"""Whole networks at mixed precisions, and what they teach about the sum of their layers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from mpq._support.arrays import Array, Columns
from mpq._support.progress import track
from mpq._support.rows import Rows
from mpq.errors import ModelError
from mpq.hardware_profiles.profiling._base import Runtime
from mpq.hardware_profiles.profiling.compiled_network import CompiledNetwork
from mpq.hardware_profiles.profiling.interval import Interval
from mpq.hardware_profiles.profiling.timer import Timer
from mpq.problem.cost_table import CostTable
from mpq.quantization.precision import Precision


@final
@dataclass(frozen=True, eq=False)
class NetworkTimes:
    """Whole networks that were timed.

    Args:
        candidates: ``[M, L]`` columns of the precisions.
        intervals: ``[M]`` median times with their intervals, in seconds.
    """

    candidates: Columns
    intervals: tuple[Interval, ...]

    @property
    def seconds(self) -> Array:
        """``[M]`` medians."""
        return np.array([interval.median_s for interval in self.intervals])


def random_assignments(
    table: CostTable, ties: Sequence[Sequence[str]], count: int, seed: int
) -> Columns:
    """``[M, L]`` assignments with different shares of the precisions, tied layers alike.

    Each has shares of its own, drawn evenly from all that there are, and every layer draws by them
    among the precisions that it was measured at.

    Raises:
        ModelError: If tied layers were measured at no precision in common.
    """
    rng = np.random.default_rng(seed)
    able = ~np.isnan(table.values)
    owner = {name: tie[0] for tie in ties for name in tie}
    found = np.empty((count, len(table.layers)), dtype=np.intp)
    for row in range(count):
        # With the same shares for all, networks that are mostly of one precision would hardly come
        # up.
        shares = rng.dirichlet(np.ones(len(table.precisions)))
        drawn: dict[str, int] = {}
        for place, name in enumerate(table.layers):
            group = owner.get(name, name)
            members = [
                i for i, other in enumerate(table.layers) if owner.get(other, other) == group
            ]
            # Of the whole tie at its first layer: what is drawn must run at all of its members.
            allowed = able[members].all(axis=0) * shares
            if not allowed.any():
                raise ModelError(
                    f"{' and '.join(table.layers[i] for i in members)} share a tensor or a weight "
                    "but run at no precision in common; add fp32"
                )
            if group not in drawn:
                drawn[group] = int(rng.choice(len(shares), p=allowed / allowed.sum()))
            found[row, place] = drawn[group]
    return found


def uniform_assignments(table: CostTable) -> Columns:
    """``[U, L]`` of the precisions that every layer was measured at."""
    able = ~np.isnan(table.values).any(axis=0)
    return np.repeat(np.flatnonzero(able)[:, None], len(table.layers), axis=1)


def time_networks(
    compiled: CompiledNetwork,
    runtime: Runtime,
    precisions: Sequence[Precision],
    candidates: Columns,
    timer: Timer,
    rows: Rows,
    label: str = "networks",
) -> NetworkTimes:
    """Times ``[M, L]`` assignments, in turns.

    Raises:
        MeasurementError: If the machine is too noisy, or a clock runs backwards.
    """
    # All are compiled before any is timed, as they take turns in every round.
    programs: dict[str, Callable[[], object]] = {}
    for number, row in enumerate(track(candidates.tolist(), "compiling networks")):
        assigned = _named(compiled, precisions, row)
        programs[f"network {number}"] = runtime.network(compiled, assigned).run
    # Groups of one: each may follow any other, as the order changes from round to round.
    found = timer.measure(programs, [[name] for name in programs], rows, label)
    return NetworkTimes(candidates, tuple(found[name] for name in programs))


def _named(
    compiled: CompiledNetwork, precisions: Sequence[Precision], row: Sequence[int]
) -> Mapping[str, Precision]:
    names = (layer.name for layer in compiled.layers)
    return {name: precisions[column] for name, column in zip(names, row, strict=True)}
