"""Cells that are measured by other processes: what travels, and how it is cut."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Final, Self, TypeVar, final

import torch

from mpq._support.progress import track
from mpq._support.rows import Rows
from mpq._support.workers import TaskWorkers
from mpq.errors import InputError
from mpq.network.examples import Batch, Calibration
from mpq.sensitivity.estimation import Estimation

Estimator = TypeVar("Estimator")

PER_WORKER: Final = 4
"""Tasks for each worker at least, if there are cells for that: the last ones end at about a time,
and one that is killed loses little."""


@final
@dataclass(frozen=True, eq=False)
class Shipped:
    """What all tasks need.

    Args:
        estimator: With its options.
        on: What it is asked, without its data.
        batches: The examples.
    """

    estimator: Any
    on: Estimation
    batches: Sequence[Batch]

    @classmethod
    def of(cls, estimator: Any, on: Estimation) -> Self:
        """As it is sent.

        Raises:
            InputError: If the network is on an accelerator.
        """
        require_cpu(on.network.device)
        plain = replace(on, data=Calibration([]), division=None, ranks=None, workers=None)
        # Of the user's function only what it gives: workers may not have what it reads.
        return cls(estimator, plain, list(on.data))


def require_cpu(device: torch.device) -> None:
    """Refuses a network that other processes cannot be sent.

    Raises:
        InputError: If the network is on an accelerator.
    """
    if device.type != "cpu":
        raise InputError(
            f"workers measure on the CPU, and the network is on {device}: move it, or start "
            "one process for each accelerator by torchrun"
        )


@final
@dataclass(frozen=True)
class CellTask:
    """Some layers on one batch.

    Args:
        batch: Index of the batch.
        layers: Names of the layers.
    """

    batch: int
    layers: tuple[str, ...]


def place_name(batch: int, piece: Batch | None = None) -> str:
    """Of a batch by its index, or of a piece of one that memory is too small for."""
    if piece is None:
        return f"batch {batch}"
    return f"examples {piece.start} to {piece.start + piece.size}"


Call = Callable[[Shipped, CellTask], dict[str, Any]]
"""Does a task: names of rows to rows."""


def measured_by(
    workers: TaskWorkers, shipped: Shipped, call: Call, tasks: Sequence[CellTask], rows: Rows,
    purpose: str,
) -> None:  # fmt: skip
    """Adds the rows of all tasks, as they come.

    Args:
        workers: Who measures.
        shipped: What all tasks need.
        call: Does a task.
        tasks: Which of them.
        rows: Where rows are kept, in memory or in a journal.
        purpose: For the progress bar.
    """
    for found in track(workers.sent(shipped, call)(tasks), purpose, len(tasks)):
        for name, row in found.items():
            rows.add(name, row)


def cut(left: Sequence[CellTask], count: int) -> Iterator[CellTask]:
    """Tasks of whole batches, cut into pieces where they are few for so many workers."""
    pieces = ceil(PER_WORKER * count / max(1, len(left)))
    for task in left:
        size = ceil(len(task.layers) / pieces)
        for start in range(0, len(task.layers), max(1, size)):
            yield replace(task, layers=task.layers[start : start + size])
