"""The rise of memory at the peak of a computation."""

import sys

import pytest
import torch

from mpq.workflows.peak_memory import peak_memory_bytes

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak")
def test_memory_that_was_freed_counts() -> None:
    """64 MiB that are gone when the computation ends were there at its peak."""

    def compute() -> float:
        return float(torch.ones(2**24).sum())

    value, peak = peak_memory_bytes(compute, CPU)

    assert value == 2**24
    assert peak is not None
    assert 0.9 * 2**26 < peak < 1.5 * 2**26


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak")
def test_earlier_peaks_do_not_count() -> None:
    """Only what happens inside."""
    torch.ones(2**25).sum()

    _, peak = peak_memory_bytes(lambda: torch.ones(2**20).sum(), CPU)

    assert peak is not None
    assert peak < 2**25


def test_systems_that_do_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """None, and the value all the same."""
    monkeypatch.setattr(sys, "platform", "plan9")

    assert peak_memory_bytes(lambda: 3, CPU) == (3, None)
