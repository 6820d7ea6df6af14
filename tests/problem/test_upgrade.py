"""Problems of schema version 1: what they become, and what is refused before it is touched."""

import json
from pathlib import Path
from typing import Any

import pytest

from mpq.errors import FileFormatError
from mpq.problem.upgrade import upgraded


def written() -> Any:
    """As that version wrote it: a sum, a maximum over two steps, a cut."""
    path = Path(__file__).parent / "data" / "problem_v1.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_version_2_is_left_as_it_is() -> None:
    """The very same object."""
    data = upgraded(written())

    assert data["schema_version"] == 2
    assert upgraded(data) is data


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        (0, "make it again with this mpq"),
        (3, "update mpq"),
        (True, "update mpq"),
        ("1", "update mpq"),
        (None, "update mpq"),
    ],
)
def test_other_versions_are_refused(version: Any, advice: str) -> None:
    """With those that are read, and what helps: an update makes nothing older readable."""
    with pytest.raises(FileFormatError, match=f"this mpq reads versions 1 to 2: {advice}"):
        upgraded(written() | {"schema_version": version})


@pytest.mark.parametrize("key", ["loss", "budgets", "ties", "fixed", "candidates", "cuts"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_missing_key_is_named(key: str, version: int) -> None:
    """Version 1 had no cuts."""
    data = written() if version == 1 else upgraded(written())
    data.pop(key, None)

    if (key, version) == ("cuts", 1):
        assert len(upgraded(data)["cuts"]) == 1
        return
    with pytest.raises(FileFormatError, match=f"^not a problem: .*; it has no {key}: give the"):
        upgraded(data)


def distance(cells: list[list[float]], limit: float) -> Any:
    """A budget in layers, as version 1 spelled a cut."""
    return {"table": {"name": "distance", "unit": "layers", "values": cells}, "limit": limit}


def test_cells_of_1_are_the_assignment_to_differ_from() -> None:
    """The limit is how many layers may stay; a row without a 1 is no column, which is refused."""
    data = written()
    data["budgets"] = [
        distance([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], 1.0),
        distance([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], 2.0),
    ]

    found = upgraded(data)

    assert found["budgets"] == []
    assert found["cuts"] == [
        {"columns": [1, 2, 0], "num_layers": 2},
        {"columns": [1, -1, 0], "num_layers": 1},
    ]


def test_steps_are_tables_of_one_budget() -> None:
    """In the order of the file, each called like its step; a sum is called like its resource."""
    data = written()
    table = {"unit": "bytes", "values": []}
    names = ("ram@a", "latency", "ram@b@c")
    data["budgets"] = [{"table": table | {"name": name}, "limit": 7} for name in names]

    found = upgraded(data)["budgets"]

    assert [(b["resource"], b["limit"], [t["name"] for t in b["tables"]]) for b in found] == [
        ("ram", 7, ["a", "b@c"]), ("latency", 7, ["latency"]),
    ]  # fmt: skip


TABLE = {"name": "latency", "unit": "seconds", "values": []}
WHAT = "a budget (budgets/1 of a problem of version 1)"


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"table": TABLE, "limit": True}, f"not {WHAT}: its limit is true"),
        ({"table": TABLE, "limit": "5"}, f"not {WHAT}: its limit is '5'"),
        ({"table": TABLE | {"name": 7}, "limit": 5}, f"not {WHAT}: its name is 7"),
        (
            {"table": TABLE | {"values": 7}, "limit": 5},
            "not a problem: at budgets/1/table/values: expected a list, got 7",
        ),
        (
            {"table": TABLE | {"values": [[], None]}, "limit": 5},
            "not a problem: at budgets/1/table/values: expected a list, got null",
        ),
        (
            {"table": TABLE},
            f"not {WHAT}: expected a JSON object with the keys table, limit; it has no limit",
        ),
        (
            {"table": {"name": "latency"}, "limit": 5},
            f"not a table of {WHAT}: expected a JSON object with the keys name, unit, values; it "
            "has no unit, values",
        ),
    ],
)
def test_a_broken_budget_is_refused_by_its_place(budget: Any, message: str) -> None:
    """Before anything is made of it."""
    data = written()
    data["budgets"] = [{"table": TABLE, "limit": 5}, budget]

    with pytest.raises(FileFormatError) as caught:
        upgraded(data)

    assert str(caught.value) == message


def test_budgets_are_a_list() -> None:
    """Whatever else is there."""
    with pytest.raises(FileFormatError, match="^not a problem: at budgets: expected a list, got 7"):
        upgraded(written() | {"budgets": 7})
