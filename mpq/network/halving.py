"""Where memory runs out: the same work again, with half as many examples at once."""

from collections.abc import Callable
from typing import TypeVar

import torch

from mpq._support.events import warn
from mpq.errors import InputError
from mpq.network.examples import Calibration

Value = TypeVar("Value")


def halved(
    what: str, data: Calibration, work: Callable[[Calibration], Value], uncut: str = ""
) -> Value:
    """What work gives; where an accelerator's memory runs out, with batches cut in halves.

    Work is begun anew each time, so that nothing of a pass that broke off is counted. The numbers
    are those of the smaller batches. Where a process's own memory runs out, torch raises another
    error, if any, which is left alone.

    Args:
        what: What is done, for the warning that says what was halved.
        data: The examples.
        work: Looks at the data that it is given, and keeps nothing when it fails.
        uncut: Why batches cannot be cut, as the end of a sentence; empty: they can.

    Raises:
        InputError: If not even a single example fits, or batches cannot be cut.
    """
    while True:
        found = _tried(what, data, work, uncut)
        # Not within ``except``, whose error holds the tensors of the pass that broke off.
        if found is not None:
            return found[0]
        largest = _largest(data)
        # Powers of two: pieces are then cut into whole ones again, wherever batches end.
        at_once = 1 << (largest - 1).bit_length() - 1
        warn(
            f"{what} does not fit into memory with batches of {largest} examples: goes on with "
            f"{at_once} at once",
            stacklevel=2,
        )
        data = data.by(at_once)


def _tried(
    what: str, data: Calibration, work: Callable[[Calibration], Value], uncut: str
) -> tuple[Value] | None:
    """``None`` where memory ran out."""
    try:
        return (work(data),)
    except torch.OutOfMemoryError as error:
        if not uncut and data.is_whole:
            uncut = "rows of a batch change each other's outputs"
        if not uncut and _largest(data) > 1:
            return None
        why = f"batches cannot be cut, as {uncut}" if uncut else "batches have one example each"
        raise InputError(
            f"{what} does not fit into memory, and {why}: give shorter or smaller examples, a "
            f"network in half precision, or a device with more memory ({error})"
        ) from error


def _largest(data: Calibration) -> int:
    """Examples of the largest batch that is read of the data."""
    return max(batch.size for batch in data)
