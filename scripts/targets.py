"""Targets and recipes whose readers live in no environment of CI: each in one of its own.

    python -m scripts.targets --into benchmarks/targets.json
    python -m scripts.targets --only auto-round --keep environments

For each of them: makes a virtual environment, installs the pinned line and mpq, searches the small
Llama of the tests for the target and exports it (which runs the file in the tool's own runtime),
and runs the tests that need the reader, of which none may be skipped. The Cortex-M4's compiler and
emulator are Debian's, which ``apt-get`` and ``dpkg`` fetch and unpack there, as any user. Prints
JSON: the line, the versions, ``export.json``, how many tests passed, or puts that into a file
beside what others said. Ends with 1 where one failed. The environments take up to 2 GB each; those
in the folder of ``--keep`` stay, and are taken again.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
LIMIT_S: Final = 3600
"""Of one command: an installation takes minutes."""
PAGES: Final = "tests/test_docs.py::test_a_page_of_a_target_runs"
"""A page of the documentation, from its commands to its snippets."""
BESIDE: Final = ("pytest>=8", "hypothesis>=6.100")
"""What the tests need in each of them, beside mpq."""


@dataclass(frozen=True)
class Environment:
    """A reader and its pinned line.

    Args:
        name: As ``mpq export --to`` takes it, or of the reader of another target's file.
        pip: What is installed.
        tests: Arguments of pytest: the tests that need the reader.
        is_target: Whether it is exported to as well; else there are the tests alone.
        debian: Packages of Debian that are unpacked there, with all that they need.
    """

    name: str
    pip: tuple[str, ...]
    tests: tuple[str, ...]
    is_target: bool = False
    debian: tuple[str, ...] = ()


ENVIRONMENTS: Final = (
    Environment(
        "auto-round",
        ("torch==2.13.0", "transformers==5.24.0", "auto-round==0.16.1", "accelerate==1.15.0"),
        (
            "tests/backends/test_auto_round.py",
            f"{PAGES}[auto-round]",
            "-k",
            "auto_round_computes or page",
        ),
        is_target=True,
    ),
    Environment(
        "gptqmodel",
        ("torch==2.13.0", "transformers==5.24.0", "gptqmodel==7.6.0", "optimum==2.3.0"),
        ("tests/backends/test_auto_round.py", "-k", "gptqmodel_computes"),
    ),
    Environment(
        "litert",
        ("torch==2.13.0", "litert-torch==0.10.0", "ai-edge-litert==2.3.0", "transformers==5.24.0"),
        ("tests/backends/litert", f"{PAGES}[litert]"),
        is_target=True,
    ),
    Environment(
        "aimet",
        ("torch==2.13.0", "aimet-onnx==2.42.0", "onnx==1.23.2", "onnxscript==0.7.2"),
        ("tests/backends/recipes/test_aimet.py", "-k", "aimet_computes"),
    ),
    Environment(
        "modelopt",
        ("torch==2.13.0", "nvidia-modelopt==0.47.0", "requests", "huggingface_hub", "pyyaml"),
        ("tests/backends/recipes/test_recipes.py", "-k", "model_opt_quantizes"),
    ),
    Environment(
        "coreml",
        ("torch==2.13.0", "coremltools==9.0", "pyyaml"),
        ("tests/backends/recipes/test_recipes.py", "-k", "core_ml_tools_quantize"),
    ),
    Environment(
        "cortex-m4",
        ("torch==2.13.0", "numpy==2.4.6"),
        ("tests/backends/c/test_cortex_m4.py",),
        debian=("gcc-arm-none-eabi", "qemu-system-arm"),
    ),
)


def checked(environment: Environment, folder: Path) -> dict[str, Any]:
    """What one environment said.

    Raises:
        subprocess.CalledProcessError: If it could not be made.
    """
    python, is_there = folder / "bin" / "python", folder.exists()
    if not is_there:
        _run([sys.executable, "-m", "venv", str(folder)]).check_returncode()
        line = [*environment.pip, *BESIDE, "-e", str(ROOT)]
        _run([str(python), "-m", "pip", "install", "--quiet", *line]).check_returncode()
        _unpack(environment.debian, folder / "debian")
    found: dict[str, Any] = {
        "pip": "pip install " + " ".join(environment.pip),
        "was_there_already": is_there,
        "versions": _versions(python, environment.pip),
    }
    if environment.is_target:
        made = _run([str(python), "-m", "scripts.targets", "--inside", environment.name])
        found["export"] = json.loads(made.stdout) if not made.returncode else _end(made)
    # Warnings of the tools' own are theirs, and errors in our settings of pytest.
    options = ("-q", "-p", "no:cacheprovider", "-W", "default", "--show-capture=no")
    variables = _found_in(folder / "debian") if environment.debian else {}
    tested = _run([str(python), "-m", "pytest", *options, *environment.tests], variables)
    counts = {
        what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|skipped)", _end(tested))
    }
    found["tests"] = {"passed": 0, "failed": 0, "skipped": 0, **counts}
    if environment.debian:
        found["debian"] = {name: _debian_version(name) for name in environment.debian}
    return found


def has_failed(found: dict[str, Any]) -> bool:
    """Whether an environment ran less than it should have."""
    tests = found["tests"]
    is_refused = isinstance(found.get("export"), str)
    return is_refused or not tests["passed"] or bool(tests["failed"] or tests["skipped"])


def exported(name: str) -> dict[str, Any]:
    """``export.json`` of the small Llama, searched for the target within 0.8 times its w8.

    Runs within the environment.
    """
    import mpq
    from tests.backends.llamas import examples, llama

    model = llama()
    task = mpq.Task(model, examples(), to=name)
    result = mpq.search(task, ["weight_bytes=0.8x:w8"])
    with tempfile.TemporaryDirectory() as place:
        mpq.export(result.assignment, Path(place, "out"), name, model, examples())
        told: dict[str, Any] = json.loads(Path(place, "out", "export.json").read_text("utf-8"))
    return told


def _versions(python: Path, pip: Sequence[str]) -> dict[str, str]:
    names = [re.split("[=<>]", package)[0] for package in pip]
    code = (
        "import json, sys; from importlib.metadata import version; "
        "print(json.dumps({n: version(n) for n in sys.argv[1:]}))"
    )
    found: dict[str, str] = json.loads(_run([str(python), "-c", code, *names]).stdout)
    return found


def _unpack(packages: Sequence[str], folder: Path) -> None:
    """Debian's packages, and those that they need and that are not installed here."""
    if not packages:
        return
    folder.mkdir()
    simulated = _run(["apt-get", "install", "--simulate", "--no-install-recommends", *packages])
    simulated.check_returncode()
    names = re.findall(r"^Inst (\S+)", simulated.stdout, re.MULTILINE)
    _run(["apt-get", "download", *names], place=folder).check_returncode()
    for archive in sorted(folder.glob("*.deb")):
        _run(["dpkg", "--extract", str(archive), str(folder)]).check_returncode()
        archive.unlink()


