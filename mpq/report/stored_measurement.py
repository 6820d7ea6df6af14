"""A measurement as result.json and frontier.json state it."""

from collections.abc import Mapping
from typing import Any

from mpq.network.metrics import METRICS
from mpq.report.measurement import Measurement


def measurement_to_dict(measured: Measurement) -> dict[str, Any]:
    """JSON-ready; without the single examples."""
    return {
        "metric": METRICS.spell(measured.metric),
        "divergence": measured.divergence,
        "accuracy": measured.accuracy,
        "cross_entropy_nats": measured.cross_entropy_nats,
        "num_examples": measured.num_examples,
        "standard_error": measured.standard_error,
        **({} if measured.score is None else {"score": measured.score}),
    }


def measurement_from_dict(data: Mapping[str, Any]) -> Measurement:
    """Inverse of ``measurement_to_dict``."""
    known = {**data, "metric": METRICS.build(data["metric"])}
    return Measurement(**known)
