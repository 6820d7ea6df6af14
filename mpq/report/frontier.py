"""A Pareto frontier as a record: points, and what stands beside them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import isnan
from typing import Any, Final, final

from mpq._support import schema_versions
from mpq._support.names import shortened, visible
from mpq.problem.solution import Status
from mpq.quantization.precision import Precision
from mpq.report.measurement import Measurement
from mpq.report.stored_measurement import measurement_to_dict

PREDICTED_LOSS: Final = "predicted_loss"
CALIBRATION_LOSS: Final = "calibration_loss"
"""What a solver that measures found on the calibration examples; held-out ones are another word."""
TRIAL_LOSS: Final = "trial_loss"
"""The same by a function of the user's, which looks at examples of its own."""
LOSS_TITLES: Final = {
    PREDICTED_LOSS: "predicted loss",
    CALIBRATION_LOSS: "measured loss (calibration examples)",
    TRIAL_LOSS: "measured loss",
}
"""Names of losses in files to what they are for people."""


@final
@dataclass(frozen=True)
class FrontierPoint:
    """One assignment on the frontier, or beside it for comparison.

    Args:
        label: ``frontier``, ``result``, or a uniform precision.
        cost: What it uses of the frontier's resource; ``nan`` where the device cannot run it.
        loss: As the frontier's ``loss_name`` says: predicted, or measured by the solver.
        precisions: Layer name to the precision chosen for it.
        status: How the solver ended; ``None`` for points that nobody solved for.
        measured: On held-out examples, where asked.
        meets_others: Whether it stays within the other budgets, and every layer may take its
            precision; so it is with every frontier point.
    """

    label: str
    cost: float
    loss: float
    precisions: dict[str, Precision]
    status: Status | None = None
    measured: Measurement | None = None
    meets_others: bool = True


@final
@dataclass(frozen=True)
class Frontier:
    """Least loss for every amount of a resource.

    Args:
        resource: What the loss is traded for, such as ``latency`` or ``weight_bytes``.
        unit: Unit of every point's ``cost``.
        loss_unit: Unit of every point's ``loss``: of the loss table where it is predicted, of the
            metric, or ``of the score``, where it is measured.
        points: Sorted by cost; each loses strictly less than the one before it, measured where
            uniform precisions corrected them.
        others: The chosen assignment and the uniform precisions.
        loss_name: What ``loss`` is: ``PREDICTED_LOSS``, or measured: ``CALIBRATION_LOSS``,
            ``TRIAL_LOSS``.
        spot_check: What measuring a few cells said of the predictions, in sentences; none where
            they were not checked.
        untrusted: Layers whose predictions failed there, and were not mended.
        transforms: What was done to the network's parameters before, in order; every point is of
            the network with these.
        transforms_unhelped: Transformation that was asked for to why it is not used.
    """

    resource: str
    unit: str
    loss_unit: str
    points: tuple[FrontierPoint, ...]
    others: tuple[FrontierPoint, ...] = ()
    loss_name: str = PREDICTED_LOSS
    spot_check: tuple[str, ...] = ()
    untrusted: tuple[str, ...] = ()
    transforms: tuple[str, ...] = ()
    transforms_unhelped: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        # Every layer of every point would fill a notebook.
        how = "measured" if self.is_measured else self.loss_title
        over = shortened(visible(self.resource))
        return f"<Frontier: {len(self.points)} points over {over}, {how}>"

    @property
    def is_measured(self) -> bool:
        """Whether all of its points were tried on held-out examples."""
        return bool(self.points) and all(point.measured is not None for point in self.points)

    @property
    def is_by_trials(self) -> bool:
        """Whether each point's ``loss`` was measured, by a solver that tried it."""
        return self.loss_name in (CALIBRATION_LOSS, TRIAL_LOSS)

    @property
    def loss_title(self) -> str:
        """What a point's ``loss`` is, for people."""
        return LOSS_TITLES.get(self.loss_name, self.loss_name.replace("_", " "))

    @property
    def warning(self) -> str:
        """Why its points are not to be believed, and what to do; empty: nothing is known."""
        if not self.untrusted or self.is_measured:
            return ""
        more = f" and {len(self.untrusted) - 8} more" if len(self.untrusted) > 8 else ""
        return (
            "this frontier is only predicted, and the spot check says that predictions fail at "
            f"{', '.join(self.untrusted[:8])}{more}: measure its points, and uniform precisions "
            "beside them (--measure, Session.measured), or search with --sensitivity auto "
            "or measured"
        )

    @property
    def hypervolume(self) -> float:
        """Share of the rectangle between the frontier's ends that its points dominate, 0 to 1.

        The indicator of Zitzler and Thiele (1999, doi:10.1109/4235.797969), normalised by the two
        ends: the larger, the earlier the loss falls. ``nan`` with fewer than two points.
        """
        front: list[FrontierPoint] = []
        for point in self.points:
            # A uniform precision that was measured to be better may be predicted to be worse.
            if front and point.loss >= front[-1].loss:
                continue
            if front and point.cost == front[-1].cost:
                front.pop()
            front.append(point)
        if len(front) < 2:
            return float("nan")
        first, last = front[0], front[-1]
        steps = pairwise(front)
        # Slices of the loss: between two neighbours, the better one dominates all that costs more.
        area = sum((last.cost - right.cost) * (left.loss - right.loss) for left, right in steps)
        # Neither factor is 0: each costs more and loses less than the one before.
        return area / ((last.cost - first.cost) * (first.loss - last.loss))

    @property
    def cost_key(self) -> str:
        """What a point's cost is called in a file, with its unit."""
        # Names such as `weight_bytes` end with their unit already.
        is_said = self.resource.endswith(self.unit)
        return self.resource if is_said else f"{self.resource}_{self.unit}"

    @property
    def loss_key(self) -> str:
        """What a point's loss is called in a file, with its unit."""
        # The unit "of the score" has blanks, which no name of a column should have.
        return f"{self.loss_name}_{self.loss_unit.replace(' ', '_')}"

    def to_json(self) -> str:
        """Hypervolume and points, as ``mpq/report/frontier.schema.json`` describes them."""
        volume = self.hypervolume
        data = {
            "schema_version": schema_versions.FRONTIER,
            "resource": self.resource,
            "unit": self.unit,
            "loss_name": self.loss_name,
            "loss_unit": self.loss_unit,
            # `json.dumps` would write NaN, which is no JSON.
            "hypervolume_share": None if isnan(volume) else volume,
            "is_measured": self.is_measured,
            "spot_check": list(self.spot_check),
            "untrusted_layers": list(self.untrusted),
            "warning": self.warning or None,
            "transforms": list(self.transforms),
            "transforms_unhelped": dict(self.transforms_unhelped),
            "points": [self._point_to_dict(point) for point in self.points],
        }
        return json.dumps(data, indent=1) + "\n"

    def _point_to_dict(self, point: FrontierPoint) -> dict[str, Any]:
        measured = point.measured
        return {
            self.cost_key: point.cost,
            self.loss_key: point.loss,
            "status": point.status.name.lower() if point.status else None,
            "precisions": {name: str(p) for name, p in point.precisions.items()},
            "label": point.label,
            "measured": None if measured is None else measurement_to_dict(measured),
        }

    def all_points(self) -> tuple[FrontierPoint, ...]:
        """The frontier, then the others."""
        return self.points + self.others
