"""``mpq`` as a process that is killed: by the clock, or just before it changes a file."""

import json
import multiprocessing as mp
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

CHANGES: Final = (
    "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink",
)  # fmt: skip
"""Audit events before a folder changes; of ``open`` those for writing count as well."""
PATIENCE_S: Final = 120.0


@dataclass(frozen=True)
class Moment:
    """When a process is killed.

    Args:
        signal: By what.
        change: Before which change of a file; 0: by the clock.
        seconds: After its start; for ``change=0``.
    """

    signal: int = 0
    change: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Args:
        code: Exit code; below 0: minus the signal.
        answer: What it printed.
        said: What it printed to standard error.
        changes: Number of changes of files; 0 if it did not get to its end.
        slept_s: Time that it neither ran nor waited for a processor.
        seconds: From start to end.
    """

    code: int
    answer: str
    said: str
    changes: int
    slept_s: float
    seconds: float


class Run:
    """``mpq`` with arguments, in a folder, as a process of its own."""

    def __init__(self, folder: Path, args: list[str], moment: Moment) -> None:
        self._moment, self._began = moment, time.monotonic()
        self._out = Path(tempfile.mkdtemp(dir=folder.parent, prefix="said-"))
        for name in ("answer", "said"):  # here, as it may be killed before it does anything
            (self._out / name).touch()
        # Forked, so that torch and all else is imported once.
        self._process = mp.get_context("fork").Process(
            target=_work, args=(folder, args, moment, self._out)
        )
        self._process.start()

    def end(self) -> Ended:
        """Waits for its end, or brings it about."""
        by_clock = self._moment.signal and not self._moment.change
        self._process.join(self._moment.seconds if by_clock else PATIENCE_S)
        if by_clock and self._process.exitcode is None and self._process.pid:
            os.kill(self._process.pid, self._moment.signal)
        self._process.join(PATIENCE_S)
        self._process.kill()
        self._process.join()
        seconds = time.monotonic() - self._began
        report = self._out / "report.json"
        found = json.loads(report.read_text()) if report.exists() else {}
        answer, said = ((self._out / name).read_text() for name in ("answer", "said"))
        shutil.rmtree(self._out)
        return Ended(
            self._process.exitcode or 0, answer, said, found.get("changes", 0),
            found.get("slept_s", 0.0), seconds,
        )  # fmt: skip


def _work(folder: Path, args: list[str], moment: Moment, out: Path) -> None:
    os.setpgrp()  # what it starts goes with it, and no key of the terminal reaches it
    os.chdir(folder)
    for name, number in (("answer", 1), ("said", 2)):
        os.dup2(os.open(out / name, os.O_WRONLY), number)
    sys.argv = ["mpq", *args]
    began = time.monotonic()
    changes = _Changes(folder, moment)
    try:
        from mpq.cli.__main__ import main

        main()
    finally:
        changes.is_over = True
        found = {"changes": changes.count, "slept_s": _slept(time.monotonic() - began)}
        # Renamed: a kill leaves no half of it.
        (out / "new").write_text(json.dumps(found))
        (out / "new").rename(out / "report.json")


def _slept(seconds: float) -> float:
    """Of this process's time what it spent neither on a processor nor in the queue for one."""
    file = Path("/proc/self/schedstat")
    if not file.exists():
        return 0.0
    ran, queued, _ = map(int, file.read_text().split())
    return max(seconds - (ran + queued) / 1e9, 0.0)


class _Changes:
    """Counts changes of files in a folder; before one of them the process kills itself."""

    def __init__(self, folder: Path, moment: Moment) -> None:
        self.count, self.is_over = 0, False
        self._folder, self._moment = str(folder), moment
        sys.addaudithook(self._audit)
        # What is written but not yet on the disk is a moment of its own, and no audit event.
        self._fsync = os.fsync
        os.fsync = self._synced  # type: ignore[assignment]

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            is_change = isinstance(args[2], int) and bool(args[2] & (os.O_WRONLY | os.O_RDWR))
        else:
            is_change = event in CHANGES
        # Not a descriptor, of which it is not known what it is of.
        if not is_change or not isinstance(args[0], str | bytes | os.PathLike):
            return
        # Nothing is resolved: that would be more events.
        if os.path.join(self._folder, os.fsdecode(args[0])).startswith(self._folder):  # noqa: PTH118
            self._next()

    def _synced(self, file: Any) -> None:
        self._next()
        self._fsync(file)

    def _next(self) -> None:
        if self.is_over:
            return
        self.count += 1
        if self.count == self._moment.change:
            os.kill(os.getpid(), self._moment.signal)
