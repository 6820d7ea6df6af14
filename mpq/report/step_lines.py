"""Which layers lose at which steps of a diffusion, in words."""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from mpq._support.arrays import Array, Columns
from mpq.quantization.steps import StepClusters

SHOWN: Final = 3
"""Layers that are named of each cluster."""


def step_lines(
    clusters: StepClusters,
    names: Sequence[str],
    losses: Array,
    examples: Array,
    columns: Columns,
) -> Iterator[str]:
    """A line for each cluster: what it has of the predicted loss, and the layers that lose most.

    Args:
        clusters: ``T`` of them.
        names: ``[L]``.
        losses: ``[L, B, T]`` mean loss over the examples of each.
        examples: ``[T]`` their shares.
        columns: ``[L]`` what was chosen.
    """
    chosen = losses[np.arange(len(names)), columns] * examples  # [L, T]
    whole = chosen.sum()
    if not whole > 0:
        return
    for cluster in range(clusters.count):
        own = chosen[:, cluster]
        first = np.argsort(-own, kind="stable")[:SHOWN]
        told = ", ".join(f"{names[row]} {own[row] / whole:.1%}" for row in first if own[row] > 0)
        yield (
            f"{clusters.spelled(cluster)}: {own.sum() / whole:.1%} of layers' predicted losses, "
            f"of {examples[cluster]:.1%} of the examples{': ' if told else ''}{told}"
        )
