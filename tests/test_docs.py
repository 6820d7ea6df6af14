"""Every block of code in the documentation is run, or held against the command line's options."""

import re
import runpy
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from typer.main import get_command

from mpq.cli.__main__ import app

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>.+?) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)
TABLE = re.compile(r"<!-- table: ([\w-]+) -->")
NOT_RUN = {
    "quickstart.md: installs a new environment",
}
"""Blocks that cannot be tried here, with why: a new one is a decision, not an accident."""
KINDS = {"python", "shell", "text", "toml", "c"}
# Held against the options: paths that a reader would have are not there.
ANY_FILE = re.compile(r"\S+\.(json|csv|safetensors)\b")


@dataclass(frozen=True)
class Block:
    """Code of a page.

    Args:
        page: File name.
        kind: Language.
        text: The code.
        why: Why it is not run, or nothing.
    """

    page: str
    kind: str
    text: str
    why: str | None


def blocks(page: Path) -> Iterator[Block]:
    """In the page's order."""
    for found in BLOCK.finditer(page.read_text(encoding="utf-8")):
        yield Block(page.name, found["kind"], found["text"], found["why"])


def python_pages() -> list[Path]:
    """Pages with Python that can run here."""
    return [page for page in PAGES if any(b.kind == "python" and not b.why for b in blocks(page))]


def commands() -> list[str]:
    """Every `mpq ...` of the shell blocks, continued lines joined."""
    shell = [b for page in PAGES for b in blocks(page) if b.kind == "shell" and not b.why]
    lines = [line for b in shell for line in b.text.replace("\\\n", " ").splitlines()]
    parts = [part.strip() for line in lines for part in line.split("#")[0].split("&&")]
    return [part for part in parts if part.startswith("mpq ")]


@pytest.mark.slow
@pytest.mark.parametrize("page", python_pages(), ids=lambda page: page.stem)
def test_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run in its order, each with the names of those before it."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}

    for block in blocks(page):
        if block.kind == "python" and not block.why:
            exec(compile(block.text, page.name, "exec"), names)


@pytest.mark.parametrize("line", commands())
def test_a_command_has_these_options(line: str, tmp_path: Path) -> None:
    """A shell line is one that `mpq` takes: command, options and their types."""
    file = tmp_path / "file"
    file.touch()
    _, name, *words = shlex.split(ANY_FILE.sub(str(file), line))
    command = get_command(app).commands[name]  # type: ignore[attr-defined]

    with click.Context(command, info_name=name) as context:
        command.parse_args(context, words)


def test_what_is_not_run_is_listed() -> None:
    """No block is left out silently."""
    left_out = [f"{b.page}: {b.why}" for page in PAGES for b in blocks(page) if b.why]

    assert set(left_out) == NOT_RUN
    assert len(left_out) == len(NOT_RUN)


def test_every_block_says_its_language() -> None:
    """A block without one would be neither run nor left out."""
    fences = [line for page in PAGES for line in page.read_text("utf-8").splitlines()]

    opened = [line for line in fences if line.startswith("```") and line != "```"]

    assert {line[3:] for line in opened} <= KINDS
    assert 2 * len(opened) == sum(line.startswith("```") for line in fences)


def test_every_table_is_made_and_shown() -> None:
    """Pages and script name the same tables, and each has rows from the committed JSON."""
    tables = runpy.run_path(str(ROOT / "scripts" / "benchmark_tables.py"))["TABLES"]
    shown = {name for page in PAGES for name in TABLE.findall(page.read_text("utf-8"))}

    made = {name: make() for name, make in tables.items()}

    assert shown == set(made)
    for text in made.values():
        head, rule, *rows = text.splitlines()
        assert rows
        assert {row.count("|") for row in (head, rule, *rows)} == {head.count("|")}


def test_every_page_is_in_the_navigation() -> None:
    """A page that no menu names is found by nobody."""
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")

    assert [page.name for page in PAGES if f"- {page.name}\n" not in menu and
            f": {page.name}\n" not in menu] == []  # fmt: skip


def test_every_public_name_is_in_the_api_page() -> None:
    """Also after somebody adds one."""
    import mpq

    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")

    assert [name for name in mpq.__all__ if f"mpq.{name}" not in text] == []
