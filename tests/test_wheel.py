"""The wheel: ``mpq`` only, with everything that it reads while running."""

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

LEFT_OUT = shutil.ignore_patterns(
    ".*", "*.egg-info", "__pycache__", "build", "dist", "tests", "notebooks", "benchmarks", "runs"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel of the repository, built in a copy of it so that no build folder is left there."""
    folder = tmp_path_factory.mktemp("wheel")
    root = Path(__file__).resolve().parents[1]
    source = shutil.copytree(root, folder / "source", symlinks=True, ignore=LEFT_OUT)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder)]
    # Without the network where it can be: setuptools from 70.1 on builds wheels by itself.
    if importlib.util.find_spec("setuptools") is not None:
        command.append("--no-build-isolation")
    built = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_only_mpq(wheel: zipfile.ZipFile) -> None:
    """Top-level packages called ``solvers`` or ``sensitivity`` would collide with the user's."""
    tops = {name.split("/")[0] for name in wheel.namelist()}

    packages = {top for top in tops if not top.endswith(".dist-info")}

    assert packages == {"mpq"}


def test_the_wheel_holds_every_file_of_the_package(wheel: zipfile.ZipFile, root: Path) -> None:
    """No module, device, schema, demo file or type marker is forgotten."""
    expected = {
        str(path.relative_to(root))
        for path in (root / "mpq").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    found = {name for name in wheel.namelist() if name.startswith("mpq/")}

    assert found == expected
    assert "mpq/py.typed" in found
    assert "mpq/hardware_profiles/devices/nvidia-t4.json" in found
    assert "mpq/problem/assignment.schema.json" in found
    assert "mpq/problem/problem.schema.json" in found
    assert "mpq/workflows/result.schema.json" in found
    assert "mpq/report/frontier.schema.json" in found
    assert "mpq/report/page/templates/page.html" in found
    assert "mpq/report/page/static/page.js" in found
    assert "mpq/hardware_profiles/roofline.schema.json" in found
    assert "mpq/demo/digits.npz" in found
    assert "mpq/demo/digits_net.safetensors" in found


def test_the_demo_is_small(wheel: zipfile.ZipFile) -> None:
    """Weights and images together stay under 1 MB, and the whole download under 2.2 MB."""
    demo = [info for info in wheel.infolist() if info.filename.startswith("mpq/demo/")]

    unpacked = sum(info.file_size for info in demo)
    packed = sum(info.compress_size for info in wheel.infolist())

    assert unpacked < 1_000_000
    assert packed < 2_200_000


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    """Name, command, licence text and description travel with it."""
    names = {Path(name).name: name for name in wheel.namelist() if ".dist-info/" in name}

    metadata = wheel.read(names["METADATA"]).decode()
    entry_points = wheel.read(names["entry_points.txt"]).decode()

    assert "Name: mpq\n" in metadata
    assert "Apache-2.0" in metadata
    assert "LICENSE" in names
    assert "mpq = mpq.cli.__main__:main" in entry_points
