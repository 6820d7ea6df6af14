"""A log of events: one line of JSON each."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import BinaryIO, Final, final

from mpq._support import schema_versions
from mpq._support.events import Callback, Ended, Event
from mpq._support.json_object import known
from mpq._support.locks import locked
from mpq._support.progress import Progressed
from mpq._support.torn import cut_torn_line, is_torn
from mpq.errors import OutputError

_SECONDS_BETWEEN: Final = 1.0
"""At the least between two lines that say how far one kind of work is."""


@final
class JsonLines(Callback):
    """Appends every event to a file, a line of JSON each, on disk as it happens.

    Each line stands for itself: ``schema_version``, ``run`` (a mark that all lines of one run
    have), ``unix_s`` (seconds since 1970), ``elapsed_s`` (seconds since the first event of the
    run), ``event`` (its name), and the event's own fields. Numbers that are not finite are null. Of
    how far one kind of work is there is a line a second at the most.

    A file that is there is added to: the same command again, after an interruption, goes on in the
    same log. A last line that a kill has torn is cut off first.

    Args:
        path: The file, in a folder that is there.

    Raises:
        OutputError: If it cannot be written to, or is there and is no such log.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._run = ""
        self._start_s = 0.0
        self._told_s: dict[str, float] = {}
        # Now, and not after an hour of work.
        self._begin()

    def on(self, event: Event) -> None:
        """See ``Callback.on``."""
        now = perf_counter()
        if not self._run:
            self._run = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}-{os.getpid()}"
            self._start_s = now
        if isinstance(event, Progressed) and not self._is_due(event, now):
            return
        line = {
            "schema_version": schema_versions.EVENTS,
            "run": self._run,
            "unix_s": datetime.now(UTC).timestamp(),
            "elapsed_s": now - self._start_s,
            "event": event.name,
            **event.to_dict(),
        }
        self._append(json.dumps(known(line), allow_nan=False))
        if isinstance(event, Ended):  # another run of the same process has a mark of its own
            self._run = ""
            self._told_s.clear()

    def _is_due(self, event: Progressed, now_s: float) -> bool:
        before_s = self._told_s.get(event.work)
        if before_s is not None and now_s - before_s < _SECONDS_BETWEEN:
            return False
        self._told_s[event.work] = now_s
        return True

    def _begin(self) -> None:
        """Refuses a file that is something else, and cuts off what a kill has torn."""
        with self._opened() as file:
            file.seek(0)
            self._check(file.readline())
            cut_torn_line(file)

    def _append(self, line: str) -> None:
        with self._opened() as file:
            file.write(f"{line}\n".encode())

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        """The file, to add to it; nobody else does meanwhile."""
        if self.path.exists() and not self.path.is_file():
            raise OutputError(f"cannot write the log {self.path}: it is no regular file")
        try:
            with self.path.open("a+b") as file, locked(file):
                yield file
        except OSError as error:
            raise OutputError(
                f"cannot write the log {self.path}: {error.strerror}; give the path of a file in a "
                "folder that exists and can be written to"
            ) from error

    def _check(self, first: bytes) -> None:
        """Refuses to add lines to a file that is something else."""
        if not first or _is_torn_beginning(first):
            return
        try:
            found = json.loads(first)
        except ValueError:
            found = None
        if not isinstance(found, dict) or not {"schema_version", "event", "run"} <= found.keys():
            raise OutputError(
                f"{self.path} is there and is no log of mpq's events: give another path"
            )
        if found["schema_version"] != schema_versions.EVENTS:
            raise OutputError(
                f"the log {self.path} has schema version {found['schema_version']}; this mpq "
                f"writes version {schema_versions.EVENTS}: give another path"
            )


def _is_torn_beginning(first: bytes) -> bool:
    """Whether an only line is what a kill or a full disk has left of the first one.

    >>> _is_torn_beginning(b'{"schema_version": 1, "ru'), _is_torn_beginning(b"import torch")
    (True, False)
    """
    if not is_torn(first):
        return False
    # Other JSON begins with this key, too: at least as far as it goes it has to be our line.
    begins = b'{"schema_version": %d, "run": "' % schema_versions.EVENTS
    found = first.rstrip(b"\0\n")
    is_ours = found.startswith(begins) or begins.startswith(found)
    return is_ours and found != b"{"
