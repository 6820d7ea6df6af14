"""What trackers of experiments are given of an event: numbers by name."""

from math import isfinite

from mpq._support.events import Event
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
