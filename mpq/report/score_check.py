"""The answer beside uniform precisions, by the user's own score."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class ScoreCheck:
    """What the user's own score says of the answer and of what stands beside it.

    Args:
        name: The score's.
        original: Of the original.
        answer: Of the answer so far.
        uniform: Of every other uniform precision within the budgets, by its name.
    """

    name: str
    original: float
    answer: float
    uniform: Mapping[str, float]

    def sentence(self, replaced_by: str | None) -> str:
        """What was found, for people.

        Args:
            replaced_by: The uniform precision that became the answer.
        """
        told = f"{self.name}: {self.answer:.4g}, of the original {self.original:.4g}"
        if replaced_by is not None:
            better = self.uniform[replaced_by]
            return (
                f"{told}, of uniform {replaced_by} {better:.4g}, which meets the same budgets: it "
                "is the answer"
            )
        if not self.uniform:
            return f"{told}; no other uniform precision meets these budgets"
        return f"{told}; no uniform precision within the budgets has a better one"
