"""Long work is watched: a display with the time left, a log, and what an interruption keeps."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpq.cli import options as o
from mpq.cli.app import command_words
from mpq.cli.talk import TalkOptions

if TYPE_CHECKING:
    from mpq._support.phases import Phases


@dataclass(frozen=True)
class WatchOptions:
    """Where events of long work go, beside the display."""

    log: o.LogFile = None

    @contextmanager
    def watched(self, talk: TalkOptions, kept: Sequence[str] = ()) -> "Iterator[Phases]":
        """Within this block the work is watched, and its phases are counted.

        Args:
            talk: Whether there is a display.
            kept: What an interruption leaves on disk, for people; none: nothing.

        Raises:
            OutputError: If the log cannot be written to.
        """
        from mpq._support.events import Callback, listening
        from mpq._support.phases import Phases
        from mpq.callbacks.json_lines import JsonLines
        from mpq.callbacks.progress import Progress

        phases = Phases()
        callbacks: list[Callback] = [phases]
        if self.log is not None:
            callbacks.append(JsonLines(self.log))
        if not talk.quiet:
            callbacks.append(Progress())
        with listening(callbacks):
            try:
                yield phases
            except KeyboardInterrupt as error:
                for line in _told(list(phases.spent), kept):
                    error.add_note(line)
                raise


def kept_in(cache: str | None) -> list[str]:
    """What a search keeps while it works."""
    return [] if cache is None else [f"estimates, codes and measurements so far, in {cache}"]


def _told(finished: Sequence[str], kept: Sequence[str]) -> Iterator[str]:
    """What is done, what of it is kept, and how to go on."""
    if finished:
        yield f"finished: {'; '.join(finished)}"
    if kept:
        yield f"kept: {'; '.join(kept)}"
        yield f"to go on: {shlex.join(command_words())}"
    else:
        yield f"nothing is kept without --cache DIR; to begin anew: {shlex.join(command_words())}"
