"""Files of ``Problem.to_json`` that an earlier version wrote, in the form of today."""

from typing import Any

from mpq._support import schema_versions
from mpq._support.json_object import quoted, require_keys, require_version
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
    require_version(data, "problem", schema_versions.PROBLEM, oldest=1)
    version = data["schema_version"]
    require_keys(data, "problem", _KEYS if version == 1 else (*_KEYS, "cuts"), HINT)
    if version != 1:
        return data
    budgets: dict[str, dict[str, Any]] = {}
    cuts = []
    for number, old in enumerate(_list(data["budgets"], "budgets")):
        table, limit = _checked(old, number)
        # A plain sum has no "@": its step is empty, and its table keeps the resource's name.
        resource, _, step = table["name"].partition("@")
        # Only cuts were counted in layers: their cells of 1 spell the assignment to differ from,
        # and the limit is how many layers may stay as they were.
        if table["unit"] == "layers":
            columns = [row.index(1.0) if 1.0 in row else -1 for row in table["values"]]
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


def _list(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise FileFormatError(f"not a problem: at {place}: expected a list, got {quoted(value)}")
    return value


def _checked(old: Any, number: int) -> tuple[dict[str, Any], float]:
    """Table and limit of one budget, as far as they are looked at here."""
    what = f"budget (budgets/{number} of a problem of version 1)"
    require_keys(old, what, ("table", "limit"))
    table, limit = old["table"], old["limit"]
    require_keys(table, f"table of a {what}", ("name", "unit", "values"))
    if not isinstance(table["name"], str):
        raise FileFormatError(f"not a {what}: its name is {quoted(table['name'])}")
    for row in _list(table["values"], f"budgets/{number}/table/values"):
        _list(row, f"budgets/{number}/table/values")
    # By type: `true` is the number 1 to Python.
    if type(limit) not in (int, float):
        raise FileFormatError(f"not a {what}: its limit is {quoted(limit)}")
    return table, limit
