"""Pages of files that are mapped into memory: which are there, and how they leave it again.

No torch here: codes that lie in files are read without it.
"""

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

import numpy as np

STREAMING: Final[ContextVar[bool]] = ContextVar("STREAMING", default=False)
"""Whether pages are to leave memory when they have been read (``mpq.network.mapped.streaming``)."""
ALLOWED: Final[ContextVar[int | None]] = ContextVar("ALLOWED", default=None)
"""Bytes that the process may hold meanwhile; ``None``: nobody said."""
SMALL: Final = 2**16
"""Bytes below which numbers stay: biases and norms, which are read again at once."""
PRESENT, _SWAPPED, _OF_A_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))
"""Of a page, in Linux' ``/proc/self/pagemap``: it is in memory, was moved out, is a file's own."""


def can_stream() -> bool:
    """Whether this system says which pages are a file's, and lets go of them: Linux does."""
    return sys.platform == "linux" and os.access("/proc/self/pagemap", os.R_OK)


def is_streaming() -> bool:
    """Whether weights are to leave memory when they have been read."""
    return STREAMING.get()


def release_arrays(arrays: "Iterable[np.ndarray[Any, Any]]") -> None:
    """While streaming, lets the pages of contiguous arrays that lie in files go; others stay."""
    if not is_streaming():
        return
    for array in arrays:
        if array.nbytes >= SMALL and array.flags.c_contiguous:
            release_span(array.ctypes.data, array.nbytes)


def release_span(address: int, num_bytes: int) -> None:
    """Lets the pages of a piece of memory go, if all that are there are a file's and unchanged.

    A piece with a page that is the process's own stays: it is no file's, or was written to, and a
    private mapping forgets what was written.
    """
    first, last = address // mmap.PAGESIZE, -(-(address + num_bytes) // mmap.PAGESIZE)
    flags = page_flags(first, last - first)
    is_there, is_own = flags & PRESENT != 0, flags & _OF_A_FILE == 0
    if not is_there.any() or (is_there & is_own).any() or (flags & _SWAPPED != 0).any():
        return
    length = (last - first) * mmap.PAGESIZE
    # What fails leaves the pages where they are.
    ctypes.CDLL(None).madvise(
        ctypes.c_void_p(first * mmap.PAGESIZE), ctypes.c_size_t(length), mmap.MADV_DONTNEED
    )


def page_flags(first: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """What Linux says of so many pages, from the first one on."""
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pages:
        read = os.pread(pages.fileno(), 8 * count, 8 * first)
    return np.frombuffer(read, dtype=np.uint64)
