"""What the README shows, works."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from mpq.cli.__main__ import app

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ten lines of Python run as they stand, and leave a result behind."""
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

    exec(compile(example, "README.md", "exec"), {})

    assert (tmp_path / "mpq-run" / "assignment.json").is_file()


def test_options_of_the_command_exist() -> None:
    """Every option that the README names is one that `mpq search` or another command has."""
    commands = get_command(app).commands  # type: ignore[attr-defined]
    helps = [CliRunner().invoke(app, [command, "--help"]).output for command in commands]

    named = {word for word in re.findall(r"--[a-z][a-z-]+", README) if word != "--help"}

    assert {option for option in named if not any(option in text for text in helps)} == set()


def test_first_command_installs_and_searches() -> None:
    """The first command is the one that a newcomer copies; CI runs its last part elsewhere."""
    first = README.split("\n    ")[1].splitlines()[0]

    assert shlex.split(first.replace("&&", ";"))[-2:] == [".venv/bin/mpq", "search"]
