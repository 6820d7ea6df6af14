"""Which clusters the steps of a diffusion are put into, and the examples of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, Self, final

from mpq._support.events import warn
from mpq.errors import DataError, InputError
from mpq.network.examples import Calibration
from mpq.network.halving import halved
from mpq.network.network import Network
from mpq.network.running_steps import steps_of
from mpq.quantization.step_borders import step_borders
from mpq.quantization.step_logs import StepLogs, step_logs
from mpq.quantization.steps import StepClusters, Steps
from mpq.workflows.step_record import StepRecord

UNCOVERED: Final = 0.1
"""Share of the stated steps that may lie between two neighbouring calibration examples, or beyond
the last one, before it is warned of."""


@final
@dataclass(frozen=True, eq=False)
class StepPlan:
    """The clusters, and the calibration examples of each.

    Args:
        record: What is told of them.
        steps: ``[N]`` of every calibration example.
        parts: ``[T]`` the calibration examples of each cluster.
        divided: Layers whose inputs have a range for each.
    """

    record: StepRecord
    steps: tuple[float, ...]
    parts: tuple[Calibration, ...]
    divided: frozenset[str]

    @classmethod
    def of(
        cls, network: Network, calibration: Calibration, held_out: Calibration, steps: Steps
    ) -> Self:
        """Takes a forward pass over the calibration examples.

        Raises:
            DataError: If there are too few examples for so many clusters, or a cluster has no
                held-out example.
        """
        numbers, others = (
            steps_of(steps.argument, network.module, data) for data in (calibration, held_out)
        )

        def looked(data: Calibration) -> StepLogs:
            return step_logs(network, data, numbers)

        found = halved("finding ranges by step", calibration, looked, network.why_uncut)
        if not found.layers:
            raise InputError(
                "no layer reads rows of single examples, so that no input has a range for some "
                "steps: search with one cluster (--step-clusters 1)"
            )
        borders = step_borders(numbers, found.values, steps.clusters)
        clusters = StepClusters(steps.argument, borders)
        members = clusters.members(numbers)
        held = clusters.members(others)
        _check_reached(clusters, held, "no held-out example")
        counts, held_counts = (tuple(map(len, x)) for x in (members, held))
        record = StepRecord(clusters, counts, held_counts, found.shared)
        parts = tuple(map(calibration.picked, members))
        return cls(record, numbers, parts, frozenset(found.layers))

    def told(self, unhelped: Mapping[str, str]) -> StepRecord:
        """The record, with formats that have one range for all steps, and why."""
        return replace(self.record, unhelped=dict(unhelped))

    def parts_of(self, network: Network, data: Calibration) -> tuple[Calibration, ...]:
        """``[T]`` of some of the calibration examples, those of each cluster.

        Raises:
            DataError: Names a cluster that has none.
        """
        clusters = self.record.clusters
        members = clusters.members(steps_of(clusters.argument, network.module, data))
        _check_reached(clusters, members, "of some calibration examples none")
        return tuple(map(data.picked, members))


def _check_reached(clusters: StepClusters, members: Sequence[Sequence[int]], what: str) -> None:
    for cluster, places in enumerate(members):
        if not places:
            raise DataError(
                f"{what} is in {clusters.spelled(cluster)}: give examples at all steps (--data, "
                "--eval-data), or fewer clusters (--step-clusters)"
            )


def along_steps(network: Network, data: Calibration, steps: Steps | None) -> Calibration:
    """The examples, whose splits are spread over their steps.

    Args:
        network: That is called with them.
        data: Examples.
        steps: Where they are; with a single cluster, splits are by position.

    Raises:
        DataError: If a batch has no steps, or not one for each example.
    """
    if steps is None:
        return data
    if network.is_mixing and steps.clusters > 1:
        raise InputError(
            "rows of a batch change each other's outputs, so that a batch is one example with many "
            "steps: search with one cluster (--step-clusters 1)"
        )
    numbers = steps_of(steps.argument, network.module, data.along(network.axes))
    check_covered(numbers, steps)
    return data.spread_over(numbers) if steps.clusters > 1 else data


def check_covered(numbers: Sequence[float], steps: Steps) -> None:
    """Warns where calibration examples leave out a part of the steps that the network will run at.

    Args:
        numbers: Steps of the examples.
        steps: With or without what they are to cover.
    """
    if steps.within is None:
        return
    low, high = steps.within
    inside = sorted(x for x in numbers if low <= x <= high)
    ends = [low, *inside, high]
    # Between whole steps there is nothing.
    next_one = 1.0 if all(x == round(x) for x in ends) else 0.0
    widest = max(UNCOVERED * (high - low), next_one)
    missing = [(a, b) for a, b in pairwise(ends) if b - a > widest]
    if missing:
        told = ", ".join(f"{a:g} to {b:g}" for a, b in missing)
        warn(
            f"calibration examples leave out steps {told} of {low:g} to {high:g}, where ranges and "
            "prices are those of other steps: spread the examples over all steps",
            stacklevel=2,
        )
