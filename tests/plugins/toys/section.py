"""A report section of another package: what the result is worth, in a sentence."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from mpq.report import Section
from mpq.report.frontier import Frontier
from mpq.report.sections import Saved


@final
@dataclass(frozen=True)
class ToySection(Section):
    """How many layers there are, and how many points the frontier has.

    Args:
        file: Where the sentence goes.
    """

    name: ClassVar[str] = "toy-section"
    summary: ClassVar[str] = "a sentence: toy.txt"

    file: str = "toy.txt"

    def files(self, result: Saved, frontier: Frontier) -> Mapping[str, bytes]:
        """See ``Section.files``."""
        layers, points = len(result.assignment.layers), len(frontier.points)
        sentence = f"{result.run_id}: {layers} layers, {points} points\n"
        return {self.file: sentence.encode()}
