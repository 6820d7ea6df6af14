"""A Pareto frontier as a record: points, and what stands beside them."""

import json
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, final

from mpq._support import schema_versions
from mpq.problem.solution import Status
from mpq.quantization.precision import Precision

if TYPE_CHECKING:
    from mpq.report.measurement import Measurement


@final
@dataclass(frozen=True)
class FrontierPoint:
    """One assignment on the frontier, or beside it for comparison.

    Args:
        label: ``frontier``, ``result``, or a uniform precision.
        cost: What it uses of the frontier's resource; ``nan`` where the device cannot run it.
        loss: Predicted, in the loss table's unit.
        precisions: Layer name to the precision chosen for it.
        status: How the solver ended; ``None`` for points that nobody solved for.
        measured: On held-out examples, where asked.
        meets_others: Whether it stays within the other budgets; every frontier point does.
    """

    label: str
    cost: float
    loss: float
    precisions: dict[str, Precision]
    status: Status | None = None
    measured: "Measurement | None" = None
    meets_others: bool = True


@final
@dataclass(frozen=True)
class Frontier:
    """Least loss for every amount of a resource.

    Args:
        resource: What the loss is traded for, such as ``latency`` or ``weight_bytes``.
        unit: Unit of every point's ``cost``.
        loss_unit: Unit of every point's ``loss``.
        points: Sorted by cost; each loses strictly less than the one before it.
        others: The chosen assignment and the uniform precisions.
        loss_name: What ``loss`` is: predicted, or measured on calibration examples.
    """

    resource: str
    unit: str
    loss_unit: str
    points: tuple[FrontierPoint, ...]
    others: tuple[FrontierPoint, ...] = ()
    loss_name: str = "predicted_loss"

    @property
    def hypervolume(self) -> float:
        """Share of the rectangle between the frontier's ends that its points dominate, 0 to 1.

        The indicator of Zitzler and Thiele (1999, doi:10.1109/4235.797969), normalised by the two
        ends: the larger, the earlier the loss falls. ``nan`` with fewer than two points.
        """
        if len(self.points) < 2:
            return float("nan")
        first, last = self.points[0], self.points[-1]
        steps = zip(self.points, self.points[1:], strict=False)
        # Slices of the loss: between two neighbours, the better one dominates all that costs more.
        area = sum((last.cost - right.cost) * (left.loss - right.loss) for left, right in steps)
        # Neither factor is 0: points are sorted by cost, and each loses less than the one before.
        return area / ((last.cost - first.cost) * (first.loss - last.loss))

    def to_json(self) -> str:
        """Hypervolume and points, as ``mpq/report/frontier.schema.json`` describes them."""
        # Names such as `weight_bytes` end with their unit already.
        cost = (
            self.resource if self.resource.endswith(self.unit) else f"{self.resource}_{self.unit}"
        )
        volume = self.hypervolume
        data = {
            "schema_version": schema_versions.FRONTIER,
            "resource": self.resource,
            "unit": self.unit,
            # `json.dumps` would write NaN, which is no JSON.
            "hypervolume_share": None if isnan(volume) else volume,
            "points": [
                {
                    cost: point.cost,
                    f"{self.loss_name}_{self.loss_unit}": point.loss,
                    "status": point.status.name.lower() if point.status else None,
                    "precisions": {name: str(p) for name, p in point.precisions.items()},
                }
                for point in self.points
            ],
        }
        return json.dumps(data, indent=1) + "\n"

    def all_points(self) -> tuple[FrontierPoint, ...]:
        """The frontier, then the others."""
        return self.points + self.others
