"""The parts of a result's folder beside its JSON: each one class that makes some of the files."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, final

from mpq._support.names import for_csv
from mpq._support.registry import Registry
from mpq.problem.assignment import Assignment
from mpq.problem.problem import Problem
from mpq.report.frontier import Frontier

if TYPE_CHECKING:
    import pandas as pd


class Saved(Protocol):
    """What of a search's result is written."""

    @property
    def run_id(self) -> str:
        """Mark of every file of the run."""

    @property
    def assignment(self) -> Assignment:
        """What a backend reads."""

    @property
    def problem(self) -> Problem:
        """What a solver reads."""

    def to_json(self) -> str:
        """All else that is known."""

    def layer_table(self) -> "pd.DataFrame":
        """One row per layer."""

    def comparison_table(self) -> "pd.DataFrame":
        """One row per network."""


Picture = Callable[[], bytes]
"""Draws a file. One that fails costs nothing but itself: a warning says so."""


class Section(ABC):
    """One part of what a search leaves for people, made from its numbers alone.

    A dataclass whose fields are its options; it sees no network.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def files(self, result: Saved, frontier: Frontier) -> Mapping[str, bytes]:
        """File names with what they hold; every file should carry ``result.run_id``.

        Args:
            result: What the search found.
            frontier: The one that is drawn beside it.
        """

    def pictures(self, result: Saved, frontier: Frontier) -> Mapping[str, Picture]:  # noqa: ARG002
        """File names with what draws them; drawn when all data is on disk.

        Args:
            result: What the search found.
            frontier: The one that is drawn beside it.
        """
        return {}


@final
@dataclass(frozen=True)
class Layers(Section):
    """One row for every layer, as CSV, and a picture of their bits."""

    name: ClassVar[str] = "layers"
    summary: ClassVar[str] = "every layer with its precision and costs: table.csv, bits.png"

    def files(self, result: Saved, frontier: Frontier) -> Mapping[str, bytes]:  # noqa: ARG002
        """See ``Section.files``."""
        return {"table.csv": csv_of(result.layer_table(), result.run_id)}

    def pictures(self, result: Saved, frontier: Frontier) -> Mapping[str, Picture]:  # noqa: ARG002
        """See ``Section.pictures``."""

        def bits() -> bytes:
            # Imported when called: matplotlib takes a second, and lists of sections need none.
            from mpq.report.pictures import draw_bits, figure_of, png

            return png(figure_of(draw_bits(result.assignment)), result.run_id)

        return {"bits.png": bits}


@final
@dataclass(frozen=True)
class Comparison(Section):
    """The result beside the original network and every uniform precision."""

    name: ClassVar[str] = "comparison"
    summary: ClassVar[str] = "result, original and uniform precisions, measured: comparison.csv"

    def files(self, result: Saved, frontier: Frontier) -> Mapping[str, bytes]:  # noqa: ARG002
        """See ``Section.files``."""
        return {"comparison.csv": csv_of(result.comparison_table(), result.run_id)}


@final
@dataclass(frozen=True)
class Curve(Section):
    """The least loss at every amount of one resource."""

    name: ClassVar[str] = "frontier"
    summary: ClassVar[str] = "least loss over one resource: frontier.csv, .json, .png"

    def files(self, result: Saved, frontier: Frontier) -> Mapping[str, bytes]:
        """See ``Section.files``."""
        return frontier_files(frontier, result.run_id)

    def pictures(self, result: Saved, frontier: Frontier) -> Mapping[str, Picture]:
        """See ``Section.pictures``."""
        return frontier_pictures(frontier, result.run_id)


SECTIONS: Registry[Section] = Registry(
    "report section", (Layers, Comparison, Curve), group="mpq.report_sections"
)
"""Every report section, by the name that ``mpq search --section`` takes."""

OWN = (Layers(), Comparison(), Curve())
"""What is always written; other packages' sections are written where they are asked for."""


def sections_of(names: Iterable[str]) -> tuple[Section, ...]:
    """Our own sections, then those that are named, with their options.

    Raises:
        UnknownNameError: If there is none of a name.
        InputError: If an option's value does not fit.
    """
    asked = {section.name: section for section in map(SECTIONS.build, names)}
    own = {section.name: section for section in OWN}
    return tuple((own | asked).values())


def frontier_files(frontier: Frontier, run_id: str = "") -> dict[str, bytes]:
    """frontier.csv and frontier.json."""
    from mpq.report.tables import frontier_table

    return {
        "frontier.csv": csv_of(frontier_table(frontier), run_id),
        "frontier.json": marked(frontier.to_json(), run_id),
    }


def frontier_pictures(frontier: Frontier, run_id: str = "") -> dict[str, Picture]:
    """frontier.png."""

    def draw() -> bytes:
        from mpq.report.pictures import draw_frontier, figure_of, png

        return png(figure_of(draw_frontier(frontier)), run_id)

    return {"frontier.png": draw}


def marked(text: str, run_id: str) -> bytes:
    """A JSON object with the run's mark."""
    if not run_id:
        return text.encode()
    # Parsed and written again: an assignment or a problem knows of no run, only its file does.
    return (json.dumps({**json.loads(text), "run_id": run_id}, indent=1) + "\n").encode()


def csv_of(frame: "pd.DataFrame", run_id: str) -> bytes:
    """A table as CSV, with the run's mark as its last column; no cell is a formula."""
    marked_frame = frame.assign(run_id=run_id) if run_id else frame
    # Texts only: a negative number begins with a sign as well, and is one.
    safe = marked_frame.map(lambda cell: for_csv(cell) if isinstance(cell, str) else cell)
    return safe.to_csv(index=False).encode()
