"""Metric-decoupled: layers of different kinds are measured by different metrics."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from mpq._support.arrays import Array
from mpq.errors import InputError
from mpq.problem.layer_groups import LayerGroups
from mpq.sensitivity._base import Sensitivity, SensitivityEstimator
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.measured import Measured
from mpq.sensitivity.own_score import drops, own_drop
from mpq.sensitivity.scores import OWN, SCORES


@final
@dataclass(frozen=True)
class Decoupled(SensitivityEstimator):
    r"""What a layer loses alone, by the metric of its group.

    .. math:: s_{\ell b} = d_{g(\ell)}\bigl(f, f \text{ with layer } \ell \text{ at } b\bigr)

    MixDQ (Zhao et al. 2024, arXiv:2405.17873) measures layers that make the content of an image by
    its structural similarity and all others by the signal to noise ratio in decibels; ViDiT-Q
    (Zhao et al. 2024, arXiv:2406.02540) layers by their kind. Metrics are the scores of
    ``measured`` (``decibels`` among them), built-in scores such as ``ssim`` (a call of the whole
    network for every cell), or ``own``, the task's. A drop below 0 counts as 0.

    Numbers of two groups cannot be compared: unless all are of one unit the table's is
    ``relative``, and its sum means little. The solver ``swept-budgets`` gives each group a budget
    of its own.

    Args:
        groups: See ``LayerGroups``, each with its metric.

    Raises:
        InputError: If a group has no pattern, or no metric.
    """

    name: ClassVar[str] = "decoupled"
    summary: ClassVar[str] = "measured, groups of layers by metrics of their own (MixDQ, ViDiT-Q)"
    is_measuring: ClassVar[bool] = True

    groups: str = "*=divergence"

    def __post_init__(self) -> None:
        if not all(LayerGroups.parse(self.groups).metrics):
            raise InputError(
                f"{self.name} needs a metric for every group, such as '*attn2*=ssim;*=decibels'; "
                f"got {self.groups!r}"
            )

    @property
    def asks_score(self) -> bool:
        """See ``SensitivityEstimator.asks_score``."""
        return OWN in LayerGroups.parse(self.groups).metrics

    def num_scored(self, names: Sequence[str]) -> int:
        """See ``SensitivityEstimator.num_scored``."""
        groups = LayerGroups.parse(self.groups)
        return sum(groups.metrics[group] == OWN for group in groups.of(names))

    def estimate(self, on: Estimation) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``.

        Raises:
            InputError: If a layer is in no group, a group has no layer, or there is no such metric.
        """
        groups = LayerGroups.parse(self.groups)
        of_layer = groups.of(on.names)
        values, units = np.zeros(on.shape), set()
        for index, metric in enumerate(groups.metrics):
            rows = [row for row, group in enumerate(of_layer) if group == index]
            found, unit = _measured(on, metric, rows)
            values[rows] = found[rows]
            units.add(unit)
        return Sensitivity(
            on.table(values, self.name, units.pop() if len(units) == 1 else "relative")
        )


def _measured(on: Estimation, metric: str, rows: list[int]) -> tuple[Array, str]:
    """``[L, B]`` by one metric, of which other rows mean nothing; and its unit."""
    if metric in SCORES:
        cells = {name: on.tried if row in rows else () for row, name in enumerate(on.names)}
        found = Measured(metric).measure(on, f"measured, {metric}", cells).table
        return found.values, found.unit
    if metric == OWN:
        return drops(on, own_drop(on), rows), "score"
    if on.named_drop is None:
        raise InputError(
            f"the metric {metric!r} is none of {', '.join(SCORES)}, and scores by name are asked "
            "through mpq.search"
        )
    return drops(on, on.named_drop(metric), rows), "score"
