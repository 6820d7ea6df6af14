"""A short soak; `make soak` takes ten minutes and every command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.soak_commands import COMMANDS, comparable, measured, rows

unix = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked and killed")


@unix
def test_killed_commands_lose_nothing(root: Path) -> None:
    """A search with a journal, a file, a study, and a target's folder: one round each."""
    names = ["search, measured", "quantize", "solve", "export --to onnx-qdq"]
    numbers = [number for number, command in enumerate(COMMANDS) if command.name in names]
    only = [text for number in numbers for text in ("--only", str(number))]

    run = subprocess.run(
        [sys.executable, "-m", "scripts.soak", *only],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["failures"] == []
    assert found["tried"]["run again"] == len(numbers) == len(names)
    assert found["tried"]["SIGKILL"] > 0
    assert found["tried"]["rows on disk at a kill or at its rerun"] > 0


def test_half_a_line_is_no_row(tmp_path: Path) -> None:
    """A row without its end was never promised; one that is there twice was measured twice."""
    kept = tmp_path / "kept"
    line = '{"name": "batch 0, layer a", "row": 1}\n'
    kept.write_text(f'{{"mpq_journal": 2}}\n{line}{line}{{"name": "b"')

    found = rows(kept)

    assert found == ['{"mpq_journal": 2}\n', line, line]
    assert measured(found) == ["batch 0, layer a"] * 2


def test_what_a_clock_has_measured_is_not_compared(tmp_path: Path) -> None:
    """Nor the mark of a run, which times are a part of; everything else is."""
    names = ("one.json", "other.json", "third.json")
    one, other, third = (tmp_path / name for name in names)
    one.write_text('{"seconds": 1.0, "loss": 2.0, "run_id": "mpq-run-0123456789abcdef"}')
    other.write_text('{"seconds": 3.0, "loss": 2.0, "run_id": "mpq-run-fedcba9876543210"}')
    third.write_text('{"seconds": 1.0, "loss": 2.5, "run_id": "mpq-run-0123456789abcdef"}')

    assert comparable(one) == comparable(other) != comparable(third)
