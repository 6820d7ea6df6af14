"""Files of ``Problem.to_json`` that an earlier version wrote, in the form of today."""

from typing import Any

from mpq._support import schema_versions
from mpq._support.json_object import require_keys
from mpq.errors import FileFormatError

HINT = ": give the problem.json that `mpq search` or Problem.to_json wrote"
_KEYS = ("loss", "budgets", "ties", "fixed", "candidates")


def upgraded(data: dict[str, Any]) -> dict[str, Any]:
    """Schema version 1 as version 2, which is left as it is.

    Version 1 had a budget for every step of a maximum, its table called ``<resource>@<step>``, and
    a budget in the unit ``layers`` for every assignment to differ from.

    Raises:
        FileFormatError: If it is of a later version, lacks a key, or the steps of one resource
            have different limits.
    """
    version = data["schema_version"]
    if version not in (1, schema_versions.PROBLEM):
        raise FileFormatError(
            f"problem of schema version {version}; this mpq reads versions 1 to "
            f"{schema_versions.PROBLEM}: update mpq"
        )
    require_keys(data, "problem", _KEYS if version == 1 else (*_KEYS, "cuts"), HINT)
    if version != 1:
        return data
    budgets: dict[str, dict[str, Any]] = {}
    cuts = []
    for old in data["budgets"]:
        table, limit = old["table"], float(old["limit"])
        # A plain sum has no "@": its step is empty, and its table keeps the resource's name.
        resource, _, step = table["name"].partition("@")
        # Only cuts were counted in layers: their cells of 1 spell the assignment to differ from,
        # and the limit is how many layers may stay as they were.
        if table["unit"] == "layers":
            columns = [row.index(1.0) for row in table["values"]]
            cuts.append({"columns": columns, "num_layers": round(len(columns) - limit)})
            continue
        # A dict keeps the order of the file, which counts: by default frontiers are over the first.
        budget = budgets.setdefault(resource, {"resource": resource, "limit": limit, "tables": []})
        # Exact comparison will do: JSON keeps every bit of a float.
        if budget["limit"] != limit:
            raise FileFormatError(
                f"{resource} has the limits {budget['limit']} and {limit} in different steps; a "
                "maximum has one"
            )
        budget["tables"].append({**table, "name": step or resource})
    return {**data, "schema_version": 2, "budgets": list(budgets.values()), "cuts": cuts}
