"""Reading a problem from a file, without torch."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from mpq._support.json_object import read_text
from mpq._support.one_run import check_one_run
from mpq.errors import FileFormatError, InputError
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.problem.table_file import LongTable

Read = TypeVar("Read")


def load_problem(
    path: Path, limits: Sequence[str] = (), allow_missing: bool = False
) -> tuple[Problem, dict[str, CostTable]]:
    """The problem of a search, or one of a table that somebody else made.

    Args:
        path: A ``.json`` of ``Problem.to_json``, a ``.csv`` as for ``Problem.from_csv``, or a
            search's folder, whose ``problem.json`` is read.
        limits: Such as ``weight_bytes=300KiB``. Those of a JSON replace its own on the same
            resources and leave the others as they are; a CSV has none of its own.
        allow_missing: Whether layers of a CSV may lack precisions.

    Returns:
        The problem, and by name the tables of all resources that are sums over layers: every
        column of a CSV, and what a JSON has a limit on.

    Raises:
        FileFormatError: If the file cannot be read or is neither; names the file.
        LimitError: If a limit is misspelled or has the wrong unit.
        UnknownNameError: If a limit is on a resource that the file does not have.
    """
    if path.is_dir():
        check_one_run(path)
        path = path / "problem.json"
    text = read_text(path)
    if path.suffix == ".csv":
        # Read apart from the problem, which knows a column only if it has a limit.
        table = _read(path, partial(LongTable.from_csv, allow_missing=allow_missing), text)
        return Problem.from_table(table, limits), table.resources
    if path.suffix == ".json":
        found = _read(path, Problem.from_json, text).within(limits)
        # The steps of a maximum are no resources of their own.
        sums = (budget.sum_table for budget in found.budgets)
        return found, {table.name: table for table in sums if table is not None}
    raise FileFormatError(f"{path} is neither .json (a problem) nor .csv (a table of layers)")


def _read(path: Path, parse: Callable[[str], Read], text: str) -> Read:
    try:
        return parse(text)
    # Whatever does not fit together in it: nothing that the user wrote is read yet but the file.
    except InputError as error:
        raise FileFormatError(f"{path}: {error}") from error
