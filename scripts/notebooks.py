"""Runs notebooks from top to bottom and stores what they show, as their tests expect it.

    python scripts/notebooks.py                            # all of notebooks/
    python scripts/notebooks.py notebooks/1_first_search.ipynb

Look at the pictures afterwards. A cell whose numbers are measured on the machine that it runs on
has the tag ``varies``: `tests/test_notebooks.py` does not compare its output with the stored one.
"""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"


def run(path: Path) -> float:
    """Seconds that a notebook took; its outputs are stored in it."""
    notebook, start = nbformat.read(path, as_version=4), time.perf_counter()
    client = NotebookClient(notebook, timeout=300, record_timing=False)
    executed = client.execute(cwd=str(path.parent))
    for number, cell in enumerate(executed.cells):
        cell["id"] = f"cell-{number}"
        # Standard error is of libraries: what they miss on this machine, with its paths.
        kept = [x for x in cell.get("outputs", ()) if x.get("name") != "stderr"]
        if cell.cell_type == "code":
            cell["outputs"] = kept
    nbformat.write(executed, path)
    return time.perf_counter() - start


if __name__ == "__main__":
    for asked in map(Path, sys.argv[1:]) if sys.argv[1:] else sorted(FOLDER.glob("*.ipynb")):
        print(f"{asked.stem}: {run(asked):.1f} s")