def _found_in(folder: Path) -> dict[str, str]:
    """Variables by which unpacked programs and their libraries are found."""
    libraries = [*folder.glob("usr/lib/*-linux-gnu"), *folder.glob("lib/*-linux-gnu")]
    return {
        "PATH": os.pathsep.join([str(folder / "usr" / "bin"), os.environ.get("PATH", "")]),
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
    }


def _debian_version(package: str) -> str:
    told = _run(["apt-cache", "policy", package]).stdout
    found = re.search(r"Candidate: (\S+)", told)
    return found[1] if found else "unknown"


def _run(
    command: Sequence[str], variables: Mapping[str, str] = MappingProxyType({}), place: Path = ROOT
) -> "subprocess.CompletedProcess[str]":
    sys.stderr.write(f"{' '.join(command)}\n")
    environment = {**os.environ, **variables}
    return subprocess.run(
        command, cwd=place, capture_output=True, text=True, timeout=LIMIT_S, check=False,
        env=environment,
    )  # fmt: skip


def _end(ended: "subprocess.CompletedProcess[str]") -> str:
    lines = (ended.stdout + ended.stderr).strip().splitlines() or ["without a word"]
    # The last line of pytest, or of an error.
    return next(
        (x for x in reversed(lines) if re.search(r"\d (passed|failed|skipped)", x)), lines[-1]
    )


def main() -> None:
    """All environments, or those that are named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = [environment.name for environment in ENVIRONMENTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--keep", type=Path, help="folder of the environments, kept")
    parser.add_argument("--into", type=Path, help="JSON that is written anew, one by one")
    parser.add_argument("--inside", choices=names, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        print(json.dumps(exported(asked.inside)))
        return
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        for environment in ENVIRONMENTS:
            if environment.name in asked.only:
                folder = (asked.keep or Path(place)).resolve() / environment.name
                found[environment.name] = checked(environment, folder)
                if asked.into:
                    put(asked.into, environment.name, found[environment.name])
    if not asked.into:
        print(json.dumps(found, indent=1))
    sys.exit(any(map(has_failed, found.values())))


def put(file: Path, name: str, found: dict[str, Any]) -> None:
    """What one environment said, in the place of what it said before."""
    told = json.loads(file.read_text("utf-8")) if file.exists() else {}
    file.write_text(json.dumps({**told, name: found}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
