"""Files of lines whose last one may be torn: by a kill, a full disk, a power cut."""

import os
from typing import BinaryIO


def is_torn(line: bytes) -> bool:
    """Whether a line is what an unfinished write has left, and not damage of a finished one.

    >>> is_torn(b'{"a": 1}'), is_torn(b'{"a": 1}' + bytes(3) + b"\\n"), is_torn(b"{a\\n")
    (True, True, False)
    """
    # Zeros: after a power cut a file may be longer than what got into it. JSON has none.
    return not line.endswith(b"\n") or line.endswith(b"\0\n")


def cut_torn_line(file: BinaryIO) -> None:
    """Cuts off the last line if it is torn: the next one would be appended to it, and both be lost.

    Args:
        file: Open for reading and writing, under the lock of whoever writes lines to it, since what
            looks like half a line may be one that is being written.

    Raises:
        OSError: If it cannot be read or written.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 2, 0))
    # Two bytes tell: a long file is not read before every row that is added to it.
    if not size or not is_torn(file.read()):
        return
    file.seek(0)
    lines = file.read().splitlines(keepends=True)
    file.truncate(size - len(lines[-1]))
    file.flush()
    os.fsync(file.fileno())
