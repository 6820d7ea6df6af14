"""What a network loses on every batch, and what that comes to over all of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self, final

import numpy as np

from mpq._support.arrays import Array
from mpq.network.batch import Batch
from mpq.network.metric import OutputMetric
from mpq.report.measurement import Measurement


@final
class OnTargets(NamedTuple):
    """A batch against its targets.

    Args:
        counted: Targets that count.
        hits: Right answers among them.
        cross_entropy: Summed negative log-likelihood in nats.
    """

    counted: int = 0
    hits: int = 0
    cross_entropy: float = 0.0


@final
@dataclass(frozen=True)
class BatchLoss:
    """What is lost on one batch.

    Args:
        start: Index of its first example among all.
        divergences: ``[N]`` of its examples from the original's answers.
        on_targets: Against its targets.
    """

    start: int
    divergences: Array
    on_targets: OnTargets


@final
@dataclass(frozen=True)
class Sums:
    """What is lost on all batches, in the order of the data.

    Args:
        batches: One entry each.
    """

    batches: list[BatchLoss] = field(default_factory=list)

    @classmethod
    def joined(cls, shares: Sequence["Sums"]) -> Self:
        """Of ranks that had some batches each: all batches in their order."""
        found = (batch for share in shares for batch in share.batches)
        return cls(sorted(found, key=lambda batch: batch.start))

    def add(self, batch: Batch, divergences: Array, on_targets: OnTargets) -> None:
        """One batch more."""
        self.batches.append(BatchLoss(batch.start, divergences, on_targets))

    def measurement(self, metric: OutputMetric) -> Measurement:
        """The mean over examples and over targets."""
        by_example = np.concatenate([batch.divergences for batch in self.batches])
        found = [batch.on_targets for batch in self.batches]
        counted = sum(x.counted for x in found)
        return Measurement(
            # Of all examples and not of batches: the last batch may have fewer.
            divergence=float(by_example.sum()) / len(by_example),
            # By targets and not by examples: a sequence has one for every position.
            accuracy=sum(x.hits for x in found) / counted if counted else None,
            cross_entropy_nats=sum(x.cross_entropy for x in found) / counted if counted else None,
            num_examples=len(by_example),
            metric=metric,
            by_example=by_example,
        )
