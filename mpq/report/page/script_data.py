"""What the page's script needs to draw, to choose a point, and to write its file."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from mpq._support.names import shortened, visible
from mpq.report.measurement import Measurement
from mpq.report.page.comparison import Comparison
from mpq.report.page.facts import Facts, PointFacts
from mpq.report.page.layers import LayerFacts
from mpq.report.page.numbers import rounded


def script_data(facts: Facts) -> dict[str, Any]:
    """JSON-ready."""
    return {
        "run": facts.run_id,
        "lossUnit": facts.loss_unit,
        "pointsName": facts.points_name,
        "pointsUnit": facts.points_unit,
        "metric": facts.metric,
        "metricUnit": facts.metric_unit,
        **_score(facts.score, facts.higher_score_is_better),
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
                "keeps": x.keeps_rules,
                **_measured(x.measured),
            }
            for x in facts.networks
        ],
        "points": [{**_place(x), **_point(x)} for x in facts.points],
        "layers": _layers(facts.layers),
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
        keys = ("measured", "error", "accuracy", "accuracyError", "score")
        return dict.fromkeys(keys)
    return {
        "measured": measured.divergence,
        "error": measured.standard_error,
        "accuracy": measured.accuracy,
        "accuracyError": measured.accuracy_error,
        "score": measured.score,
    }


def _score(name: str, higher_is_better: bool | None) -> dict[str, Any]:
    """How the user's own score is called, and which way is better."""
    return {
        "scoreName": shortened(visible(name)),
        "higherScoreIsBetter": higher_is_better,
    }


def comparing_data(comparison: Comparison) -> dict[str, Any]:
    """JSON-ready, of several results: their points alone."""
    first, judges = next(iter(comparison.runs.values())), comparison.judges
    # Scores of several judges have no name in common, and no way that is better.
    judge = judges[0] if len(judges) == 1 else ("", None)
    resources = {x.name: x.unit for facts in comparison.runs.values() for x in facts.resources}
    return {
        # Both words would be longer than the picture is high; the points have theirs.
        "pointsName": comparison.points_names[0] if len(comparison.points_names) == 1 else "loss",
        "pointsUnit": " or ".join(comparison.points_units),
        "metricUnit": " or ".join(comparison.metric_units),
        **_score(*judge),
        "axis": first.axis,
        "resources": [{"name": name, "unit": unit} for name, unit in resources.items()],
        "points": [
            {
                "run": shortened(visible(name)),
                "lossName": facts.points_name,
                "lossUnit": facts.points_unit,
                "metricUnit": facts.metric_unit,
                **_place(point),
            }
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
        "whyNoCommand": point.why_no_command,
        "metadata": dict(point.metadata),
        "whyNoFile": point.why_no_file,
        "fileNote": point.file_note,
    }  # fmt: skip


def _layers(layers: Sequence[LayerFacts]) -> dict[str, Any]:
    """By columns, as thousands of objects with the same keys would be most of the page.

    ``precisions`` has each one once; of every layer ``choices`` are places in it.
    """
    kinds: dict[tuple[str, float | None, float, str], int] = {}
    choices = [
        [
            kinds.setdefault((x.precision, x.weight_bits, x.input_bits, x.parts), len(kinds))
            for x in layer.choices
        ]
        for layer in layers
    ]
    return {
        "names": [shortened(visible(layer.name)) for layer in layers],
        "precisions": [{"p": p, "w": w, "a": a, "parts": parts} for p, w, a, parts in kinds],
        "choices": choices,
        "losses": [[shortest(x.loss) for x in layer.choices] for layer in layers],
        "costs": [[list(map(shortest, x.costs)) for x in layer.choices] for layer in layers],
    }


def shortest(value: float | None) -> float | int | None:
    """Rounded, a whole number without its point: as JSON, 544.0 is longer than 544."""
    if value is None or not isfinite(value):
        return None
    found = rounded(value)
    return int(found) if found.is_integer() else found
