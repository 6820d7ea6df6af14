"""Installing from a clone leaves the clone as it was."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# The project's own build backend, without the network where setuptools is there already.
BUILT_HERE = ["--no-build-isolation"] if importlib.util.find_spec("setuptools") else []


@pytest.fixture
def clone(root: Path, tmp_path: Path) -> Path:
    """A copy of the files that git tracks, as whoever clones the repository has them."""
    if not (root / ".git").exists():
        pytest.skip("not a clone, so that git cannot say which files belong to it")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        target = tmp_path / "clone" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, target, follow_symlinks=False)
    return tmp_path / "clone"


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Every path in a folder, with what the files hold.

    Python's caches are left out: it keeps one of every module that it imports, here of the build
    backend, and git ignores them.
    """
    paths = (path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    return {path: None if path.is_dir() else path.read_bytes() for path in paths}


@pytest.mark.parametrize("editable", [False, True], ids=["copied", "editable"])
def test_installing_leaves_nothing_behind(clone: Path, tmp_path: Path, editable: bool) -> None:
    """Neither ``build/`` nor an egg-info lies in the clone, also not after ``pip install -e``."""
    before = contents(clone)
    target = tmp_path / "installed"
    what = ["--editable", str(clone)] if editable else [str(clone)]
    options = ["--quiet", "--no-deps", *BUILT_HERE, "--target", str(target)]

    command = [sys.executable, "-m", "pip", "install", *options, *what]
    run = subprocess.run(command, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stderr
    assert list(target.glob("mpq-*.dist-info"))
    assert (target / "mpq").is_dir() is not editable
    assert contents(clone) == before


def test_the_source_distribution_builds_itself(clone: Path, tmp_path: Path) -> None:
    """It holds the build backend, and building it leaves nothing behind either."""
    before = contents(clone)
    code = (
        "import sys; sys.path.insert(0, 'scripts'); import build_backend;"
        f"print(build_backend.build_sdist({str(tmp_path)!r}))"
    )

    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    unpacked = tmp_path / "unpacked"
    shutil.unpack_archive(tmp_path / run.stdout.splitlines()[-1], unpacked, filter="data")
    names = {str(path.relative_to(unpacked / "mpq-0.1.0")) for path in unpacked.rglob("mpq-*/**/*")}

    assert contents(clone) == before
    assert {"pyproject.toml", "setup.cfg", "scripts/build_backend.py", "mpq/py.typed"} <= names
