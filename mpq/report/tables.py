"""Numbers as tables, with the unit in every column's name."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from mpq.network.layer import Layer
from mpq.problem.cost_table import CostTable
from mpq.quantization.precision import Precision

if TYPE_CHECKING:
    from mpq.report.frontier import Frontier
    from mpq.report.measurement import ComparisonRow, Measurement


def layer_table(
    layers: Sequence[Layer],
    precisions: Mapping[str, Precision],
    tables: Sequence[CostTable],
    columns: npt.NDArray[np.intp],
    half_widths: Sequence[CostTable] = (),
) -> pd.DataFrame:
    """One row per layer, with each table's cell and its share of what the network costs.

    What it costs besides its layers and between them is in the whole, so that shares add up to
    less than 1 where there is any.

    Args:
        layers: ``L`` layers, in the tables' order.
        precisions: Layer name to the precision chosen for it.
        tables: ``[L, B]`` each: the loss, then resources.
        columns: ``[L]`` columns that were chosen.
        half_widths: ``[L, B]`` each: of 95 % intervals, where a resource has them.
    """
    # Beside `columns` as second index it picks one cell per layer.
    rows = np.arange(len(columns))
    frame = pd.DataFrame(
        {
            "layer": [layer.name for layer in layers],
            "kind": [_kind(layer) for layer in layers],
            "weights": [layer.num_weights for layer in layers],
            "macs": [layer.macs for layer in layers],
            "precision": [str(precisions[layer.name]) for layer in layers],
        }
    )
    for position, table in enumerate(tables):
        cells = table.values[rows, columns]
        # The loss comes first; it is called by what it is, not by the estimator that made it.
        name = f"predicted_loss_{table.unit}" if position == 0 else table.column
        frame[name] = cells
        share = "predicted_loss" if position == 0 else table.name
        whole = table.total(columns)
        # Where everything costs 0, shares are 0 too: 0 / 0 would be nan, with a warning of numpy.
        frame[f"{share}_share"] = cells / whole if whole else np.zeros(len(cells))
    for table in half_widths:
        frame[f"{table.name}_half_width_{table.unit}"] = table.values[rows, columns]
    return frame


def _kind(layer: Layer) -> str:
    if layer.groups == 1:
        return layer.kind
    return f"{layer.kind}/{layer.groups}"


def comparison_table(rows: "Sequence[ComparisonRow]", loss_unit: str) -> pd.DataFrame:
    """One row per network, predicted and measured."""
    return pd.DataFrame(
        [
            {
                "network": row.label,
                f"predicted_loss_{loss_unit}": row.predicted_loss,
                **measured_columns(row.measured),
                **row.costs,
            }
            for row in rows
        ]
    )


def measured_columns(measured: "Measurement") -> dict[str, float | None]:
    """Columns of a measurement; empty cells where there were no targets."""
    scored = {} if measured.score is None else {"measured_score": measured.score}
    return {
        f"measured_{measured.quantity}": measured.divergence,
        "measured_accuracy": measured.accuracy,
        "measured_cross_entropy_nats": measured.cross_entropy_nats,
        **scored,
    }


def frontier_table(frontier: "Frontier") -> pd.DataFrame:
    """One row per point; precisions as ``layer=precision`` separated by blanks."""
    # Points that were not measured need the same columns, empty: pandas puts columns in the order
    # in which rows bring them.
    found = (measured_columns(p.measured) for p in frontier.all_points() if p.measured)
    unmeasured: dict[str, float | None] = dict.fromkeys(next(found, {}))
    return pd.DataFrame(
        [
            {
                "point": point.label,
                frontier.cost_key: point.cost,
                frontier.loss_key: point.loss,
                **(measured_columns(point.measured) if point.measured else unmeasured),
                "meets_other_budgets": point.meets_others,
                "status": point.status.name.lower() if point.status else "",
                "precisions": " ".join(f"{n}={p}" for n, p in point.precisions.items()),
            }
            for point in frontier.all_points()
        ]
    )
