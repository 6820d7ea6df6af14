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
    """Follows a plan.

    What is left of the plan is longer, or shorter, by the share by which the phases that have ended
    took longer than planned: the machine may be busier than in the first batch. One that took next
    to nothing was found in a cache, and says nothing of the others. Work of the phase that is under
    way knows its own time left, which counts where it is longer.
    """

    def __init__(self) -> None:
        self._planned: dict[str, float] = {}
        self._taken: dict[str, float] = {}
        self._began: tuple[str, float] | None = None
        self._own_s = 0.0

    def take(self, event: Event) -> None:
        """Takes note of a plan, and of phases that begin and end."""
        if isinstance(event, Planned):
            self._planned = dict(event.phases)
            self._taken.clear()
        elif isinstance(event, PhaseBegan):
            self._began, self._own_s = (event.phase, perf_counter()), 0.0
        elif isinstance(event, PhaseEnded):
            self._began = None
            self._taken[event.phase] = self._taken.get(event.phase, 0.0) + event.seconds
        elif isinstance(event, Progressed):
            self._own_s = event.seconds_left or 0.0

    @property
    def seconds(self) -> float | None:
        """Until all is done; ``None``: nothing was planned."""
        if not self._planned:
            return None
        ended = [x for x in self._planned if self._taken.get(x, 0.0) > _CACHED * self._planned[x]]
        planned_s = sum(self._planned[name] for name in ended)
        pace = sum(self._taken[name] for name in ended) / planned_s if planned_s else 1.0
        left_s = sum(pace * s for name, s in self._planned.items() if name not in self._taken)
        phase, since = self._began or ("", 0.0)
        if phase not in self._planned or phase in self._taken:
            return left_s
        phase_s = pace * self._planned[phase]
        still_s = max(phase_s - (perf_counter() - since), self._own_s, 0.0)
        return left_s - phase_s + still_s
