"""What a command spends its time on: seconds and memory of its phases, where somebody asks."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter
from typing import final


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
class Phases:
    """Phases in the order in which they began; of one within another the outer one counts."""

    spent: dict[str, Spent] = field(default_factory=dict)
    is_busy: bool = False

    @property
    def in_order(self) -> tuple[Spent, ...]:
        """What has ended so far."""
        return tuple(self.spent.values())

    def add(self, name: str, seconds: float) -> None:
        """Counts a phase that has ended."""
        before = self.spent[name].seconds if name in self.spent else 0.0
        self.spent[name] = Spent(name, before + seconds, _peak_bytes())


# Of the context, as progress is: threads of the user's are not counted.
_RECORD: ContextVar[Phases | None] = ContextVar("phases", default=None)


@contextmanager
def recorded_phases() -> Iterator[Phases]:
    """Within this block phases are counted."""
    phases = Phases()
    token = _RECORD.set(phases)
    try:
        yield phases
    finally:
        _RECORD.reset(token)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """What is done within this block is one phase, if somebody counts."""
    phases = _RECORD.get()
    if phases is None or phases.is_busy:
        yield
        return
    phases.is_busy, start = True, perf_counter()
    try:
        yield
    finally:
        phases.is_busy = False
        phases.add(name, perf_counter() - start)


def _peak_bytes() -> int | None:
    try:
        import resource
    except ImportError:  # Windows has none
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024
