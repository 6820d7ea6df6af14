"""One network beside others: what was predicted for it, what was measured, what it costs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, sqrt
from typing import final

import numpy as np

from mpq._support.arrays import Array
from mpq.network.metric import KL, OutputMetric


def _no_examples() -> Array:
    return np.empty(0)


@final
@dataclass(frozen=True)
class Measurement:
    """Measured on examples.

    Args:
        divergence: Mean divergence from the original network, per example; nats for ``kl``.
        accuracy: Share of targets that are the most likely class; ``None`` without targets.
        cross_entropy_nats: Mean negative log-likelihood of the targets; ``None`` without targets.
        num_examples: How many examples the means are over.
        metric: Metric that the divergence is in.
        by_example: ``[N]`` divergence of every example; none in a record that was loaded.
        score: What the task's own score says of the network; ``None``: it has none.
        standard_error: What the mean divergence may be off by, the standard deviation over examples
            divided by their root; by default from ``by_example``, ``None`` where that is of fewer
            than two, as in records of before.
    """

    divergence: float
    accuracy: float | None
    cross_entropy_nats: float | None
    num_examples: int
    metric: OutputMetric = KL
    by_example: Array = field(default_factory=_no_examples, compare=False, repr=False)
    score: float | None = None
    standard_error: float | None = None

    def __post_init__(self) -> None:
        count = len(self.by_example)
        if self.standard_error is None and count > 1:
            error = float(self.by_example.std(ddof=1)) / sqrt(count)
            # Some examples lose infinitely much where a probability is 0.
            object.__setattr__(self, "standard_error", error if isfinite(error) else None)

    @property
    def quantity(self) -> str:
        """Name of the divergence with its unit, for columns: ``kl_nats``."""
        # Hyphens, as in `squared-error`, are for options; keys and columns have underscores.
        return f"{self.metric.name}_{self.metric.unit}".replace("-", "_")

    @property
    def accuracy_error(self) -> float | None:
        """What the accuracy may be off by: the standard error of a share of so many examples."""
        if self.accuracy is None:
            return None
        return sqrt(self.accuracy * (1 - self.accuracy) / self.num_examples)

    def to_dict(self) -> dict[str, float | int | None]:
        """JSON-ready, with units in the keys."""
        scored = {} if self.score is None else {"score": self.score}
        return {
            self.quantity: self.divergence,
            "accuracy": self.accuracy,
            "cross_entropy_nats": self.cross_entropy_nats,
            **scored,
            "num_examples": self.num_examples,
        }


@final
@dataclass(frozen=True)
class ComparisonRow:
    """One row of a comparison: the original, the result, or a uniform precision.

    Args:
        label: ``original``, ``result``, or the precision.
        predicted_loss: By the estimator; ``None`` where it was not asked.
        measured: What the network loses on held-out examples.
        costs: Column name with unit to amount; ``nan`` where the device cannot run it.
    """

    label: str
    predicted_loss: float | None
    measured: Measurement
    costs: Mapping[str, float]
