"""What the page's script needs to draw, to choose a point, and to write its file."""

from collections.abc import Mapping
from typing import Any

from mpq._support.names import shortened, visible
from mpq.report.measurement import Measurement
from mpq.report.page.comparison import Comparison
from mpq.report.page.facts import Facts, PointFacts
from mpq.report.page.layers import LayerFacts

_DIGITS = 5
"""Of every layer's numbers: there are as many as layers times points."""


def script_data(facts: Facts) -> dict[str, Any]:
    """JSON-ready."""
    return {
        "run": facts.run_id,
        "lossUnit": facts.loss_unit,
        "lossName": facts.loss_name,
        "metric": facts.metric,
        "metricUnit": facts.metric_unit,
        "axis": facts.axis,
        "answer": facts.answer,
        "resources": [
            {"name": x.name, "unit": x.unit, "shown": x.is_shown} for x in facts.resources
        ],
        "budgets": [
            {"resource": x.resource, "unit": x.unit, "limit": x.limit, "used": x.used}
            for x in facts.budgets
        ],
        "networks": [
            {
                "label": x.label,
                "kind": x.kind,
                "predicted": x.predicted,
                "costs": dict(x.costs),
                "within": x.is_within,
                **_measured(x.measured),
            }
            for x in facts.networks
        ],
        "points": [{**_place(x), **_point(x)} for x in facts.points],
        "layers": [_layer(x) for x in facts.layers],
        "checks": [
            {
                "what": shortened(visible(x.what)),
                "kind": x.kind,
                "predicted": x.predicted,
                "measured": x.measured,
                "error": x.standard_error,
            }
            for x in facts.checks
        ],
        "file": facts.assignment,
    }


def _measured(measured: Measurement | None) -> dict[str, Any]:
    if measured is None:
        return {"measured": None, "error": None, "accuracy": None, "accuracyError": None}
    return {
        "measured": measured.divergence,
        "error": measured.standard_error,
        "accuracy": measured.accuracy,
        "accuracyError": measured.accuracy_error,
    }


def comparing_data(comparison: Comparison) -> dict[str, Any]:
    """JSON-ready, of several results: their points alone."""
    first = next(iter(comparison.runs.values()))
    resources = {x.name: x.unit for facts in comparison.runs.values() for x in facts.resources}
    return {
        "lossUnit": first.loss_unit,
        "lossName": first.loss_name,
        "metricUnit": first.metric_unit,
        "axis": first.axis,
        "resources": [{"name": name, "unit": unit} for name, unit in resources.items()],
        "points": [
            {"run": shortened(visible(name)), **_place(point)}
            for name, facts in comparison.runs.items()
            for point in facts.points
        ],
    }


def _place(point: PointFacts) -> dict[str, Any]:
    return {
        "label": point.label,
        "kind": point.kind,
        "loss": point.loss,
        "costs": dict(point.costs),
        **_measured(point.measured),
    }


def _point(point: PointFacts) -> Mapping[str, Any]:
    return {
        "choices": list(point.choices),
        "status": point.status,
        "within": point.is_within,
        "pairs": [[shortened(visible(n)) for n in (x.first, x.second)] + [x.loss]
                  for x in point.pairs],
        "command": point.command,
        "metadata": dict(point.metadata),
        "whyNoFile": point.why_no_file,
        "fileNote": point.file_note,
    }  # fmt: skip


def _layer(layer: LayerFacts) -> Mapping[str, Any]:
    return {
        "name": shortened(visible(layer.name)),
        "choices": [
            {
                "p": x.precision,
                "w": x.weight_bits,
                "a": x.input_bits,
                "loss": rounded(x.loss),
                "costs": list(map(rounded, x.costs)),
                "parts": x.parts,
            }
            for x in layer.choices
        ],
    }


def rounded(value: float | None) -> float | None:
    """To as many digits as a picture shows."""
    return None if value is None else float(f"{value:.{_DIGITS}g}")
