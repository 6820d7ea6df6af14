"""frontier.json, read again: for the page, which is made of saved files alone."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mpq._support import schema_versions
from mpq._support.json_object import json_object, require_version
from mpq._support.schema import read_schema, validate
from mpq.problem.solution import Status
from mpq.quantization.precision import Precision
from mpq.report.frontier import PREDICTED_LOSS, Frontier, FrontierPoint
from mpq.report.stored_measurement import measurement_from_dict


def frontier_from_json(text: str) -> Frontier:
    """The curve of a file, without what stands beside it.

    Raises:
        FileFormatError: If it is no such file.
    """
    data = json_object(text, "frontier")
    require_version(data, "frontier", schema_versions.FRONTIER)
    validate(data, read_schema("mpq.report", "frontier.schema.json"), "frontier")
    empty = Frontier(
        data["resource"],
        data["unit"],
        data.get("loss_unit", "nats"),
        (),
        (),
        data.get("loss_name", PREDICTED_LOSS),
        tuple(data.get("spot_check", ())),
        tuple(data.get("untrusted_layers", ())),
        tuple(data.get("transforms", ())),
        data.get("transforms_unhelped", {}),
    )
    points = (_point_from_dict(point, empty) for point in data["points"])
    return replace(empty, points=tuple(points))


def _point_from_dict(data: Mapping[str, Any], frontier: Frontier) -> FrontierPoint:
    parsed = {text: Precision.parse(text) for text in set(data["precisions"].values())}
    status, measured = data["status"], data.get("measured")
    return FrontierPoint(
        data.get("label", "frontier"),
        float(data[frontier.cost_key]),
        float(data[frontier.loss_key]),
        {name: parsed[text] for name, text in data["precisions"].items()},
        None if status is None else Status[status.upper()],
        None if measured is None else measurement_from_dict(measured),
    )
