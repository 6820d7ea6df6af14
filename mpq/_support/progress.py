"""Progress bars: shown where somebody asked for them, silent elsewhere."""

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

Item = TypeVar("Item")
_shown: ContextVar["Progress | None"] = ContextVar("mpq_progress", default=None)


@contextmanager
def showing_progress(is_shown: bool = True) -> Iterator[None]:
    """Within this block, every ``track`` shows a bar on standard error."""
    if not is_shown or _shown.get() is not None:
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bars:
        token = _shown.set(bars)
        try:
            yield
        finally:
            _shown.reset(token)


def track(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """The items, one after the other, with a bar if bars are shown."""
    bars = _shown.get()
    if bars is None:
        yield from items
        return
    if total is None and isinstance(items, Sized):
        total = len(items)
    task = bars.add_task(what, total=total)
    done = 0
    for done, item in enumerate(items, start=1):
        yield item
        bars.update(task, completed=done)
    bars.update(task, total=done)
