"""Numbers -> pictures, tables."""

from mpq.report.pictures import draw_bits, draw_frontier, png
from mpq.report.tables import comparison_table, frontier_table, layer_table, measured_columns

__all__ = [
    "comparison_table",
    "draw_bits",
    "draw_frontier",
    "frontier_table",
    "layer_table",
    "measured_columns",
    "png",
]
