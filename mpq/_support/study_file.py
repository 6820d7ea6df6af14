"""The file of a study: read before anything is written to it, and locked by its owner."""

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast, final

from mpq._support.locks import locked
from mpq._support.torn import cut_torn_line
from mpq.errors import FileFormatError, InputError

if TYPE_CHECKING:
    from optuna.storages.journal import BaseJournalBackend

_BEGINNING: Final = b'{"op_code":'
"""What every line of a study's journal has, and thus the first bytes of the file."""


def check_there(path: str) -> None:
    """Refuses a path at which there is nothing: opened, it would become a new study.

    Raises:
        InputError: If so.
    """
    if not Path(path).is_file():
        raise InputError(f"storage {path!r}: there is no such file; name that of an earlier search")


def study_file(path: str) -> "BaseJournalBackend":
    """The journal of a study, new or as optuna left it.

    What a killed process left of its last line is cut off: the next line would be appended to it,
    and the whole study be lost.

    Args:
        path: A file, or where one can be made.

    Raises:
        FileFormatError: If the file is something else; it is not touched.
        InputError: If there is something at the path that is no file.
        OSError: If it cannot be read or written.
    """
    from optuna.storages.journal import JournalFileBackend

    if Path(path).exists() and not Path(path).is_file():
        raise InputError(f"storage {path!r}: it is no regular file; give another path")
    _cut_torn_line(path)
    # Windows has no lock of ours: there optuna's own one, which outlives its process by 30 s.
    if sys.platform == "win32":
        return JournalFileBackend(path)
    # Its base class is not public; all that is asked of a lock is these two methods.
    return JournalFileBackend(path, lock_obj=cast(Any, _OwnedLock(path)))


def _cut_torn_line(path: str) -> None:
    if not Path(path).exists():
        return
    # For reading first: what is not ours may be read-only, and must not change at all.
    with Path(path).open("rb") as beginning:
        head = beginning.read(len(_BEGINNING))
    # Less of it is a whole file that was torn in its first line, or that is empty.
    if not _BEGINNING.startswith(head):
        raise FileFormatError(
            f"storage {path!r} is no journal of optuna's, or is damaged: it begins with "
            f"{head.decode(errors='replace')!r}; give another path"
        )
    with Path(path).open("r+b") as file, locked(file):
        cut_torn_line(file)
        file.seek(0)
        lines = file.read().splitlines(keepends=True)
    # Optuna passes over the last line, however damaged; once there is another one it reads nothing.
    if lines and not _is_json(lines[-1]):
        raise FileFormatError(
            f"storage {path!r} is damaged in line {len(lines)}: remove that line, or give another "
            "path"
        )


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


@final
class _OwnedLock:
    """Optuna's interface to ``locked``: a lock that a killed process does not keep.

    Whoever has it appends: what another's last write has left of a line is cut off.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._held = ExitStack()

    def acquire(self) -> bool:
        """Waits for whoever has it; the system takes it back from whoever died."""
        with ExitStack() as stack:
            file = stack.enter_context(self._path.open("a+b"))
            stack.enter_context(locked(file))
            cut_torn_line(file)
            self._held = stack.pop_all()
        return True

    def release(self) -> None:
        """Lets the next one in."""
        self._held.close()
