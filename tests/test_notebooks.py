"""Notebooks run from top to bottom."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the Jupyter client itself
def test_notebook_runs(path: Path) -> None:
    """Every cell runs without an error."""
    notebook = nbformat.read(path, as_version=4)

    executed = NotebookClient(notebook, timeout=300).execute()

    assert all(cell.get("execution_count") for cell in executed.cells if cell.cell_type == "code")
