"""estimators.json: a comparison of estimators, read again for its page."""

from collections.abc import Mapping
from math import inf, nan
from typing import Any

from mpq._support import schema_versions
from mpq._support.json_object import json_object, require_version
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
        _loss(data["max_loss"]),
        _number(data["forward_seconds"]),
        data["num_calibration"],
        data["num_held_out"],
    )


def _trial(data: Mapping[str, Any]) -> Trial:
    known = {"columns": tuple(data["columns"]), "divergence": _loss(data["divergence"])}
    return Trial(**{**data, **known})


def _score(data: Mapping[str, Any]) -> Score:
    known = {
        "predicted": tuple(map(_number, data["predicted"])),
        "solved": tuple(map(_solved, data["solved"])),
        "seconds": _number(data["seconds"]),
        "forward_passes": _number(data["forward_passes"]),
    }
    return Score(**{**data, **known})


def _solved(data: Mapping[str, Any]) -> Solved:
    known = {"predicted": _number(data["predicted"]), "divergence": _loss(data["divergence"])}
    return Solved(**{**data, **known})


def _loss(value: float | None) -> float:
    """Measured: one that JSON has no number for is infinite, as where a probability is 0."""
    return inf if value is None else float(value)


def _number(value: float | None) -> float:
    return nan if value is None else float(value)
