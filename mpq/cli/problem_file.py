"""Reading a problem from a file, without torch."""

from collections.abc import Sequence
from pathlib import Path

from mpq.errors import FileFormatError
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.problem.table_file import LongTable


def load_problem(path: Path, limits: Sequence[str] = ()) -> tuple[Problem, dict[str, CostTable]]:
    """Reads ``problem.json`` of a search, or a CSV of ``Problem.from_csv``.

    Args:
        path: Ends in ``.json`` or ``.csv``.
        limits: In place of the file's; a CSV has none of its own.

    Returns:
        The problem, and the tables of all resources that the file knows.

    Raises:
        FileFormatError: If the file cannot be read or is neither.
        LimitError: If a limit is misspelled or has the wrong unit.
        UnknownNameError: If a limit is on a resource that the file does not have.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"cannot read {path}: {error}") from error
    if path.suffix == ".csv":
        # Read apart from the problem, which knows a column only if it has a limit.
        table = LongTable.from_csv(text)
        return Problem.from_table(table, limits), table.resources
    if path.suffix == ".json":
        found = Problem.from_json(text).within(limits)
        # The steps of a maximum are no resources of their own.
        sums = (budget.sum_table for budget in found.budgets)
        return found, {table.name: table for table in sums if table is not None}
    raise FileFormatError(f"{path} is neither .json (a problem) nor .csv (a table of layers)")
