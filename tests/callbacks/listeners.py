"""Listeners for tests: one that keeps what it is told, and one that stands for MLflow."""

from collections.abc import Mapping
from typing import Any, final

from mpq.callbacks import Callback, Event


@final
class Kept(Callback):
    """Keeps every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def on(self, event: Event) -> None:
        """See ``Callback.on``."""
        self.events.append(event)

    def of(self, kind: type[Event]) -> list[Any]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]


@final
class Tracked:
    """Has of ``mlflow`` what the callback uses."""

    def __init__(self) -> None:
        self.params: dict[str, Any] = {}
        self.metrics: dict[str, list[tuple[int, float]]] = {}

    def log_params(self, params: Mapping[str, Any]) -> None:
        """As of ``mlflow``."""
        self.params.update(params)

    def log_metric(self, key: str, value: float, step: int) -> None:
        """As of ``mlflow``."""
        self.metrics.setdefault(key, []).append((step, value))
