"""A result, a frontier, a comparison as a folder of files."""

from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final

from mpq._support.events import warn
from mpq._support.files import Content, remove_files, write_files
from mpq._support.names import for_people
from mpq.errors import InputError
from mpq.problem.companions import companions
from mpq.report.frontier import Frontier
from mpq.report.page.made import MADE_FILE
from mpq.report.sections import (
    OWN,
    Picture,
    Saved,
    Section,
    csv_of,
    frontier_files,
    frontier_pictures,
    marked,
)

PAGE_FILE: Final = "report.html"
"""The page, which ``mpq.workflows.page`` makes of the other files."""
BEHIND: Final = "frontier"
"""Folder of the search that a frontier alone is of, with its page."""


def save_result(
    result: Saved, folder: Path | str, frontier: Frontier, sections: Iterable[Section] = OWN
) -> list[Path]:
    """Writes assignment.json, problem.json, result.json and the files of the sections, all with
    the mark of one run. Pictures come last: one that cannot be drawn is a warning, and no data is
    lost to it.

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
    files: dict[str, Content] = {
        "assignment.json": marked(result.assignment.to_json(), run_id),
        "problem.json": marked(result.problem.to_json(), run_id),
        "result.json": marked(result.to_json(), run_id),
    }
    asked = result.assignment
    beside, others = companions(asked.weights, asked.reparametrization, asked.tuned)
    files |= beside
    pictures: dict[str, Picture] = {}
    for section in sections:
        made, drawn = section.files(result, frontier), section.pictures(result, frontier)
        # A later file of the same name would replace what mpq.load and people read.
        twice = sorted((made.keys() | drawn.keys()) & (files.keys() | pictures.keys()))
        if twice:
            raise InputError(f"the report section {section.name} would replace {twice[0]}")
        files |= made
        pictures |= drawn
    # In one call, so that a failure leaves no folder of old and new files.
    written = write_drawn(Path(folder), files, pictures)
    remove_files(Path(folder), [*others, PAGE_FILE, MADE_FILE])  # of an earlier run
    return written


def write_drawn(
    folder: Path, files: Mapping[str, Content], pictures: Mapping[str, Picture]
) -> list[Path]:
    """Data first, then what can be drawn of the pictures; a warning says what cannot."""
    written = write_files(folder, files)
    drawn = {}
    for name, draw in pictures.items():
        try:
            drawn[name] = draw()
        # Whatever a library for pictures stumbles over: the numbers are on disk already.
        except Exception as error:
            warn(
                f"{name} could not be drawn ({type(error).__name__}: {for_people(str(error))}); "
                "all data is written",
                stacklevel=3,
            )
    # One of an earlier run beside today's data would be believed.
    remove_files(folder, pictures.keys() - drawn.keys())
    return written + write_files(folder, drawn)


def save_frontier(frontier: Frontier, folder: Path | str) -> list[Path]:
    """Writes frontier.csv, frontier.json and frontier.png, with one mark.

    Raises:
        OutputError: If the folder cannot be written to.
    """
    mark = mark_of("frontier", frontier.to_json())
    return write_drawn(
        Path(folder), frontier_files(frontier, mark), frontier_pictures(frontier, mark)
    )


def mark_of(what: str, content: str) -> str:
    """What all files of one frontier or comparison say; another than that of a search's run.

    Beside a search's files they are no files of a second run: a frontier may be asked for later.
    """
    return f"mpq-{what}-{sha256(content.encode()).hexdigest()[:16]}"


def save_alternatives(alternatives: Frontier, folder: Path | str, run_id: str) -> list[Path]:
    """Writes alternatives.csv, with the mark of the run that they belong to.

    Raises:
        OutputError: If the folder cannot be written to.
    """
    from mpq.report.tables import frontier_table

    return write_files(
        Path(folder), {"alternatives.csv": csv_of(frontier_table(alternatives), run_id)}
    )
