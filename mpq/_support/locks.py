"""Locks of files that know their owner: they end with the process that holds them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
