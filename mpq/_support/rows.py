"""Rows of a long measurement by name: in memory, or in a ``Journal`` on disk."""

from collections.abc import Callable
from typing import Any, Protocol, final


class Rows(Protocol):
    """Where measured rows are: whoever measures need not know whether they outlive the process."""

    def __contains__(self, name: str) -> bool:
        """Whether the row was measured already."""

    def __getitem__(self, name: str) -> Any:
        """The row of that name."""

    def add(self, name: str, row: Any) -> None:
        """Keeps a row: what ``json`` can write."""


@final
class Memory:
    """Rows that end with the process."""

    def __init__(self) -> None:
        self.all: dict[str, Any] = {}
        """Name to row."""

    def __contains__(self, name: str) -> bool:
        return name in self.all

    def __getitem__(self, name: str) -> Any:
        return self.all[name]

    def add(self, name: str, row: Any) -> None:
        """Keeps a row until the process ends."""
        self.all[name] = row


def remember(rows: Rows, name: str, make: Callable[[], Any]) -> Any:
    """The row of that name, measured only where it is not there yet."""
    if name not in rows:
        rows.add(name, make())
    # A row that was just measured is as `make` returned it, one from a journal went through JSON:
    # its tuples are lists, so that callers take either.
    return rows[name]
