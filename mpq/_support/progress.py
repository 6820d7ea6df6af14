"""How far work is, told to whoever listens; silent elsewhere."""

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from time import perf_counter
from typing import Any, ClassVar, TypeVar, final

from mpq._support.events import Audience, Event, audience, tell

Item = TypeVar("Item")


@final
@dataclass(frozen=True)
class Progressed(Event):
    """So much of one kind of work is done.

    It is told when the work begins (``done`` is 0), after each item, and at the end, where there
    were fewer items than announced. Work that is done again is told from 0 again.

    Args:
        work: What is done.
        done: Items.
        total: How many there will be; ``None``: not known.
        seconds_left: Of this work, at its speed so far; ``None``: not known.
    """

    work: str
    done: int
    total: int | None = None
    seconds_left: float | None = None
    name: ClassVar[str] = "progressed"

    def to_dict(self) -> dict[str, Any]:
        """See ``Event.to_dict``."""
        return {
            "work": self.work,
            "done": self.done,
            "total": self.total,
            "seconds_left": self.seconds_left,
        }


def track(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """The items, one after the other; whoever listens is told of each.

    Args:
        items: What the work goes through, such as layers or rounds.
        what: Names the kind of work; inside of its own kind nothing is told.
        total: How many there are, where ``items`` does not tell.
    """
    listeners = audience()
    if total is None and isinstance(items, Sized):
        total = len(items)
    if listeners is None or what in listeners.busy:
        return iter(items)
    return _told(items, what, total, listeners)


def _told(
    items: Iterable[Item], what: str, total: int | None, listeners: Audience
) -> Iterator[Item]:
    # Asked again, as the work may begin long after it was set up.
    if what in listeners.busy:
        yield from items
        return
    listeners.busy.add(what)
    start, done = perf_counter(), 0
    try:
        tell(Progressed(what, 0, total))
        for done, item in enumerate(items, start=1):
            yield item
            left = None if total is None else (perf_counter() - start) * max(total / done - 1, 0)
            tell(Progressed(what, done, total, left))
        if done != total:
            tell(Progressed(what, done, done, 0.0))
    finally:
        # Also where the consumer stops early: the kind would never be told of again.
        listeners.busy.discard(what)
