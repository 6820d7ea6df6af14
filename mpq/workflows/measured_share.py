"""A rank's own share of what the first one has measured."""

from dataclasses import dataclass, field
from typing import final

from mpq._support.ranks import Ranks
from mpq.errors import MpqError
from mpq.network.modules import share_parameters
from mpq.workflows.evaluate import Reference
from mpq.workflows.evaluator import Evaluator
from mpq.workflows.setup import Prepared
from mpq.workflows.shared_measurements import HELD_OUT, Asked
from mpq.workflows.sums import Sums


@final
@dataclass(frozen=True, eq=False)
class MeasuredShare:
    """Measures on every so-many-th batch, of which it keeps the original's answers.

    Args:
        prepared: The rank's own.
        ranks: Who shares the batches.
    """

    prepared: Prepared
    ranks: Ranks
    _known: dict[str, Evaluator] = field(default_factory=dict, init=False)

    def __call__(self, asked: Asked) -> Sums | MpqError:
        """What is asked; an error that anybody's batches may raise is told, and no end of it."""
        examples, precisions = asked
        try:
            if examples not in self._known:
                self._known[examples] = self._evaluator(examples)
            return self._known[examples].sums(precisions)
        except MpqError as error:
            return error

    def _evaluator(self, examples: str) -> Evaluator:
        prepared = self.prepared
        if self.ranks.is_first:  # which knows all answers, and has checked them
            is_held_out = examples == HELD_OUT
            evaluator = prepared.on_held_out if is_held_out else prepared.on_calibration
            reference = evaluator.reference.share(self.ranks)
        else:
            data = prepared.held_out if examples == HELD_OUT else prepared.calibration
            plain, metric = share_parameters(prepared.task.model), prepared.network.metric
            reference = Reference(plain, data.share(self.ranks), metric, is_repeatable=True)
        return Evaluator(prepared.network, prepared.quantizer, reference)
