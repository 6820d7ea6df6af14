"""How much memory a computation took at its peak, beyond what was held before it."""

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

Value = TypeVar("Value")
_KIB = 1024


def peak_memory_bytes(
    compute: Callable[[], Value], device: torch.device
) -> tuple[Value, int | None]:
    """Runs a computation and watches its memory.

    Args:
        compute: The computation, called once; it holds its own arguments.
        device: Where it allocates: a CUDA device, or any other as the CPU.

    Returns:
        Its value, and the rise of the device's allocated memory at the peak; on a CPU the rise of
        the process's resident set (Linux), or ``None`` where the system does not tell.
    """
    # Garbage of earlier work would be freed within the computation and hide a part of its rise.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        # Allocated, not reserved: torch keeps freed blocks, which are no need of the computation.
        before = torch.cuda.memory_allocated(device)
        value = compute()
        return value, torch.cuda.max_memory_allocated(device) - before
    before_kib = _reset_resident_peak()
    value = compute()
    after_kib = _status_kib("VmHWM")
    if before_kib is None or after_kib is None:
        return value, None
    # The kernel adds up its counts of pages late: without any rise the difference may be negative.
    return value, max(after_kib - before_kib, 0) * _KIB


def _reset_resident_peak() -> int | None:
    """Resident KiB now; from here on the system counts the peak anew."""
    if sys.platform != "linux":
        return None
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else memory that is free but kept hides the rise
        # 5 sets the peak back to what is resident now; see clear_refs in man 5 proc.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    # /proc may be read-only in a container, and not every C library has malloc_trim.
    except (OSError, AttributeError):
        return None
    return _status_kib("VmRSS")


def _status_kib(name: str) -> int | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = (line.split() for line in status.read_text(encoding="ascii").splitlines())
    return next((int(words[1]) for words in lines if words[0] == f"{name}:"), None)
