"""How far the work is, on standard error: bars on a terminal, else a line now and then."""

import sys
from time import perf_counter
from typing import TYPE_CHECKING, Final, final

from mpq._support.durations import in_words
from mpq._support.events import Callback, Ended, Event
from mpq._support.phases import PhaseBegan
from mpq._support.progress import Progressed
from mpq.callbacks.results import Planned
from mpq.callbacks.time_left import TimeLeft

if TYPE_CHECKING:
    from rich import progress as rich_progress

_FIRST_LINE_S: Final = 10.0
"""What is over by then says nothing where nobody looks at a terminal."""
_SECONDS_BETWEEN: Final = 60.0
"""Between two lines, where a log would fill up with them."""


@final
class Progress(Callback):
    """One display with the time left.

    On a terminal it has a bar for each kind of work and, of long work, what all of it will take. A
    file or a pipe gets a line a minute, the first one after ten seconds.
    """

    def __init__(self) -> None:
        self._display: _Bars | _Lines | None = None

    def on(self, event: Event) -> None:
        """See ``Callback.on``."""
        if self._display is None:
            # When it begins: standard error may have been led elsewhere since.
            self._display = _Bars() if sys.stderr.isatty() else _Lines()
        self._display.show(event)
        if isinstance(event, Ended):
            self._display = None


@final
class _Bars:
    """Bars, one for each kind of work: work that is done again takes its line again.

    A frontier solves some twenty problems; what counts is that the solver is at work, not twenty
    lines that say so.
    """

    def __init__(self) -> None:
        # Imported here: most callers show no bars, and need no rich.
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("{task.fields[left]}"),
        )  # fmt: skip
        # On standard error: standard output is for the answer alone (see `streams`).
        self._bars = RichProgress(*columns, console=Console(stderr=True))
        self._lines: dict[str, rich_progress.TaskID] = {}
        self._left = TimeLeft()
        self._bars.start()

    def show(self, event: Event) -> None:
        """Draws it."""
        self._left.take(event)
        if isinstance(event, Progressed):
            self._progressed(event)
        elif isinstance(event, Planned):
            self._bars.console.print(plan_told(event), markup=False, highlight=False)
        elif isinstance(event, Ended):
            self._bars.stop()

    def _progressed(self, event: Progressed) -> None:
        if event.done == 0 or event.work not in self._lines:
            self._begin(event)
        left = event.seconds_left
        told = f"{in_words(left)} left" if left else ""
        whole = self._left.seconds
        if whole is not None:
            told += f"{', ' if told else ''}{in_words(whole)} in all"
        self._bars.update(
            self._lines[event.work], completed=event.done, total=event.total, left=told
        )

    def _begin(self, event: Progressed) -> None:
        known = self._lines.get(event.work)
        if known is not None and event.total is not None:
            self._bars.reset(known, total=event.total)
            return
        if known is not None:  # rich cannot forget a total, so that a new line takes the place
            self._bars.remove_task(known)
        self._lines[event.work] = self._bars.add_task(event.work, total=event.total, left="")


@final
class _Lines:
    """A line now and then, where nobody looks at a terminal."""

    def __init__(self) -> None:
        self._due_s = perf_counter() + _FIRST_LINE_S
        self._left = TimeLeft()
        self._phase = ""

    def show(self, event: Event) -> None:
        """Writes a line, if one is due."""
        self._left.take(event)
        if isinstance(event, PhaseBegan):
            self._phase = event.phase
        if isinstance(event, Planned):
            sys.stderr.write(f"{plan_told(event)}\n")
        elif isinstance(event, Progressed) and perf_counter() >= self._due_s:
            self._due_s = perf_counter() + _SECONDS_BETWEEN
            sys.stderr.write(f"{self._told(event)}\n")

    def _told(self, event: Progressed) -> str:
        phase = f"{self._phase}: " if self._phase and self._phase != event.work else ""
        told = f"{phase}{_count_told(event)}"
        if event.seconds_left:
            told += f", {in_words(event.seconds_left)} left"
        seconds, whole = self._left.seconds, self._left.whole
        if seconds is None:
            return told
        is_outer = whole is not None and whole.work != event.work
        far = f"{_count_told(whole)}, " if whole and is_outer else ""
        return f"{told}; {far}of all work {in_words(seconds)}"


def _count_told(event: Progressed) -> str:
    total = "" if event.total is None else f" of {event.total}"
    return f"{event.work} {event.done}{total}"


def plan_told(event: Planned) -> str:
    """What is to come, in a line."""
    phases = [f"{name} {in_words(seconds)}" for name, seconds in event.phases.items()]
    at_most = [f"{name} up to {in_words(seconds)}" for name, seconds in event.at_most.items()]
    told = f"plan: {', '.join(phases or at_most)}"
    if phases:
        told += f"; {in_words(event.seconds)} in all"
    besides = [*(at_most if phases else ()), *event.besides]
    told += f", besides {' and '.join(besides)}" if besides else ""
    return f"{told}\n{event.calls}" if event.calls else told
