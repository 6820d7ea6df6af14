"""A result, a frontier, a comparison as a folder of files."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mpq._support.files import write_files
from mpq.errors import InputError
from mpq.report.frontier import Frontier
from mpq.report.sections import OWN, Saved, Section, csv_of, frontier_files, marked

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class SavedComparison(Protocol):
    """What of a comparison of estimators is written."""

    def table(self) -> "pd.DataFrame":
        """One row per estimator."""

    def predictions(self) -> "pd.DataFrame":
        """One row per random assignment."""

    def to_markdown(self) -> str:
        """The table, for people."""

    def plot(self) -> "Figure":
        """Predicted against measured."""


def save_result(
    result: Saved, folder: Path | str, frontier: Frontier, sections: Iterable[Section] = OWN
) -> list[Path]:
    """Writes assignment.json, problem.json, result.json and the files of the sections, all with
    the mark of one run.

    Args:
        result: What a search found.
        folder: Made if it does not exist; files of an earlier result are replaced.
        frontier: The one that is drawn beside the result.
        sections: What else is written.

    Raises:
        InputError: If two sections write a file of one name.
        OutputError: If the folder cannot be written to.
    """
    run_id = result.run_id
    files = {
        "assignment.json": marked(result.assignment.to_json(), run_id),
        "problem.json": marked(result.problem.to_json(), run_id),
        "result.json": marked(result.to_json(), run_id),
    }
    for section in sections:
        made = section.files(result, frontier)
        # A later file of the same name would replace what mpq.load and people read.
        twice = sorted(made.keys() & files.keys())
        if twice:
            raise InputError(f"the report section {section.name} would replace {twice[0]}")
        files |= made
    # In one call, so that a failure leaves no folder of old and new files.
    return write_files(Path(folder), files)


def save_frontier(frontier: Frontier, folder: Path | str) -> list[Path]:
    """Writes frontier.csv, frontier.json and frontier.png.

    Raises:
        OutputError: If the folder cannot be written to.
    """
    return write_files(Path(folder), frontier_files(frontier))


def save_alternatives(alternatives: Frontier, folder: Path | str, run_id: str) -> list[Path]:
    """Writes alternatives.csv, with the mark of the run that they belong to.

    Raises:
        OutputError: If the folder cannot be written to.
    """
    from mpq.report.tables import frontier_table

    return write_files(
        Path(folder), {"alternatives.csv": csv_of(frontier_table(alternatives), run_id)}
    )


def save_estimators(comparison: SavedComparison, folder: Path | str) -> list[Path]:
    """Writes estimators.csv, estimators.md, predictions.csv and predictions.png.

    Raises:
        OutputError: If the folder cannot be written to.
    """
    from mpq.report.pictures import png

    files = {
        "estimators.csv": csv_of(comparison.table(), run_id=""),
        "estimators.md": comparison.to_markdown().encode(),
        "predictions.csv": csv_of(comparison.predictions(), run_id=""),
        "predictions.png": png(comparison.plot()),
    }
    return write_files(Path(folder), files)
