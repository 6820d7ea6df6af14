"""The folder of a search, as what its page says."""

from dataclasses import replace
from pathlib import Path

from mpq._support.json_object import read_as
from mpq.errors import FileFormatError
from mpq.report.frontier import Frontier
from mpq.report.page.facts import Facts
from mpq.report.stored_frontier import frontier_from_json
from mpq.workflows.load import load
from mpq.workflows.page.facts import facts_of
from mpq.workflows.page.write import with_others
from mpq.workflows.result import SearchResult


def facts_of_folder(folder: Path) -> Facts:
    """What the page of a saved result says.

    Raises:
        FileFormatError: If a file is missing, or is no such file.
    """
    result = load(folder)
    return facts_of(result, _saved_frontier(result, folder))


def _saved_frontier(result: SearchResult, folder: Path) -> Frontier:
    """The one that lies there, measured points with it; else solved for again."""
    path = folder / "frontier.json"
    if not path.exists():
        return with_others(result, result.frontier())
    found = read_as(path, frontier_from_json)
    names = set(result.assignment.precisions)
    for point in found.points:
        if point.precisions.keys() != names:
            raise FileFormatError(
                f"{path} is of a network with other layers than the result beside it: search "
                "again into a new folder"
            )
    if found.is_by_trials:
        # An earlier mpq wrote the estimate's unit beside what was measured in another one.
        found = replace(found, loss_unit=result.loss_unit)
    return with_others(result, found)
