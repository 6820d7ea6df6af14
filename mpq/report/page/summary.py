"""A result in a few rows, for a notebook."""

from dataclasses import dataclass
from typing import final

from mpq.report.page.facts import NetworkFacts, Resource


@final
@dataclass(frozen=True)
class Summary:
    """What is said where a result is shown as a value.

    Args:
        title: What was searched.
        sentences: The answer as a colleague would say it.
        loss_unit: Of predicted losses.
        metric_unit: Of measured ones.
        networks: Original, answer, uniform precisions.
        resources: Those whose costs are shown.
    """

    title: str
    sentences: tuple[str, ...]
    loss_unit: str
    metric_unit: str
    networks: tuple[NetworkFacts, ...]
    resources: tuple[Resource, ...]

    @property
    def has_scores(self) -> bool:
        """Whether there is a score of the user's own."""
        return any(network.measured.score is not None for network in self.networks)
