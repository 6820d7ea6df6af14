"""What the README shows, works."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from mpq.cli.__main__ import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
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


def test_second_command_tests_what_was_tested() -> None:
    """The versions of a full green run are what the second command installs."""
    second = README.split("\n    ")[2].splitlines()[0]

    assert "-c requirements/tested.txt" in second
    assert second.endswith("-m pytest -n 2")


def test_it_is_read_in_two_minutes() -> None:
    """Whatever is longer belongs to docs/."""
    assert len(README.encode()) < 6000


def test_its_links_lead_somewhere() -> None:
    """Every relative link and picture is a file of the clone."""
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", README)

    local = [target for target in targets if not target.startswith("http")]

    assert len(local) > 10
    assert [target for target in local if not (ROOT / target).is_file()] == []


def test_its_picture_is_small() -> None:
    """A page that loads at once."""
    assert (ROOT / "docs" / "images" / "frontier.png").stat().st_size < 100_000
