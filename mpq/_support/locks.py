"""Locks of files that know their owner: they end with the process that holds them."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def locked(file: IO[Any]) -> Iterator[None]:
    """Within this block no other process, and no other opening of the file, is in one like it.

    The system takes the lock back when the process ends, also when it is killed: no file that is
    left over blocks whoever comes next. On Windows, whose locks are of byte ranges and keep others
    from reading, there is none: two processes must not write one file there.

    Args:
        file: An open file.

    Raises:
        OSError: If the file system has no locks.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def try_locked(folder: Path) -> Iterator[bool | None]:
    """Whether this process got the lock of a folder, which it then has within this block.

    As ``locked``, but nobody waits: ``False`` if another process has it, ``None`` if nobody can
    tell: the folder is gone, or the system or its file system has no locks of folders.

    Args:
        folder: Whose lock is asked for.
    """
    if sys.platform == "win32":
        yield None
        return
    import fcntl

    try:
        opened = os.open(folder, os.O_RDONLY)
    except OSError:
        yield None
        return
    try:
        yield _got(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(opened)  # and with it the lock


def _got(opened: int, how: int) -> bool | None:
    import fcntl

    try:
        fcntl.flock(opened, how)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
