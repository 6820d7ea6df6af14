"""estimators.json: a comparison of estimators, read again for its page."""

from collections.abc import Mapping
from typing import Any

from mpq._support import schema_versions
from mpq._support.json_object import (
    json_object,
    measured_loss,
    number_or_nan,
    require_version,
)
from mpq._support.schema import read_schema, validate
from mpq.errors import FileFormatError
from mpq.report.estimators import EstimatorComparison
from mpq.report.trials import Score, Solved, Trial


def estimators_from_json(text: str) -> EstimatorComparison:
    """The comparison of a file; how it was made is told by another one.

    Raises:
        FileFormatError: If it is no such file.
    """
    data = json_object(text, "comparison of estimators")
    require_version(data, "comparison of estimators", schema_versions.ESTIMATORS)
    validate(data, read_schema("mpq.report", "estimators.schema.json"), "comparison of estimators")
    trials = tuple(_trial(trial) for trial in data["trials"])
    scores = tuple(_score(score) for score in data["scores"])
    limits = {trial.limit for trial in trials}
    for score in scores:
        # The page shows each at every limit: schemas say nothing across lists.
        if not score.error and {solved.limit for solved in score.solved} != limits:
            raise FileFormatError(
                f"not a comparison of estimators: {score.estimator} is not solved at the limits of "
                f"the trials, {', '.join(sorted(limits))}"
            )
    return EstimatorComparison(
        trials,
        scores,
        data["unit"],
        measured_loss(data["max_loss"]),
        number_or_nan(data["forward_seconds"]),
        data["num_calibration"],
        data["num_held_out"],
    )


def _trial(data: Mapping[str, Any]) -> Trial:
    known = {"columns": tuple(data["columns"]), "divergence": measured_loss(data["divergence"])}
    return Trial(**{**data, **known})


def _score(data: Mapping[str, Any]) -> Score:
    known = {
        "predicted": tuple(map(number_or_nan, data["predicted"])),
        "solved": tuple(map(_solved, data["solved"])),
        "seconds": number_or_nan(data["seconds"]),
        "forward_passes": number_or_nan(data["forward_passes"]),
    }
    return Score(**{**data, **known})


def _solved(data: Mapping[str, Any]) -> Solved:
    known = {
        "predicted": number_or_nan(data["predicted"]),
        "divergence": measured_loss(data["divergence"]),
    }
    return Solved(**{**data, **known})
