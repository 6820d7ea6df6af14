"""One network beside others: what was predicted for it, what was measured, what it costs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from mpq.evaluation import Measurement


@final
@dataclass(frozen=True)
class Compared:
    """One row of a comparison: the original, the result, or a uniform precision.

    Args:
        label: ``original``, ``result``, or the precision.
        predicted_loss: By the estimator; ``None`` where it was not asked.
        measured: On held-out examples.
        costs: Column name with unit to amount; ``nan`` where the device cannot run it.
    """

    label: str
    predicted_loss: float | None
    measured: Measurement
    costs: Mapping[str, float]
