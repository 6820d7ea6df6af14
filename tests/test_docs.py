"""Every block of code in the documentation is run, or held against the command line's options."""

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from mpq.cli.__main__ import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>.+?) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")
TABLE = re.compile(r"<!-- table: ([\w-]+) -->")
NOT_RUN = {
    "quickstart.md: installs a new environment",
}
"""Blocks that cannot be tried here, with why: a new one is a decision, not an accident."""
TARGET_PAGES = sorted((DOCS / "targets").glob("*.md"))
PACKAGES = {
    "auto-round": ("transformers", "auto_round"),
    "c": (),
    "compressed-tensors": ("transformers", "compressed_tensors"),
    "gguf": ("transformers", "gguf", "xllamacpp"),
    "litert": ("litert_torch", "ai_edge_litert"),
    "mlx": ("transformers", "mlx", "mlx_lm"),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "recipes": ("onnx", "onnxscript", "torchao", "yaml"),
    "torchao": ("transformers", "torchao"),
}
"""What a target's page needs to run: without, it is skipped."""
KINDS = {"python", "shell", "text", "toml", "c"}
# Held against the options: paths that a reader would have are not there.
ANY_FILE = re.compile(r"\S+\.(json|csv|safetensors)\b")


@dataclass(frozen=True)
class Block:
    """Code of a page.

    Args:
        page: Path within the documentation.
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
        yield Block(name_of(page), found["kind"], found["text"], found["why"])


def name_of(page: Path) -> str:
    """A page's path within the documentation."""
    return page.relative_to(DOCS).as_posix()


def python_pages() -> list[Path]:
    """Pages with Python that can run here, but for those of targets."""
    pages = [page for page in PAGES if page.parent == DOCS]
    return [page for page in pages if any(b.kind == "python" and not b.why for b in blocks(page))]


def commands() -> list[str]:
    """Every `mpq ...` of the shell blocks, continued lines joined."""
    return [line for page in PAGES for block in blocks(page) for line in lines_of(block)]


def lines_of(block: Block) -> list[str]:
    """The same of one block; none of other languages."""
    if block.kind != "shell" or block.why:
        return []
    lines = block.text.replace("\\\n", " ").splitlines()
    parts = [part.strip() for line in lines for part in line.split("#")[0].split("&&")]
    return [part for part in parts if part.startswith("mpq ")]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a page is tried in, with the network that pages share."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "net", raising=False)
    shared = [b.text for b in blocks(DOCS / "deploying.md") if b.text.startswith("# net.py\n")]
    (tmp_path / "net.py").write_text("".join(shared), encoding="utf-8")
    return tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("place", "small_demo", "same_process")
@pytest.mark.parametrize("page", python_pages(), ids=lambda page: page.stem)
def test_python_of_a_page_runs(page: Path) -> None:
    """The blocks of a page run in its order, each with the names of those before it."""
    names: dict[str, Any] = {"__name__": "page"}

    for block in blocks(page):
        if block.kind == "python" and not block.why:
            exec(compile(block.text, page.name, "exec"), names)


@pytest.mark.slow
@pytest.mark.usefixtures("place", "small_demo")
@pytest.mark.parametrize("page", TARGET_PAGES, ids=lambda page: page.stem)
def test_a_page_of_a_target_runs(page: Path, request: pytest.FixtureRequest) -> None:
    """Its commands and its Python, in its order; what is exported loads in the tool itself.

    Searches take the cheapest estimate: how losses are estimated is not the page's matter.
    """
    if page.stem != "openvino":  # the others' tests have one each in a process of its own
        request.getfixturevalue("same_process")
    for module in PACKAGES[page.stem]:
        pytest.importorskip(module)
    names: dict[str, Any] = {"__name__": "page"}

    for block in blocks(page):
        if block.kind == "python" and not block.why:
            exec(compile(block.text, page.name, "exec"), names)
        for line in lines_of(block):
            _, *words = shlex.split(line)
            cheap = ["--sensitivity", "weight-error"] if words[0] == "search" else []
            answer = CliRunner().invoke(app, [*words, *cheap])
            assert answer.exit_code == 0, f"{line}: {answer.output}"


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
    assert {page.stem for page in TARGET_PAGES} == set(PACKAGES)

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

    names = [name_of(page) for page in PAGES]
    assert [x for x in names if f"- {x}\n" not in menu and f": {x}\n" not in menu] == []


def test_every_link_leads_to_a_page() -> None:
    """The built pages have nothing but docs/ beside them: a link out of it is broken there."""
    inside = {page.resolve() for page in DOCS.rglob("*")}

    linked = [(page, link) for page in PAGES for link in LINK.findall(page.read_text("utf-8"))]

    assert linked
    assert [x for x in linked if (x[0].parent / x[1]).resolve() not in inside] == []


def test_every_public_name_is_in_the_api_page() -> None:
    """Also after somebody adds one."""
    import mpq

    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")

    assert [name for name in mpq.__all__ if f"mpq.{name}" not in text] == []
