"""Weights that lie in files and are mapped into memory: how their pages leave it again.

A mapped weight (``safetensors``, ``torch.load(mmap=True)``) is read by whoever needs it, as any
other tensor; the system brings its pages from the file. What is brought stays, until memory runs
short or somebody says that it is not needed for now. That is done here, while ``streaming``: after
every call of a module, and after whatever else reads all weights one after the other. A page that
is needed again comes back, so that no number depends on when this is done.
"""

import ctypes
import mmap
import os
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

import numpy as np
from torch import Tensor, nn, strided
from torch.nn.modules.module import register_module_forward_hook

_STREAMING: ContextVar[bool] = ContextVar("_STREAMING", default=False)
_SMALL: Final = 2**16
"""Bytes below which a tensor stays: biases and norms, which are read again at once."""
_PRESENT, _SWAPPED, _OF_A_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))
"""Of a page, in Linux' ``/proc/self/pagemap``: it is in memory, was moved out, is a file's own."""


def can_stream() -> bool:
    """Whether this system says which pages are a file's, and lets go of them: Linux does."""
    return sys.platform == "linux" and os.access("/proc/self/pagemap", os.R_OK)


def is_streaming() -> bool:
    """Whether weights are to leave memory when they have been read."""
    return _STREAMING.get()


@contextmanager
def streaming(is_wanted: bool = True) -> Iterator[None]:
    """Within this block the pages of mapped weights leave memory after every call of a module.

    Args:
        is_wanted: ``False``: nothing is done.
    """
    if not is_wanted or is_streaming():
        yield
        return
    before, handle = _STREAMING.set(True), register_module_forward_hook(_after_call)
    try:
        yield
    finally:
        handle.remove()
        _STREAMING.reset(before)


def _after_call(module: nn.Module, _: Any, __: Any) -> None:
    release(module._parameters.values())


def release(tensors: Iterable[Tensor | None]) -> None:
    """While streaming, lets the pages of mapped tensors go; all others stay as they are.

    A tensor with a page that is the process's own stays: it is no file's, or was written to, and
    a private mapping forgets what was written.
    """
    if not is_streaming():
        return
    for tensor in tensors:
        # Those of other classes are more than their numbers, and lie elsewhere.
        if tensor is None or type(tensor) not in (Tensor, nn.Parameter):
            continue
        if tensor.device.type == "cpu" and tensor.layout is strided:
            storage = tensor.untyped_storage()
            if storage.nbytes() >= _SMALL:
                _release(storage.data_ptr(), storage.nbytes())


def _release(address: int, num_bytes: int) -> None:
    first, last = address // mmap.PAGESIZE, -(-(address + num_bytes) // mmap.PAGESIZE)
    flags = _page_flags(first, last - first)
    is_there, is_own = flags & _PRESENT != 0, flags & _OF_A_FILE == 0
    if not is_there.any() or (is_there & is_own).any() or (flags & _SWAPPED != 0).any():
        return
    length = (last - first) * mmap.PAGESIZE
    # What fails leaves the pages where they are.
    ctypes.CDLL(None).madvise(
        ctypes.c_void_p(first * mmap.PAGESIZE), ctypes.c_size_t(length), mmap.MADV_DONTNEED
    )


def _page_flags(first: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pages:
        read = os.pread(pages.fileno(), 8 * count, 8 * first)
    return np.frombuffer(read, dtype=np.uint64)


def unmapped_bytes(tensors: Iterable[Tensor]) -> int:
    """Size of the tensors that are no file's, each memory once: these stay in memory."""
    starts, ends = _file_ranges()
    found: dict[int, int] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        address, num_bytes = storage.data_ptr(), storage.nbytes()
        place = bisect_right(starts, address) - 1
        if place < 0 or address + num_bytes > ends[place]:
            found[address] = num_bytes
    return sum(found.values())


def _file_ranges() -> tuple[list[int], list[int]]:
    """Where files are mapped in this process, in order."""
    starts: list[int] = []
    ends: list[int] = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        span, _, _, _, inode = line.split(maxsplit=5)[:5]
        if int(inode):
            start, end = (int(address, 16) for address in span.split("-"))
            # Two ranges that follow each other are one where a mapping was split.
            if ends and ends[-1] == start:
                ends[-1] = end
            else:
                starts.append(start)
                ends.append(end)
    return starts, ends


def resident_bytes() -> int:
    """What this process holds in memory now, the pages of mapped files included."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * mmap.PAGESIZE
