"""Numbers -> pictures, tables."""

from mpq.report.agreement import (
    comparison_markdown,
    draw_predictions,
    predictions_table,
    scores_table,
)
from mpq.report.pictures import draw_bits, draw_frontier, png
from mpq.report.tables import comparison_table, frontier_table, layer_table, measured_columns

__all__ = [
    "comparison_markdown",
    "comparison_table",
    "draw_bits",
    "draw_frontier",
    "draw_predictions",
    "frontier_table",
    "layer_table",
    "measured_columns",
    "png",
    "predictions_table",
    "scores_table",
]
