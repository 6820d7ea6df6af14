"""What a network loses on every batch, and what that comes to over all of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import NamedTuple, Self, final

import numpy as np

from mpq._support.arrays import Array
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
class Sums:
    """One entry for every batch, in the order of the data.

    Args:
        divergences: ``[N]`` of each batch's examples, from the original's answers.
        on_targets: Each batch against its targets.
    """

    divergences: list[Array] = field(default_factory=list)
    on_targets: list[OnTargets] = field(default_factory=list)

    @classmethod
    def in_turn(cls, shares: Sequence["Sums"]) -> Self:
        """Of ranks that had every so-many-th batch: all batches again, in their order."""
        rows = (list(zip(x.divergences, x.on_targets, strict=True)) for x in shares)
        batches = [batch for row in zip_longest(*rows) for batch in row if batch is not None]
        divergences, on_targets = zip(*batches, strict=True)
        return cls(list(divergences), list(on_targets))

    def add(self, divergences: Array, on_targets: OnTargets) -> None:
        """One batch more."""
        self.divergences.append(divergences)
        self.on_targets.append(on_targets)

    def measurement(self, metric: OutputMetric) -> Measurement:
        """The mean over examples and over targets."""
        by_example = np.concatenate(self.divergences)
        counted = sum(x.counted for x in self.on_targets)
        return Measurement(
            # Of all examples and not of batches: the last batch may have fewer.
            divergence=float(by_example.sum()) / len(by_example),
            # By targets and not by examples: a sequence has one for every position.
            accuracy=sum(x.hits for x in self.on_targets) / counted if counted else None,
            cross_entropy_nats=(
                sum(x.cross_entropy for x in self.on_targets) / counted if counted else None
            ),
            num_examples=len(by_example),
            metric=metric,
            by_example=by_example,
        )
