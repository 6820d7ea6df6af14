"""Times of work on a device."""

import pytest
import torch

from mpq.workflows.clock import clocked


@pytest.mark.parametrize(("device", "expected"), [("cpu", "x"), ("cuda", "sxs")])
def test_a_device_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, device: str, expected: str
) -> None:
    """Before, so that earlier work is not counted, and after, so that all of this is."""
    done: list[str] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: done.append("s"))

    _, seconds = clocked(lambda: done.append("x"), torch.device(device))

    assert "".join(done) == expected
    assert seconds >= 0
