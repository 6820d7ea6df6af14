"""What a measurement says of an example: how much worse an output is than the original's."""

from collections.abc import Callable

import torch
from torch import Tensor

from mpq.network.examples import Batch
from mpq.network.metric import CosineDistance, OutputMetric
from mpq.network.outputs import position_weights
from mpq.network.targets import class_targets, cross_entropy, target_weights

Score = Callable[[OutputMetric, Batch, Tensor, Tensor], Tensor]
"""From metric, batch, the original's and the other's outputs ``[N, P, C]`` to ``[M]`` float64, one
for each example that counts."""


def _divergence(metric: OutputMetric, batch: Batch, original: Tensor, changed: Tensor) -> Tensor:
    apart = metric.divergence(original, changed)
    return (apart * position_weights(batch, changed)).sum(dim=1)


def _loss(_: OutputMetric, batch: Batch, original: Tensor, changed: Tensor) -> Tensor:
    return _cross_entropy(batch, changed) - _cross_entropy(batch, original)


def _cross_entropy(batch: Batch, logits: Tensor) -> Tensor:
    """``[M]``: mean over the targets of every example that has one."""
    targets = class_targets(batch, logits, "score=loss, unlike score=divergence,")
    weights = target_weights(targets)
    losses: Tensor = (cross_entropy(targets, logits) * weights).sum(dim=1)
    return losses[weights.sum(dim=1) > 0]


def _noise_to_signal(_: OutputMetric, batch: Batch, original: Tensor, changed: Tensor) -> Tensor:
    weights = position_weights(batch, original)
    noise = (changed.double() - original.double()).square().sum(dim=2)  # [N, P]
    power = original.double().square().sum(dim=2)
    tiny = torch.finfo(torch.float64).tiny  # an output of zeros that stays so costs 0
    return (noise * weights).sum(dim=1) / (power * weights).sum(dim=1).clamp_min(tiny)


def _decibels(metric: OutputMetric, batch: Batch, original: Tensor, changed: Tensor) -> Tensor:
    """Below ``MOST_DB``, which outputs that stay as they are have."""
    ratio = _noise_to_signal(metric, batch, original, changed)
    return 10 * ratio.clamp_min(10 ** (-MOST_DB / 10)).log10() + MOST_DB


def _cosine(_: OutputMetric, batch: Batch, original: Tensor, changed: Tensor) -> Tensor:
    return _divergence(CosineDistance(), batch, original, changed)


SCORES: dict[str, Score] = {
    "divergence": _divergence,
    "loss": _loss,
    "sqnr": _noise_to_signal,
    "cosine": _cosine,
    "decibels": _decibels,
}
"""What ``score`` may be."""
MOST_DB = 200.0
"""Signal to noise of outputs that differ by nothing, so that all costs are finite."""
OWN = "own"
"""What ``score`` is where the task's own score is asked."""
UNITS = {"loss": "nats", "sqnr": "relative", "cosine": "relative", "decibels": "decibels"}
"""Of the scores that have one of their own."""
