"""report.html: of a folder of saved files, or of several to compare."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote

from mpq._support.files import write_files
from mpq._support.json_object import read_text
from mpq.errors import FileFormatError, InputError
from mpq.report.frontier import Frontier
from mpq.report.page.comparison import Comparison
from mpq.report.page.facts import Facts
from mpq.report.page.made import Made
from mpq.report.page.render import comparing_page, page_of
from mpq.report.save import MADE_FILE, PAGE_FILE, write_drawn
from mpq.report.stored_frontier import frontier_from_json
from mpq.workflows.load import load
from mpq.workflows.page.facts import facts_of
from mpq.workflows.result import SearchResult

Value = TypeVar("Value")
COMPARING_FILE: Final = "mpq-report.html"
"""The page of several runs, which is in none of their folders."""


def write_page(result: SearchResult, frontier: Frontier, folder: Path, made: Made) -> list[Path]:
    """Writes made.json and the page of a result beside its files.

    Args:
        result: As it was saved there.
        frontier: The one that was drawn.
        folder: Of its files.
        made: How it was called, and what it took.

    Raises:
        OutputError: If a file cannot be written.
    """

    def page() -> bytes:
        return page_of(facts_of(result, _with_others(result, frontier), made))

    # As any picture: what it stumbles over costs no data.
    files = {MADE_FILE: made.to_json(result.run_id).encode()}
    return write_drawn(folder, files, {PAGE_FILE: page})


def report(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Makes the page again from saved files alone; of several folders one that compares them.

    Args:
        folders: Of a search each.
        output: The page; default: in the folder, of several where the command is run.

    Raises:
        FileFormatError: If a folder's files cannot be read.
        InputError: If there is no folder, or one is given twice.
        OutputError: If the file cannot be written.
    """
    if not folders:
        raise InputError("name a folder of a search, such as mpq-run")
    place = output or (folders[0] / PAGE_FILE if len(folders) == 1 else Path(COMPARING_FILE))
    page = page_of(facts_of_folder(folders[0])) if len(folders) == 1 else _comparing(folders, place)
    return write_files(place.parent, {place.name: page})[0]


def _comparing(folders: Sequence[Path], place: Path) -> bytes:
    names = list(map(str, folders))
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError(f"a folder is given twice: {', '.join(names)}")
    runs = {name: facts_of_folder(folder) for name, folder in zip(names, folders, strict=True)}
    pages = {name: _link(folder, place) for name, folder in zip(names, folders, strict=True)}
    return comparing_page(Comparison(runs, pages))


def _link(folder: Path, place: Path) -> str:
    """From a page to that of a folder, as an address; empty where there is none."""
    page = folder / PAGE_FILE
    if not page.exists():
        return ""
    return quote(Path(os.path.relpath(page.resolve(), place.resolve().parent)).as_posix())


def facts_of_folder(folder: Path) -> Facts:
    """What the page of a saved result says.

    Raises:
        FileFormatError: If a file is missing, or is no such file.
    """
    result = load(folder)
    path = folder / MADE_FILE
    made = _read(path, Made.from_json) if path.exists() else Made()
    return facts_of(result, _saved_frontier(result, folder), made)


def _read(path: Path, parse: Callable[[str], Value]) -> Value:
    try:
        return parse(read_text(path))
    except InputError as error:
        raise FileFormatError(f"{path}: {error}") from error


def _saved_frontier(result: SearchResult, folder: Path) -> Frontier:
    """The one that lies there, measured points with it; else solved for again."""
    path = folder / "frontier.json"
    if not path.exists():
        return _with_others(result, result.frontier())
    found = _read(path, frontier_from_json)
    names = set(result.assignment.precisions)
    for point in found.points:
        if point.precisions.keys() != names:
            raise FileFormatError(
                f"{path} is of a network with other layers than the result beside it: search "
                "again into a new folder"
            )
    return _with_others(result, found)


def _with_others(result: SearchResult, frontier: Frontier) -> Frontier:
    """With the answer and the uniform precisions beside it, as far as losses are of one kind."""
    others = result.beside(frontier.resource)
    if result.provenance.is_loss_measured:
        # Those of uniform precisions are predicted only.
        answer = (point for point in others if point.label == "result")
        others = tuple(replace(point, loss=result.solution.loss) for point in answer)
    return replace(frontier, others=others)
