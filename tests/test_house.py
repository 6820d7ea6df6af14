"""The house is measured as it stands: a tiny package whose counts are known."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

import pytest

FILES = {
    "README.md": "Tiny.\n",
    "tiny/__init__.py": '"""Tiny."""\n',
    "tiny/py.typed": "",
    "tiny/ground.py": '''"""Imports nothing of the package."""

import os  # noqa: F401

LIMIT = 3  # More than three were never seen.
SIZES = [1, 2]  # [B]


def wide(a, b, /, c, *rest, d=1, **others):
    """Six parameters.

    Args:
        a: Of each.
        b: Offset of the first.
        c: What is added.
            d: Of no entry of its own.

    Returns:
        e: Of nothing.
    """
    # It is a trick,
    # told in two lines.
    return a


def _wider(a, b, c, d, e, f, g):
    return (
        a,
        b,
        c,
    )
''',
    "tiny/middle/__init__.py": '"""Middle."""\n\nfrom tiny.middle.first import First\n',
    "tiny/middle/first.py": '''"""A dataclass, and a cycle that only type checkers see."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import ground

if TYPE_CHECKING:
    from tiny.middle.second import Second


@dataclass(frozen=True)
class First:
    """Two fields."""

    low: int
    high: int

    def sum(self, scale):
        """One parameter beside ``self``."""
        return scale * ground.LIMIT
''',
    "tiny/middle/second.py": '''"""Imports its neighbour at once."""

from .first import First


class Second(First):
    @staticmethod
    def of(text):
        return text
''',
    "tiny/roof.py": '''"""A cycle through a function."""

import tiny.middle.second


def build():
    import tiny.attic

    return tiny.attic
''',
    "tiny/attic.py": '"""Imports the roof."""\n\nfrom tiny.roof import build\n',
}


class Measured(Protocol):
    """Runs the script on some folders."""

    def __call__(self, *paths: Path) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture(scope="session")
def measured(root: Path) -> Measured:
    """The script, as a person runs it."""

    def run(*paths: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(root / "scripts" / "house.py"), *map(str, paths)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny package."""
    folder = tmp_path_factory.mktemp("house")
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / "tiny"


@pytest.fixture(scope="module")
def house(tiny: Path, measured: Measured) -> Any:
    """What is measured of the tiny package."""
    return json.loads(measured(tiny).stdout)[str(tiny)]


def test_entries_are_counted(house: Any) -> None:
    """Files and folders, the marker for type checkers among them; loose are the modules only."""
    found = [house[key] for key in ("entries", "loose_modules", "files", "readme_bytes")]

    assert found == [6, 3, 7, 6]


def test_imports_have_floors_and_cycles(house: Any) -> None:
    """A cycle through a function or between types is found where these imports count."""
    kinds = house["imports"]

    cycles = {
        kind: [kinds[kind][level]["cycles"] for level in ("entries", "files")] for kind in kinds
    }
    floors = {
        kind: [kinds[kind][level]["floors"] for level in ("entries", "files")] for kind in kinds
    }

    in_function = ["tiny.attic", "tiny.roof"]
    for_types = ["tiny.middle.first", "tiny.middle.second"]
    assert cycles == {
        "at_import": [[], []],
        "and_in_functions": [[in_function], [in_function]],
        "and_type_checking": [[in_function], [in_function, for_types]],
    }
    assert floors == {
        "at_import": [4, 5],  # ground, middle (first, second), roof, attic
        "and_in_functions": [3, 4],
        "and_type_checking": [3, 3],
    }


def test_arrows_between_files(house: Any) -> None:
    """Each pair once; a folder is no arrow to itself."""
    arrows = house["imports"]["and_type_checking"]

    # Files: __init__ to first, first to ground and second, second to first, roof to second and
    # attic, attic to roof.
    assert arrows["files"]["arrows"] == 7
    assert arrows["entries"]["arrows"] == 4


def test_the_widest_signature(house: Any) -> None:
    """Starred parameters count; private functions only among all."""
    assert house["widest_signature"] == {
        "public": {"name": "tiny.ground.wide", "parameters": 6},
        "all": {"name": "tiny.ground._wider", "parameters": 7},
    }
    assert house["widest_dataclass"] == {"name": "tiny.middle.first.First", "fields": 2}


def test_comments_for_a_person(house: Any) -> None:
    """Not those for tools, and shapes at line ends for themselves."""
    # Lines of code by file: ground 12, middle 1, first 10, second 5, roof 4, attic 1.
    assert house["comments"] == {
        "code_lines": 33,
        "comments": 3,
        "per_100_lines": 9.09,
        "shapes_at_line_ends": 1,
    }


def test_lengths_of_functions(house: Any) -> None:
    """Bodies without docstrings: 1 line, 1, 1, 3 and 5."""
    assert house["functions"] == {
        "number": 5,
        "median_lines": 1,
        "percentile_90_lines": 5,
        "longest": {"name": "tiny.ground._wider", "lines": 5},
    }


def test_bare_genitives(house: Any) -> None:
    """Only entries of arguments, only those that begin with the owner."""
    assert house["docstring_arguments"] == {"entries": 3, "bare_genitives": 1}


def test_two_packages_are_compared(tiny: Path, measured: Measured) -> None:
    """Each under the path by which it was named, with the command beside them."""
    other = tiny / "middle"

    found = json.loads(measured(tiny, other).stdout)

    assert list(found) == ["command", str(tiny), str(other)]
    assert found["command"] == f"python scripts/house.py {tiny} {other}"
    assert found[str(other)]["files"] == 3


def test_a_folder_that_is_no_package(tmp_path: Path, measured: Measured) -> None:
    """The folder of the repository instead of the package's is a mistake that is told."""
    run = measured(tmp_path)

    assert run.returncode == 1
    assert "expected the folder of a package, but it has no __init__.py" in run.stderr
