"""Notebooks run from top to bottom, and show what they were stored with."""

import re
from math import isclose
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
NEEDED = {
    "2_latency_budget": ("onnxruntime", "onnxscript"),
    "3_language_model_to_deployment": ("transformers", "gguf", "xllamacpp"),
}
"""What a notebook needs to run: without, it is skipped."""
NUMBER = re.compile(r"-?\d+\.?\d*(?:e[+-]?\d+)?")


def shown(cell: Any) -> str:
    """What a cell prints and returns, as text, white space as one blank."""
    texts = []
    for output in cell.get("outputs", ()):
        # Of libraries on standard error: versions of theirs say other things.
        if output.get("name") != "stderr":
            texts.append(output.get("text") or output.get("data", {}).get("text/plain", ""))
    return " ".join(" ".join(texts).split())


def is_alike(found: str, stored: str) -> bool:
    """The same words, and numbers within 5 %: other processors add up in another order."""
    if NUMBER.sub("#", found) != NUMBER.sub("#", stored):
        return False
    pairs = zip(NUMBER.findall(found), NUMBER.findall(stored), strict=True)
    return all(isclose(float(a), float(b), rel_tol=0.05, abs_tol=1e-6) for a, b in pairs)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the Jupyter client itself
def test_notebook_runs(path: Path) -> None:
    """Every cell runs without an error, and shows what is stored, but for measured times."""
    for package in NEEDED.get(path.stem, ()):
        pytest.importorskip(package, reason=f"{path.stem} needs {package}")
    notebook = nbformat.read(path, as_version=4)
    stored = [shown(cell) for cell in code_cells(notebook)]

    executed = NotebookClient(notebook, timeout=300).execute()

    cells = code_cells(executed)
    assert all(cell.get("execution_count") for cell in cells)
    other = [
        f"{now}\n    stored: {before}"
        for now, before, cell in zip(map(shown, cells), stored, cells, strict=True)
        if "varies" not in cell.metadata.get("tags", ()) and not is_alike(now, before)
    ]
    assert other == [], "run scripts/notebooks.py, and look at the pictures"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_was_stored_whole(path: Path) -> None:
    """Run from top to bottom without an error, nothing of the machine or the clock in it."""
    notebook = nbformat.read(path, as_version=4)
    cells = code_cells(notebook)

    counts = [cell.execution_count for cell in cells]
    kinds = {output.output_type for cell in cells for output in cell.outputs}

    assert counts == list(range(1, len(cells) + 1))
    assert "error" not in kinds
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)
    assert not any(output.get("name") == "stderr" for cell in cells for output in cell.outputs)
