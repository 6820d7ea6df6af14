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

Row = tuple[int, dict[str, Precision], float | None]
"""Which assignment of a batch, its precisions, and its score where that is known."""


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
        losses, quantizer = np.empty(len(assignments)), self.evaluator.quantizer
        judge = self.evaluator.judge
        scores = [None if judge is None else judge.known(quantizer, each) for each in asked]
        rows = [(index, each, scores[index]) for index, each in enumerate(asked)]
        for index, found in self._results(rows):
            losses[index] = self.evaluator.loss(found)
            self.evaluator.took(asked[index], found)
            if judge is not None and found.score is not None and scores[index] is None:
                judge.took(quantizer, asked[index], found.score)
        return losses

    @cached_property
    def _results(self) -> Callable[[Sequence[Row]], Iterator[tuple[int, Measurement]]]:
        # Only when something is measured: a study that is complete needs no workers.
        reference = self.evaluator.reference.with_its_examples()
        judge = self.evaluator.judge
        # Examples of a built-in score are in memory as well.
        sent = None if judge is None else replace(judge.sent, data=reference.data)
        shared = replace(self.evaluator, reference=reference, judge=sent)
        return self.workers.sent(shared, _measured)


def _measured(evaluator: Evaluator, row: Row) -> tuple[int, Measurement]:
    """On a worker: which assignment, and what was measured of it."""
    index, precisions, score = row
    if score is None:
        return index, evaluator.measure(precisions)
    found = replace(evaluator, judge=None).measure(precisions)
    return index, replace(found, score=score)
