"""What assignments lose, measured by other processes: each of them a task."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import final

import numpy as np

from mpq._support.arrays import Array, Columns
from mpq._support.events import audience, tell
from mpq._support.workers import TaskWorkers
from mpq.callbacks.results import Measured
from mpq.quantization.precision import Precision
from mpq.sensitivity.passes.cell_tasks import require_cpu
from mpq.workflows.evaluator import Evaluator

Row = tuple[int, list[int]]
"""Which assignment of a batch, and its columns."""


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
        losses = np.empty(len(assignments))
        for index, loss in self._results(list(enumerate(assignments.tolist()))):
            losses[index] = loss
            self._tell(assignments[index], loss)
        return losses

    def _tell(self, columns: Columns, loss: float) -> None:
        if audience() is None:
            return
        names = (layer.name for layer in self.evaluator.network.layers)
        chosen = (self.candidates[column] for column in columns.tolist())
        is_scored = self.evaluator.judge is not None
        unit = "score_drop" if is_scored else self.evaluator.reference.metric.unit
        precisions = MappingProxyType(dict(zip(names, chosen, strict=True)))
        tell(Measured(self.evaluator.examples, precisions, loss, unit))

    @cached_property
    def _results(self) -> Callable[[Sequence[Row]], Iterator[tuple[int, float]]]:
        # Only when something is measured: a study that is complete needs no workers.
        reference = self.evaluator.reference.with_its_examples()
        sent = replace(self.evaluator, reference=reference), self.candidates
        return self.workers.sent(sent, _loss)


def _loss(sent: tuple[Evaluator, Sequence[Precision]], row: Row) -> tuple[int, float]:
    """On a worker: which assignment, and what it loses."""
    (evaluator, candidates), (index, columns) = sent, row
    (loss,) = evaluator.losses_of(candidates)(np.array([columns], dtype=np.intp))
    return index, float(loss)
