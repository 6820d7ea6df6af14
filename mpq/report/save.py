"""Which files a result is written to: the only place that names them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mpq._support.files import write_files
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


def save_result(result: Saved, folder: Path | str, frontier: Frontier) -> list[Path]:
    """Writes assignment.json, problem.json, result.json, table.csv, comparison.csv, bits.png, and
    the files of ``save_frontier``, all with the mark of one run.

    Raises:
        OutputError: If the folder cannot be written to.
    """
    from mpq.report import draw_bits, png

    run_id = result.run_id
    files = {
        "assignment.json": _marked(result.assignment.to_json(), run_id),
        "problem.json": _marked(result.problem.to_json(), run_id),
        "result.json": _marked(result.to_json(), run_id),
        "table.csv": _csv(result.layer_table(), run_id),
        "comparison.csv": _csv(result.comparison_table(), run_id),
        "bits.png": png(draw_bits(result.assignment), run_id),
    }
    return write_files(Path(folder), files | _frontier_files(frontier, run_id))


def save_frontier(frontier: Frontier, folder: Path | str) -> list[Path]:
    """Writes frontier.csv, frontier.json and frontier.png.

    Raises:
        OutputError: If the folder cannot be written to.
    """
    return write_files(Path(folder), _frontier_files(frontier))


def save_alternatives(alternatives: Frontier, folder: Path | str, run_id: str) -> list[Path]:
    """Writes alternatives.csv, with the mark of the run that they belong to.

    Raises:
        OutputError: If the folder cannot be written to.
    """
    from mpq.report import frontier_table

    files = {"alternatives.csv": _csv(frontier_table(alternatives), run_id)}
    return write_files(Path(folder), files)


def _frontier_files(frontier: Frontier, run_id: str = "") -> dict[str, bytes]:
    from mpq.report import draw_frontier, frontier_table, png

    return {
        "frontier.csv": _csv(frontier_table(frontier), run_id),
        "frontier.json": _marked(frontier.to_json(), run_id),
        "frontier.png": png(draw_frontier(frontier), run_id),
    }


def _marked(text: str, run_id: str) -> bytes:
    """A JSON object with the run's mark."""
    if not run_id:
        return text.encode()
    return (json.dumps({**json.loads(text), "run_id": run_id}, indent=1) + "\n").encode()


def _csv(frame: "pd.DataFrame", run_id: str) -> bytes:
    marked = frame.assign(run_id=run_id) if run_id else frame
    return marked.to_csv(index=False).encode()
