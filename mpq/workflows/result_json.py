"""result.json and its parts: records as JSON-ready numbers and names."""

from collections.abc import Mapping
from dataclasses import asdict
from math import isnan
from typing import Any

from mpq._support import schema_versions
from mpq.network.layer import Layer
from mpq.problem.stored_ranges import range_to_dict
from mpq.quantization.range_method import ActivationRange
from mpq.report.measurement import ComparisonRow
from mpq.report.stored_measurement import measurement_to_dict
from mpq.workflows.searched import Searched


def layer_to_dict(layer: Layer) -> dict[str, Any]:
    """A layer."""
    found, of_caches = asdict(layer), ("most_tokens", "query_heads")
    # Of few layers: files without them are read by earlier versions as well.
    return {key: x for key, x in found.items() if x or key not in of_caches}


def known_number(value: float) -> float | None:
    """JSON has no ``nan``."""
    return None if isnan(value) else value


def row_to_dict(row: ComparisonRow) -> dict[str, Any]:
    """A row of the comparison."""
    return {
        "label": row.label,
        "predicted_loss": row.predicted_loss,
        "measured": measurement_to_dict(row.measured),
        "costs": {column: known_number(cost) for column, cost in row.costs.items()},
    }


def ranges_to_dict(ranges: Mapping[str, Mapping[str, ActivationRange]]) -> dict[str, Any]:
    """Calibrated ranges by layer and format."""
    return {
        name: {spelling: range_to_dict(found) for spelling, found in by_format.items()}
        for name, by_format in ranges.items()
    }


def result_to_dict(result: Searched) -> dict[str, Any]:
    """All that is neither in problem.json nor in assignment.json; ``nan`` is null."""
    solution = result.solution
    return {
        "schema_version": schema_versions.RESULT,
        "solution": {
            # ``mpq.load`` looks the member up by its name; the sentence may be reworded.
            "status": solution.status.name.lower(),
            "columns": result.columns.tolist(),
            "loss": solution.loss,
            "bound": solution.bound,
            "solver": solution.solver,
            "seconds": known_number(solution.seconds),
            "why": solution.why,
        },
        "provenance": asdict(result.provenance),
        "comparisons": [row_to_dict(row) for row in result.comparisons],
        "layers": [layer_to_dict(layer) for layer in result.layers],
        "tables": [table.to_dict() for table in result.tables],
        "half_widths": [table.to_dict() for table in result.half_widths],
        "ranges": ranges_to_dict(result.ranges),
        "safeguard": None if result.safeguard is None else asdict(result.safeguard),
        "coverage": None if result.coverage is None else asdict(result.coverage),
        "spot_check": None if result.spot_check is None else asdict(result.spot_check),
        "steps": None if result.steps is None else result.steps.to_dict(),
        "trials": [{"columns": c.tolist(), "loss": loss} for c, loss in result.trials],
    }
