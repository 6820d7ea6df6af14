"""What assignments lose, measured by other processes: each of them a task."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import numpy as np

from mpq._support.arrays import Array, Columns
from mpq._support.workers import TaskWorkers
from mpq.quantization.precision import Precision
from mpq.report.measurement import Measurement
from mpq.sensitivity.passes.cell_tasks import require_cpu
from mpq.workflows.evaluator import Evaluator

Row = tuple[int, dict[str, Precision]]
"""Which assignment of a batch, and its precisions."""


@final
@dataclass(frozen=True, eq=False)
class LossesByWorkers:
    """``Evaluator.losses_of`` on workers: the same losses, in the order of the batch.

    Which assignments are asked about does not depend on how many workers there are, nor on who is
    done first: a solver's batch is measured whole before it goes on.

    Args:
        workers: Who measures.
        evaluator: What they are sent, once.
        candidates: ``B`` precisions.

    Raises:
        InputError: If the network is on an accelerator.
    """

    workers: TaskWorkers
    evaluator: Evaluator
    candidates: Sequence[Precision]

    def __post_init__(self) -> None:
        require_cpu(self.evaluator.network.device)

    def __call__(self, assignments: Columns) -> Array:
        """Losses ``[P]`` of assignments ``[P, L]``."""
        asked = self.evaluator.named(self.candidates, assignments)
        losses = np.empty(len(assignments))
        for index, found in self._results(list(enumerate(asked))):
            losses[index] = self.evaluator.loss(found)
            self.evaluator.took(asked[index], found)
        return losses

    @cached_property
    def _results(self) -> Callable[[Sequence[Row]], Iterator[tuple[int, Measurement]]]:
        # Only when something is measured: a study that is complete needs no workers.
        reference = self.evaluator.reference.with_its_examples()
        return self.workers.sent(replace(self.evaluator, reference=reference), _measured)


def _measured(evaluator: Evaluator, row: Row) -> tuple[int, Measurement]:
    """On a worker: which assignment, and what was measured of it."""
    index, precisions = row
    return index, evaluator.measure(precisions)
