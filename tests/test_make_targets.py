"""``make targets``: what it runs exists, and what failed is told."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mpq
from mpq.backends import Target
from scripts import targets
from scripts.targets import ENVIRONMENTS, Environment, checked, has_failed

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda x: x.name)
def test_an_environment_is_of_a_backend_and_of_tests_that_exist(environment: Environment) -> None:
    """A folder, or names of functions of a file; the line pins torch and the reader."""
    # GPTQModel reads the file of another target, and the Cortex-M4 compiles that of C.
    if environment.name not in {"gptqmodel", "cortex-m4"}:
        assert issubclass(mpq.BACKENDS.get(environment.name), Target) is environment.is_target
    texts = []
    for part in environment.tests:
        path, _, function = part.partition("::")
        files = list((ROOT / path).glob("test_*.py")) if path.startswith("tests/") else []
        files += [ROOT / path] if path.endswith(".py") else []
        assert files or not path.startswith("tests/")
        texts += [file.read_text(encoding="utf-8") for file in files]
        assert not function or f"def {function.partition('[')[0]}(" in texts[-1]
    if "-k" in environment.tests:
        for word in environment.tests[-1].split(" or "):
            assert any(f"_{word}" in text for text in texts)
    assert sum("==" in package for package in environment.pip) >= 2


@pytest.mark.parametrize(
    ("tests", "export", "failed"),
    [
        ({"passed": 2, "failed": 0, "skipped": 0}, {"target": "x"}, False),
        ({"passed": 2, "failed": 0, "skipped": 1}, {"target": "x"}, True),
        ({"passed": 0, "failed": 0, "skipped": 0}, {"target": "x"}, True),
        ({"passed": 2, "failed": 1, "skipped": 0}, {"target": "x"}, True),
        ({"passed": 2, "failed": 0, "skipped": 0}, "mpq.errors.ModelError: other numbers", True),
    ],
)
def test_less_than_all_is_a_failure(tests: dict[str, int], export: Any, failed: bool) -> None:
    """A test that is skipped did not see the reader."""
    assert has_failed({"tests": tests, "export": export}) is failed


def test_an_environment_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then taken again; what its tests and its export said is told."""
    asked: list[str] = []

    def run(command: list[str], *_: Any) -> "subprocess.CompletedProcess[str]":
        asked.append(" ".join(command))
        if "venv" in command:
            Path(command[-1]).mkdir()
        said = {"-c": '{"torch": "2.13.0"}', "--inside": '{"target": "auto-round"}'}
        out = next((said[x] for x in command if x in said), "..s [100%]\n2 passed, 1 skipped in 3s")
        return subprocess.CompletedProcess(command, 0, out, "")

    monkeypatch.setattr(targets, "_run", run)
    first, again = (checked(ENVIRONMENTS[0], tmp_path / "made") for _ in range(2))

    assert [x for x in asked if "pip install" in x] == [
        f"{tmp_path}/made/bin/python -m pip install --quiet {' '.join(ENVIRONMENTS[0].pip)} "
        f"pytest>=8 hypothesis>=6.100 -e {ROOT}"
    ]
    assert (first["was_there_already"], again["was_there_already"]) == (False, True)
    assert first["tests"] == {"passed": 2, "failed": 0, "skipped": 1}
    assert first["export"] == {"target": "auto-round"}
    assert has_failed(first)


def test_packages_of_debian_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what they need; programs and libraries are found where they lie."""
    asked: list[str] = []

    def run(command: list[str], *_: Any, **__: Any) -> "subprocess.CompletedProcess[str]":
        asked.append(" ".join(command))
        if "download" in command:
            for name in command[2:]:
                (tmp_path / "made" / f"{name}.deb").touch()
        out = "Inst libfdt1 (1.6)\nInst qemu (7.2)\nConf qemu (7.2)\n"
        return subprocess.CompletedProcess(command, 0, out, "")

    monkeypatch.setattr(targets, "_run", run)
    targets._unpack(("qemu",), tmp_path / "made")
    (tmp_path / "made" / "usr" / "lib" / "x86_64-linux-gnu").mkdir(parents=True)

    found = targets._found_in(tmp_path / "made")
    assert asked[1] == "apt-get download libfdt1 qemu"
    assert len(asked) == 4
    assert all(x.startswith("dpkg --extract") and x.endswith("/made") for x in asked[2:])
    assert not list((tmp_path / "made").glob("*.deb"))
    assert found["PATH"].startswith(str(tmp_path / "made" / "usr" / "bin"))
    assert found["LD_LIBRARY_PATH"].endswith("usr/lib/x86_64-linux-gnu")


def test_one_environment_is_put_beside_the_others(tmp_path: Path) -> None:
    """In the place of what it said before."""
    file = tmp_path / "targets.json"
    for name, count in [("a", 1), ("b", 2), ("a", 3)]:
        targets.put(file, name, {"tests": count})
    assert json.loads(file.read_text("utf-8")) == {"a": {"tests": 3}, "b": {"tests": 2}}


def test_an_unknown_environment_is_refused() -> None:
    """With those that there are."""
    run = subprocess.run(
        [sys.executable, "-m", "scripts.targets", "--only", "no-such-reader"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert run.returncode == 2
    assert "auto-round" in run.stderr
