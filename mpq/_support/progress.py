"""Progress: one display for a whole command, where somebody asked for it; silent elsewhere."""

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar, final

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Item = TypeVar("Item")


@final
@dataclass(frozen=True, eq=False)
class _Display:
    """Bars, one for each kind of work: work that is done again takes its line again.

    A frontier solves some twenty problems; what counts is that the solver is at work, not twenty
    lines that say so.

    Args:
        bars: The lines on the terminal.
        lines: Description of the work to its line in ``bars``.
        busy: Descriptions of the work that is under way.
    """

    bars: "Progress"
    lines: dict[str, "TaskID"] = field(default_factory=dict)
    busy: set[str] = field(default_factory=set)

    def track(self, items: Iterable[Item], what: str, total: int | None) -> Iterator[Item]:
        if what in self.busy:  # inside of its own kind there is no second line
            yield from items
            return
        self.busy.add(what)
        line, done = self._line(what, total), 0
        try:
            for done, item in enumerate(items, start=1):
                yield item
                self.bars.update(line, completed=done)
            # There may be fewer items than announced, or no announced total: the bar ends full.
            self.bars.update(line, total=done)
        finally:
            # Also where the consumer stops early: the kind would never get a line again.
            self.busy.discard(what)

    def _line(self, what: str, total: int | None) -> "TaskID":
        known = self.lines.get(what)
        if known is not None and total is not None:
            self.bars.reset(known, total=total)
            return known
        if known is not None:  # rich cannot forget a total, so that a new line takes the place
            self.bars.remove_task(known)
        self.lines[what] = self.bars.add_task(what, total=total)
        return self.lines[what]


# Of the context, not of the process: threads of the user's do not draw on this display.
_shown: ContextVar["_Display | None"] = ContextVar("mpq_progress", default=None)


@contextmanager
def showing_progress(is_shown: bool = True) -> Iterator[None]:
    """Within this block, every ``track`` shows a bar on standard error; blocks inside join in."""
    if not is_shown or _shown.get() is not None:
        yield
        return
    # Imported here: most callers of `track` run where no bars are shown, and need no rich.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    # On standard error: standard output is for the answer alone (see `streams`).
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bars:
        token = _shown.set(_Display(bars))
        try:
            yield
        finally:
            _shown.reset(token)


def track(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """The items, one after the other, with a bar if bars are shown.

    Args:
        items: What the work goes through, such as layers or rounds.
        what: Names the kind of work; the bar's line.
        total: How many there are, where ``items`` does not tell.
    """
    display = _shown.get()
    if total is None and isinstance(items, Sized):
        total = len(items)
    return iter(items) if display is None else display.track(items, what, total)
