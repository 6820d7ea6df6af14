"""Seconds of what a device does, whose kernels run on after the call that starts them."""

from collections.abc import Callable
from time import perf_counter
from typing import TypeVar

import torch

Value = TypeVar("Value")


def now_s(device: torch.device) -> float:
    """The time of a clock once a device has done all that it was asked."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return perf_counter()


def clocked(compute: Callable[[], Value], device: torch.device) -> tuple[Value, float]:
    """What a computation gives, and its seconds."""
    start = now_s(device)
    value = compute()
    return value, now_s(device) - start
