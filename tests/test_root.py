"""What lies at the root agrees with itself: workflows, versions, indexes."""

import configparser
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

yaml = pytest.importorskip("yaml")


@pytest.fixture(scope="session")
def settings(root: Path) -> configparser.ConfigParser:
    """setup.cfg."""
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg", encoding="utf-8")
    return config


@pytest.fixture(scope="session")
def jobs(root: Path) -> Any:
    """The jobs of the workflow that checks a change."""
    text = (root / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    return yaml.safe_load(text)["jobs"]


def test_every_form_can_be_read(root: Path) -> None:
    """A form that is no YAML is silently not offered."""
    forms = sorted((root / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))

    found = {form.stem: yaml.safe_load(form.read_text(encoding="utf-8")) for form in forms}

    found.pop("config")
    assert sorted(found) == ["bug", "feature", "wrong_answer"]
    for form in found.values():
        assert {"name", "description", "body"} <= set(form)
        ids = [part["id"] for part in form["body"]]
        assert len(set(ids)) == len(ids)


def test_ci_tests_the_pythons_that_are_promised(
    jobs: Any, settings: configparser.ConfigParser
) -> None:
    """The matrix, the classifiers and ``python_requires`` name the same versions."""
    classifiers = settings["metadata"]["classifiers"]

    promised = re.findall(r"Python :: (3\.\d+)$", classifiers, re.MULTILINE)

    assert jobs["test"]["strategy"]["matrix"]["python"] == promised
    assert settings["options"]["python_requires"] == f">={promised[0]}"


def test_ci_runs_targets_that_exist(jobs: Any, root: Path) -> None:
    """Every ``make`` of a job is one that a contributor can run by hand."""
    steps = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    named = {name for run in steps for name in re.findall(r"^make (.+)$", run, re.MULTILINE)}
    makefile = (root / "Makefile").read_text(encoding="utf-8")

    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))

    assert {target for names in named for target in names.split()} <= targets


def test_make_says_every_target(root: Path) -> None:
    """``make`` alone lists each target with a sentence."""
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)

    run = subprocess.run(["make"], cwd=root, capture_output=True, text=True, check=True)

    listed = re.findall(r"^make ([a-z-]+) +[A-Z].*\.$", run.stdout, re.MULTILINE)
    assert listed == targets


def test_the_citation_is_of_this_version(root: Path, settings: configparser.ConfigParser) -> None:
    """Who cites names the version that was used."""
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))

    assert citation["version"] == settings["metadata"]["version"]
    assert citation["license"] == settings["metadata"]["license"]


@pytest.mark.parametrize("folder", ["benchmarks", "examples"])
def test_indexes_are_complete(folder: str, root: Path) -> None:
    """Every script and every JSON of the folder is in its index, and nothing else."""
    index = (root / folder / "README.md").read_text(encoding="utf-8")
    there = {path.name for kind in ("*.py", "*.json") for path in (root / folder).glob(kind)}

    linked = set(re.findall(r"\]\(([\w.]+\.(?:py|json))\)", index))

    assert linked == there


@pytest.mark.parametrize("extra", ["", "onnx"])
def test_the_oldest_dependencies(
    extra: str, root: Path, settings: configparser.ConfigParser
) -> None:
    """Each requirement at its lower bound; torch at the higher one that an extra needs."""
    texts = [settings["options"]["install_requires"]]
    texts += [settings["options.extras_require"][extra]] if extra else []
    # Where a project stands twice, the last one, which is the extra's, asks for more.
    pattern = r"^([\w-]+)\S*>=([\d.]+)"
    expected = dict(re.findall(pattern, "\n".join(texts), re.MULTILINE))

    command = [sys.executable, str(root / "scripts" / "oldest.py"), *filter(None, [extra])]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert dict(line.split("==") for line in printed.splitlines()) == expected
    assert ("onnx" in expected) is bool(extra)


def test_an_extra_that_does_not_exist(root: Path) -> None:
    """A misspelled extra is told with those that there are."""
    command = [sys.executable, str(root / "scripts" / "oldest.py"), "onx"]

    run = subprocess.run(command, capture_output=True, text=True, check=False)

    assert run.returncode == 1
    assert "expected extras of setup.cfg" in run.stderr
    assert "got onx" in run.stderr


def test_the_tested_versions_are_those_that_setup_asks_for(
    root: Path, settings: configparser.ConfigParser
) -> None:
    """Every requirement is in the constraints file, once, at a version within its bounds."""
    lines = (root / "requirements" / "tested.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    texts = [settings["options"]["install_requires"], *settings["options.extras_require"].values()]
    asked = [
        Requirement(line)
        for text in texts
        for line in text.splitlines()
        if line
        and not line.startswith(("#", "pre-commit", "pytest-cov", "cosmic-ray", "coverage"))
        # In an environment of its own, whose versions are those of `make targets`.
        and not line.startswith(("auto-round", "litert-torch", "ai-edge-litert"))
    ]

    wrong = [
        r for r in asked if not r.specifier.contains(pinned.get(canonicalize_name(r.name), "0"))
    ]

    assert wrong == []


def test_every_slow_test_that_is_named_exists(root: Path) -> None:
    """A renamed test would quietly become one of the fast ones."""
    lines = (root / "tests" / "slow.txt").read_text(encoding="utf-8").splitlines()
    named = [line.split("::") for line in lines if not line.startswith("#")]

    missing = [
        (file, name)
        for file, name in named
        if f"def {name}(" not in (root / file).read_text(encoding="utf-8")
    ]

    assert named
    assert missing == []


def test_suite_times_are_of_suites_that_exist(root: Path) -> None:
    """Another name is told, before anything runs; the number of tests is read from pytest."""
    script = root / "scripts" / "suite_time.py"

    run = subprocess.run(
        [sys.executable, str(script), "slow"], capture_output=True, text=True, check=False
    )
    passed = runpy.run_path(str(script))["passed"]

    assert (run.returncode, run.stderr) == (1, "expected all or fast, got slow\n")
    assert passed("== 2 failed, 1526 passed, 9 deselected in 18.14s ==") == 1526
