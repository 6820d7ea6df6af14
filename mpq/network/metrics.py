"""Every metric by its name."""

from typing import Final

from mpq._support.registry import Registry
from mpq.network.metric import (
    CosineDistance,
    KLDivergence,
    OutputMetric,
    SquaredError,
)
from mpq.network.named_outputs import NamedOutputs

METRICS: Final[Registry[OutputMetric]] = Registry(
    "metric",
    (KLDivergence, SquaredError, CosineDistance, NamedOutputs),
    group="mpq.metrics",
)
"""Every metric, by the name that ``--metric`` takes."""
