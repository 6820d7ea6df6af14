"""report.html again: of one saved result, or of several searches to compare."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from mpq._support.files import write_files
from mpq.errors import InputError
from mpq.report.page.comparison import Comparison
from mpq.report.page.render import comparing_page
from mpq.report.save import PAGE_FILE
from mpq.workflows.page.folder import facts_of_folder
from mpq.workflows.page.saved import SEARCH, saved_at

COMPARING_FILE: Final = "mpq-report.html"
"""The page of several runs, which is in none of their folders."""


def report(paths: Sequence[Path], output: Path | None = None) -> Path:
    """Makes the page again from saved files alone; of several searches one that compares them.

    Args:
        paths: A folder of ``mpq search`` or ``mpq compare``, a file of ``mpq profile``, or several
            folders of searches.
        output: The page; default: in the folder or beside the file, of several where the command
            is run.

    Raises:
        FileFormatError: If a result's files cannot be read.
        InputError: If there is no result, one is given twice, or several are not all searches.
        OutputError: If the file cannot be written.
    """
    if not paths:
        raise InputError("name a folder of a search, such as mpq-run")
    if len(paths) == 1:
        saved = saved_at(paths[0])
        page, place = saved.page(saved.path), output or saved.place
    else:
        place = output or Path(COMPARING_FILE)
        page = _comparing(paths, place)
    return write_files(place.parent, {place.name: page})[0]


def _comparing(paths: Sequence[Path], place: Path) -> bytes:
    names = list(map(str, paths))
    for name, saved in zip(names, map(saved_at, paths), strict=True):
        if saved.what != SEARCH:
            raise InputError(
                f"{name} is {saved.what}: searches alone are compared on one page; report it alone"
            )
    if len({path.resolve() for path in paths}) < len(paths):
        raise InputError(f"a folder is given twice: {', '.join(names)}")
    runs = {name: facts_of_folder(path) for name, path in zip(names, paths, strict=True)}
    pages = {name: _link(path, place) for name, path in zip(names, paths, strict=True)}
    return comparing_page(Comparison(runs, pages))


def _link(folder: Path, place: Path) -> str:
    """From a page to that of a folder, as an address; empty where there is none."""
    page = folder / PAGE_FILE
    if not page.exists():
        return ""
    return quote(Path(os.path.relpath(page.resolve(), place.resolve().parent)).as_posix())
