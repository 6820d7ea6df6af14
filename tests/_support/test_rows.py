"""Rows in memory are rows as a journal has them: measured once, and found again."""

from pathlib import Path

import pytest

from mpq._support.journal import Journal
from mpq._support.rows import Memory, Rows, remember


@pytest.mark.parametrize("is_on_disk", [False, True])
def test_a_row_is_measured_once(is_on_disk: bool, tmp_path: Path) -> None:
    """Another name is another row."""
    rows: Rows = Journal(tmp_path / "journal", {}) if is_on_disk else Memory()
    measured: list[str] = []

    def measure(name: str) -> str:
        measured.append(name)
        return name.upper()

    found = [remember(rows, name, lambda name=name: measure(name)) for name in "abab"]  # type: ignore[misc]

    assert found == ["A", "B", "A", "B"]
    assert measured == ["a", "b"]
    assert "a" in rows
    assert "c" not in rows


def test_two_memories_share_nothing() -> None:
    """Each is of one measurement."""
    first, second = Memory(), Memory()

    first.add("a", 1)

    assert "a" not in second
