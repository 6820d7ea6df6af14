"""What long work spends its time on: seconds and memory of its phases, where somebody asks."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, ClassVar, Final, final

from mpq._support.events import Callback, Event, audience, listening, tell

_PHASE: Final = "phase"
"""By which an audience knows that one is under way."""


@final
@dataclass(frozen=True)
class PhaseBegan(Event):
    """A phase of the work begins; inside of one no other is told.

    Args:
        phase: What is done in it.
    """

    phase: str
    name: ClassVar[str] = "phase_began"

    def to_dict(self) -> dict[str, Any]:
        """See ``Event.to_dict``."""
        return {"phase": self.phase}


@final
@dataclass(frozen=True)
class PhaseEnded(Event):
    """A phase is done; one that failed or was interrupted does not end so.

    Args:
        phase: What was done in it.
        seconds: How long, this time.
    """

    phase: str
    seconds: float
    name: ClassVar[str] = "phase_ended"

    def to_dict(self) -> dict[str, Any]:
        """See ``Event.to_dict``."""
        return {"phase": self.phase, "seconds": self.seconds}


@final
@dataclass(frozen=True)
class Spent:
    """One phase.

    Args:
        name: What was done.
        seconds: How long, all times together where it was done several times.
        peak_bytes: The most that the process held until its end; ``None``: the system does not
            tell.
    """

    name: str
    seconds: float
    peak_bytes: int | None


@final
@dataclass(eq=False)
class Phases(Callback):
    """Counts finished phases, in the order in which they first ended."""

    spent: dict[str, Spent] = field(default_factory=dict)

    @property
    def in_order(self) -> tuple[Spent, ...]:
        """What has ended so far."""
        return tuple(self.spent.values())

    def on(self, event: Event) -> None:
        """See ``Callback.on``."""
        if isinstance(event, PhaseEnded):
            known = self.spent.get(event.phase)
            seconds = event.seconds + (0.0 if known is None else known.seconds)
            self.spent[event.phase] = Spent(event.phase, seconds, _peak_bytes())


@contextmanager
def recorded_phases() -> Iterator[Phases]:
    """Within this block phases are counted."""
    phases = Phases()
    with listening([phases]):
        yield phases


@contextmanager
def phase(name: str) -> Iterator[None]:
    """What is done within this block is one phase, if somebody listens."""
    listeners = audience()
    if listeners is None or _PHASE in listeners.busy:
        yield
        return
    listeners.busy.add(_PHASE)
    start = perf_counter()
    try:
        tell(PhaseBegan(name))
        yield
        tell(PhaseEnded(name, perf_counter() - start))
    finally:
        listeners.busy.discard(_PHASE)


def _peak_bytes() -> int | None:
    try:
        import resource
    except ImportError:  # Windows has none
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024
