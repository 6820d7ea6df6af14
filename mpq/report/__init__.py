"""Numbers -> pictures, tables.

Names are loaded when first used: pandas and matplotlib take a second, and a list of devices needs
neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpq.report.estimators import (
        comparison_markdown,
        draw_predictions,
        predictions_table,
        scores_table,
    )
    from mpq.report.pictures import draw_bits, draw_frontier, figure_of, png
    from mpq.report.sections import SECTIONS, Section
    from mpq.report.tables import comparison_table, frontier_table, layer_table, measured_columns

_HOME = {
    "SECTIONS": "sections",
    "Section": "sections",
    "comparison_markdown": "estimators",
    "draw_predictions": "estimators",
    "predictions_table": "estimators",
    "scores_table": "estimators",
    "draw_bits": "pictures",
    "draw_frontier": "pictures",
    "figure_of": "pictures",
    "png": "pictures",
    "comparison_table": "tables",
    "frontier_table": "tables",
    "layer_table": "tables",
    "measured_columns": "tables",
}

__all__ = [
    "SECTIONS",
    "Section",
    "comparison_markdown",
    "comparison_table",
    "draw_bits",
    "draw_frontier",
    "draw_predictions",
    "figure_of",
    "frontier_table",
    "layer_table",
    "measured_columns",
    "png",
    "predictions_table",
    "scores_table",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mpq.report' has no attribute {name!r}")
    return getattr(import_module(f"mpq.report.{_HOME[name]}"), name)
