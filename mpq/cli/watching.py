"""Long work is watched: a display with the time left, a log, and what an interruption keeps."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from mpq.cli import options as o
from mpq.cli.app import command_words
from mpq.cli.talk import TalkOptions

if TYPE_CHECKING:
    from mpq._support.phases import Phases


@final
@dataclass(frozen=True)
class Kept:
    """What an interruption leaves on disk.

    Args:
        what: It is, for people.
        where: The file or folder that gets it as the work goes on.
    """

    what: str
    where: Path

    @property
    def is_there(self) -> bool:
        """Whether there is any of it yet."""
        if self.where.is_dir():
            return any(self.where.iterdir())
        return self.where.is_file() and self.where.stat().st_size > 0


@dataclass(frozen=True)
class WatchOptions:
    """Where events of long work go, beside the display."""

    log: o.LogFile = None

    @contextmanager
    def watched(
        self, talk: TalkOptions, kept: Sequence[Kept] = (), can_keep: bool = True
    ) -> "Iterator[Phases]":
        """Within this block the work is watched, and its phases are counted.

        Args:
            talk: Whether there is a display.
            kept: What an interruption leaves on disk; none: nothing.
            can_keep: Whether ``--cache`` would keep something.

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
                for line in _told(list(phases.spent), kept, can_keep):
                    error.add_note(line)
                raise


def kept_in(cache: str | None) -> list[Kept]:
    """What a search keeps while it works."""
    what = "estimates, codes and measurements so far"
    return [] if cache is None else [Kept(what, Path(cache))]


def epochs_in(folder: Path | None) -> list[Kept]:
    """What a tuning keeps while it works, in the folder of its result; ``None``: there is none."""
    if folder is None:
        return []
    from mpq.tuning.checkpoint import CHECKPOINT_FILE

    return [Kept("finished epochs", folder / CHECKPOINT_FILE)]


def _told(finished: Sequence[str], kept: Sequence[Kept], can_keep: bool) -> Iterator[str]:
    """What is done, what of it is kept, and how to go on."""
    from mpq.callbacks.plans import PLANNING

    done = [name for name in finished if name != PLANNING]
    if done:
        yield f"finished: {'; '.join(done)}"
    command = shlex.join(command_words())
    there = [f"{each.what}, in {each.where}" for each in kept if each.is_there]
    if there:
        yield f"kept: {'; '.join(there)}"
        yield f"to go on: {command}"
    else:
        why = " yet" if kept else " without --cache DIR" if can_keep else ""
        yield f"nothing is kept{why}; to begin anew: {command}"
