"""What trackers of experiments are given of an event: numbers by name, in their order."""

from collections import Counter
from collections.abc import Iterator
from math import isfinite
from typing import final

from mpq._support.events import Ended, Event
from mpq._support.phases import PhaseEnded
from mpq.callbacks.results import Finished, Measured, Solved


def numbers(event: Event) -> dict[str, float]:
    """Name to number, of what is worth a curve or a column; those that are not finite left out."""
    found: dict[str, float | None] = {}
    if isinstance(event, Measured):
        where = event.examples.replace(" ", "_")
        found = {
            f"{where}/loss": event.loss,
            f"{where}/accuracy": event.accuracy,
            f"{where}/score": event.score,
        }
    elif isinstance(event, Solved):
        found = {"solved/loss": event.loss, "solved/seconds": event.seconds}
    elif isinstance(event, PhaseEnded):
        found = {f"seconds/{event.phase.replace(', ', '_').replace(' ', '_')}": event.seconds}
    elif isinstance(event, Finished):
        found = dict(event.metrics)
    return {name: x for name, x in found.items() if x is not None and isfinite(x)}


@final
class Steps:
    """Counts the numbers of each name, from 0 on, until a run ends."""

    def __init__(self) -> None:
        self._counts = Counter[str]()

    def of(self, event: Event) -> Iterator[tuple[str, float, int]]:
        """Name, number and step of what is worth a curve in an event."""
        for name, number in numbers(event).items():
            yield name, number, self._counts[name]
            self._counts[name] += 1
        if isinstance(event, Ended):
            self._counts.clear()
