"""Weights that lie in files and are mapped into memory: how their pages leave it again.

A mapped weight (``safetensors``, ``torch.load(mmap=True)``) is read by whoever needs it, as any
other tensor; the system brings its pages from the file. What is brought stays, until memory runs
short or somebody says that it is not needed for now. That is done here, while ``streaming``: after
every call of a module, and after whatever else reads all weights one after the other. A page that
is needed again comes back, so that no number depends on when this is done.
"""

import mmap
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn, strided
from torch.nn.modules.module import register_module_forward_hook

from mpq._support.pages import (
    ALLOWED,
    SMALL,
    STREAMING,
    can_stream,
    is_streaming,
    release_span,
)


@contextmanager
def streaming(is_wanted: bool = True, allowed: int | None = None) -> Iterator[None]:
    """Within this block the pages of mapped weights leave memory after every call of a module.

    Elsewhere than on Linux nothing is done.

    Args:
        is_wanted: ``False``: nothing is done.
        allowed: Bytes that the process may hold; ``None``: nothing depends on it.
    """
    if not is_wanted or is_streaming() or not can_stream():
        yield
        return
    handle = register_module_forward_hook(_after_call)
    before, allowed_before = STREAMING.set(True), ALLOWED.set(allowed)
    try:
        yield
    finally:
        handle.remove()
        STREAMING.reset(before)
        ALLOWED.reset(allowed_before)


def _after_call(module: nn.Module, _: Any, __: Any) -> None:
    release(module._parameters.values())


def release(tensors: Iterable[Tensor | None]) -> None:
    """While streaming, lets the pages of mapped tensors go; see ``release_span``."""
    if not is_streaming():
        return
    for tensor in tensors:
        # Those of other classes are more than their numbers, and lie elsewhere.
        if tensor is None or type(tensor) not in (Tensor, nn.Parameter):
            continue
        if tensor.device.type == "cpu" and tensor.layout is strided:
            storage = tensor.untyped_storage()
            if storage.nbytes() >= SMALL:
                release_span(storage.data_ptr(), storage.nbytes())


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
