"""Parts of a result as JSON."""

from dataclasses import asdict
from math import isnan
from typing import Any

from mpq.network.layer import Layer
from mpq.network.metrics import METRICS
from mpq.report.measurement import ComparisonRow


def layer_to_dict(layer: Layer) -> dict[str, Any]:
    """JSON-ready."""
    found = asdict(layer)
    # Of few layers: files without it are read by earlier versions as well.
    if layer.most_tokens is None:
        del found["most_tokens"]
    return found


def known(value: float) -> float | None:
    """The number, or null: JSON has no ``nan``."""
    return None if isnan(value) else value


def row_to_dict(row: ComparisonRow) -> dict[str, Any]:
    """JSON-ready."""
    measured = row.measured
    return {
        "label": row.label,
        "predicted_loss": row.predicted_loss,
        "measured": {
            "metric": METRICS.spell(measured.metric),
            "divergence": measured.divergence,
            "accuracy": measured.accuracy,
            "cross_entropy_nats": measured.cross_entropy_nats,
            "num_examples": measured.num_examples,
        },
        "costs": {column: known(cost) for column, cost in row.costs.items()},
    }
