"""How long planned work still takes, corrected by what its phases took."""

from dataclasses import dataclass
from time import perf_counter
from typing import Final, final

from mpq._support.events import Event
from mpq._support.phases import PhaseBegan, PhaseEnded
from mpq._support.progress import Progressed
from mpq.callbacks.results import Planned

_CACHED: Final = 0.1
"""Share of its planned time below which a phase was not worked at."""


@final
@dataclass(frozen=True)
class _Items:
    """How far planned work is.

    Args:
        told: The last that was told of it.
        at_s: When, by ``perf_counter``.
    """

    told: Progressed
    at_s: float

    def still_s(self, planned_s: float, inner_s: float) -> float:
        """Seconds that it takes yet.

        Args:
            planned_s: Of all of it; counts until an item is done.
            inner_s: Of what is under way in the item that is: before, the item does not end.
        """
        told = self.told
        known_s = planned_s if told.seconds_left is None else told.seconds_left
        each_s = known_s / max((told.total or 1) - told.done, 1)
        passed_s = perf_counter() - self.at_s
        return known_s - each_s + max(each_s - passed_s, inner_s, 0.0)


@final
class TimeLeft:
    """Follows a plan, the one that was told last.

    What is left of the plan is longer, or shorter, by the share by which the phases that have ended
    took longer than planned: the machine may be busier than in the first batch. One that took next
    to nothing was found in a cache, and says nothing of the others. Work of the phase that is under
    way knows its own time left, which counts where it is longer. Work that was planned by its own
    name, such as one recipe after the other, knows best; the item that is under way passes, and
    lasts as long as what is done in it.
    """

    def __init__(self) -> None:
        self._planned: dict[str, float] = {}
        self._taken: dict[str, float] = {}
        self._phase = ""
        # Of what is under way: when it began, and its own time left.
        self._began: dict[str, float] = {}
        self._own_s: dict[str, float] = {}
        self._items: dict[str, _Items] = {}

    def take(self, event: Event) -> None:
        """Takes note of a plan, and of phases and work that begin and end."""
        if isinstance(event, Planned):
            self._planned = dict(event.phases)
            self._taken.clear()
            self._items.clear()
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
        self._items[event.work] = _Items(event, perf_counter())
        if event.done == event.total:
            self._end(event.work, perf_counter() - self._began[event.work])

    def _begin(self, name: str) -> None:
        self._began[name] = perf_counter()
        self._own_s.pop(name, None)

    def _end(self, name: str, seconds: float) -> None:
        self._began.pop(name, None)
        self._items.pop(name, None)
        self._taken[name] = self._taken.get(name, 0.0) + seconds

    @property
    def whole(self) -> Progressed | None:
        """What was told last of the planned work that is under way; ``None``: there is none."""
        return next((items.told for items in self._items.values()), None)

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
        items = self._items.get(name)
        if items is not None:
            return items.still_s(planned_s, self._own_s.get(self._phase, 0.0))
        own_s = self._own_s.get(name, 0.0)
        return max(planned_s - (perf_counter() - self._began[name]), own_s, 0.0)
