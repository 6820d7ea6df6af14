"""Being told what happens during long work: one interface, and some listeners.

::

    from mpq.callbacks import JsonLines, Progress

    mpq.search(task, limits, callbacks=[Progress(), JsonLines("run.jsonl")])

Events are frozen dataclasses; a listener of one's own is a class of ``Callback``.
"""

from mpq._support.events import Callback, Ended, Event, Warned
from mpq._support.phases import PhaseBegan, PhaseEnded
from mpq._support.progress import Progressed
from mpq.callbacks.json_lines import JsonLines
from mpq.callbacks.mlflow import MLflow
from mpq.callbacks.progress import Progress
from mpq.callbacks.results import Finished, Measured, Planned, Solved
from mpq.callbacks.tensorboard import TensorBoard

EVENTS: tuple[type[Event], ...] = (
    Planned, PhaseBegan, Progressed, PhaseEnded, Measured, Solved, Warned, Finished, Ended,
)  # fmt: skip
"""Every kind of event."""

__all__ = [
    "EVENTS",
    "Callback",
    "Ended",
    "Event",
    "Finished",
    "JsonLines",
    "MLflow",
    "Measured",
    "PhaseBegan",
    "PhaseEnded",
    "Planned",
    "Progress",
    "Progressed",
    "Solved",
    "TensorBoard",
    "Warned",
]
