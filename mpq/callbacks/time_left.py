"""How long planned work still takes, corrected by what its phases took."""

from time import perf_counter
from typing import final

from mpq._support.events import Event
from mpq._support.phases import PhaseBegan, PhaseEnded
from mpq.callbacks.results import Planned


@final
class TimeLeft:
    """Follows a plan.

    What is left of the plan is longer, or shorter, by the share by which the phases that have ended
    took longer than planned: the machine may be busier than in the first batch.
    """

    def __init__(self) -> None:
        self._planned: dict[str, float] = {}
        self._taken: dict[str, float] = {}
        self._began: tuple[str, float] | None = None

    def take(self, event: Event) -> None:
        """Takes note of a plan, and of phases that begin and end."""
        if isinstance(event, Planned):
            self._planned = dict(event.phases)
            self._taken.clear()
        elif isinstance(event, PhaseBegan):
            self._began = event.phase, perf_counter()
        elif isinstance(event, PhaseEnded):
            self._began = None
            self._taken[event.phase] = self._taken.get(event.phase, 0.0) + event.seconds

    @property
    def seconds(self) -> float | None:
        """Until all is done; ``None``: nothing was planned."""
        if not self._planned:
            return None
        ended = [name for name in self._planned if name in self._taken]
        planned_s = sum(self._planned[name] for name in ended)
        pace = sum(self._taken[name] for name in ended) / planned_s if planned_s else 1.0
        left_s = sum(pace * s for name, s in self._planned.items() if name not in self._taken)
        phase, since = self._began or ("", 0.0)
        if phase not in self._planned or phase in self._taken:
            return left_s
        # What has passed of the phase that is under way, as far as it was planned.
        return left_s - min(perf_counter() - since, pace * self._planned[phase])
