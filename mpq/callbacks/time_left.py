"""How long planned work still takes, corrected by what its phases took."""

from time import perf_counter
from typing import Final, final

from mpq._support.events import Event
from mpq._support.phases import PhaseBegan, PhaseEnded
from mpq._support.progress import Progressed
from mpq.callbacks.results import Planned

_CACHED: Final = 0.1
"""Share of its planned time below which a phase was not worked at."""


@final
class TimeLeft:
    """Follows a plan, the one that was told last.

    What is left of the plan is longer, or shorter, by the share by which the phases that have ended
    took longer than planned: the machine may be busier than in the first batch. One that took next
    to nothing was found in a cache, and says nothing of the others. Work of the phase that is under
    way knows its own time left, which counts where it is longer; work that was planned by its own
    name knows best.
    """

    def __init__(self) -> None:
        self._planned: dict[str, float] = {}
        self._taken: dict[str, float] = {}
        self._phase = ""
        # Of what is under way: when it began, and its own time left.
        self._began: dict[str, float] = {}
        self._own_s: dict[str, float] = {}

    def take(self, event: Event) -> None:
        """Takes note of a plan, and of phases and work that begin and end."""
        if isinstance(event, Planned):
            self._planned = dict(event.phases)
            self._taken.clear()
            # What is to come of them counts from now on.
            self._began = dict.fromkeys(self._began, perf_counter())
        elif isinstance(event, PhaseBegan):
            self._phase = event.phase
            self._begin(event.phase)
        elif isinstance(event, PhaseEnded):
            self._phase = ""
            self._end(event.phase, event.seconds)
        elif isinstance(event, Progressed):
            self._progressed(event)

    def _progressed(self, event: Progressed) -> None:
        if event.work == self._phase or event.work not in self._planned:
            self._own_s[self._phase] = event.seconds_left or 0.0
            return
        if event.work not in self._began:
            self._begin(event.work)
        if event.seconds_left is not None:
            self._own_s[event.work] = event.seconds_left
        if event.done == event.total:
            self._end(event.work, perf_counter() - self._began[event.work])

    def _begin(self, name: str) -> None:
        self._began[name] = perf_counter()
        self._own_s.pop(name, None)

    def _end(self, name: str, seconds: float) -> None:
        self._began.pop(name, None)
        self._taken[name] = self._taken.get(name, 0.0) + seconds

    @property
    def seconds(self) -> float | None:
        """Until all is done; ``None``: nothing was planned."""
        if not self._planned:
            return None
        ended = [x for x in self._planned if self._taken.get(x, 0.0) > _CACHED * self._planned[x]]
        planned_s = sum(self._planned[name] for name in ended)
        pace = sum(self._taken[name] for name in ended) / planned_s if planned_s else 1.0
        return sum(
            self._still_s(name, pace * planned)
            for name, planned in self._planned.items()
            if name not in self._taken
        )

    def _still_s(self, name: str, planned_s: float) -> float:
        """Of what has not ended."""
        if name not in self._began:
            return planned_s
        own_s = self._own_s.get(name)
        if name != self._phase and own_s is not None:
            return own_s
        return max(planned_s - (perf_counter() - self._began[name]), own_s or 0.0, 0.0)
