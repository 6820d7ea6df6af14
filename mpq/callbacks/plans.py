"""Plans of long work, told to whoever listens."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from mpq._support.events import audience, tell
from mpq._support.phases import Phases
from mpq.callbacks.results import Planned

LONG_S: Final = 2.0
"""Work that is over sooner tells no plan: nobody would have read it."""
PLANNING: Final = "planning"
"""The phase in which a plan is made."""
_WHOLE: Final = "plan"
"""By which an audience knows that work was planned as a whole."""


def is_plan_wanted() -> bool:
    """Whether somebody listens, and what is done here is no part of work that has a plan.

    What counts phases for a result reads no plan.
    """
    listeners = audience()
    if listeners is None or _WHOLE in listeners.busy:
        return False
    return not all(isinstance(each, Phases) for each in listeners.callbacks)


def is_long(seconds: float) -> bool:
    """Whether a plan of it would be read."""
    return seconds >= LONG_S


def tell_plan(
    phases: Mapping[str, float],
    at_most: Mapping[str, float] | None = None,
    besides: Sequence[str] = (),
    calls: str = "",
) -> None:
    """Tells ``Planned``, where one is wanted and the work takes long, or asks a score."""
    limits = {} if at_most is None else dict(at_most)
    seconds = sum(phases.values())
    if is_plan_wanted() and (calls or is_long(seconds + sum(limits.values()))):
        tell(Planned(dict(phases), seconds, tuple(besides), limits, calls))


@contextmanager
def planned_as_whole() -> Iterator[None]:
    """What is done within this block was planned, so that its parts tell no plans of their own."""
    listeners = audience()
    if listeners is None or _WHOLE in listeners.busy:
        yield
        return
    listeners.busy.add(_WHOLE)
    try:
        yield
    finally:
        listeners.busy.discard(_WHOLE)
