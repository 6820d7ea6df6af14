"""Mutation testing: which changes of the core no test notices.

    python -m scripts.mutants benchmarks/mutants.json                  # goes on where it stopped
    python -m scripts.mutants mine.json --sample 200 --seed 5 --minutes 30
    python -m scripts.mutants benchmarks/mutants.json --again          # what survived, once more
    python -m scripts.mutants mine.json --sample 0 --only 'mpq/problem/budget.py*'   # all of these

Needs `pip install -e '.[test,mutants]'`. Each mutant is one change of one module (`mutations.py`)
in a copy of the tree. First all quick tests of `TESTS` run once, unchanged, with coverage: a mutant
is then given those that reach its line, its module's own file first, then the quickest, of
`SECONDS` together, and dies with the first that fails. Outcomes of a row:

- ``killed``: a test failed, and ``by`` names it;
- ``timeout``: the tests took three times as long as unchanged, and half a minute more: dead too;
- ``survived``: all passed, or no test reaches the line (``by`` says so);
- ``equivalent``: it cannot be told from the original; ``EQUIVALENT`` has the reason. Not counted.

Which mutants a seed draws depends on their names alone: most stay when other lines change.
"""

import argparse
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, final

from scripts.mutations import Mutant, mutants_of

ROOT: Final = Path(__file__).resolve().parents[1]
EQUIVALENT: Final = ROOT / "scripts" / "mutants_equivalent.json"
PACKAGES: Final = ("_support", "problem", "quantization", "solvers")
TESTS: Final = (
    *(f"tests/{name}" for name in PACKAGES),
    "tests/cli/test_stdout.py",  # of `_support/streams.py`
    *(f"mpq/{name}" for name in PACKAGES),
)
Row = dict[str, str]
"""What became of a mutant: its ``outcome``, and ``by`` what."""
SECONDS: Final = 20.0
"""Of tests for one mutant, as long as they take unchanged."""
MEMORY_BYTES: Final = 12 << 30
_LOADED: Final = (
    *("torch", "torch.fx", "sympy", "pandas", "pytest", "hypothesis", "coverage", "jsonschema"),
    *("safetensors.torch", "scipy.optimize", "scipy.sparse.linalg", "typer.testing", "rich.table"),
    *("optuna", "highspy", "pulp", "matplotlib.pyplot", "networkx", "PIL.Image", "threadpoolctl"),
)
"""Loaded before a process is split off for each mutant: that takes longer than most tests."""


@final
@dataclass(eq=False)
class Watch:
    """A plugin of pytest: how long each test takes, and the first that fails.

    Args:
        began: Called with each test's name before it runs.
    """

    began: Callable[[str], object] = lambda _: None
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    failed: str = ""

    def pytest_runtest_setup(self, item: Any) -> None:
        """As pytest calls it."""
        self.began(_function(item.nodeid))

    def pytest_runtest_logreport(self, report: Any) -> None:
        """As pytest calls it."""
        self.seconds[_function(report.nodeid)] += report.duration
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        """As pytest calls it: a module that cannot be loaded has no tests to fail."""
        if report.failed and not self.failed:
            self.failed = report.nodeid or "collection"


def _function(test: str) -> str:
    """Without its parameters, which a mutant may change: such a test would not be found."""
    return test.partition("[")[0]


def copy_of_tree(folder: Path) -> Path:
    """The repository without what git and tools keep in it."""
    ignored = (".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "site")
    return Path(shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*ignored)))


def split_off(tree: Path, work: Callable[[], int]) -> int:
    """Runs ``work`` in a process of its own, within a copy of the tree; the id of the process."""
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        os.setsid()  # so that what it starts can be stopped with it
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        null = os.open(os.devnull, os.O_RDONLY)
        said = os.open(tree / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor, target in ((0, null), (1, said), (2, said)):
            os.dup2(target, descriptor)
        os.chdir(tree)
        os.environ.update(PYTHONPATH=str(tree), OMP_NUM_THREADS="1")
        sys.path[:] = [str(tree), *(path for path in sys.path if path not in ("", str(ROOT)))]
        status = work()
    except BaseException:  # whatever it is, it must not go on in the parent's frames
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run_tests(names: Iterable[str], watch: Watch, *options: str) -> int:
    """Pytest in this process; its exit status."""
    import pytest

    # Hypothesis, which is loaded already, has a plugin whose asserts would be rewritten.
    options = ("-q", "--tb=short", "-W", "ignore::pytest.PytestAssertRewriteWarning", *options)
    return int(pytest.main([*names, *options], plugins=[watch]))


def reach(tree: Path) -> int:
    """Runs all tests with coverage; writes what each took, and the tests that reach each line."""
    import coverage

    files = [str(tree / "mpq" / name / "*") for name in PACKAGES]
    measured = coverage.Coverage(data_file=None, config_file=False, include=files)
    measured.start()
    watch = Watch(measured.switch_context)
    status = run_tests(TESTS, watch, "-m", "not slow")
    measured.stop()
    data = measured.get_data()
    lines: dict[str, dict[int, list[str]]] = {}
    for file in data.measured_files():
        reached = data.contexts_by_lineno(file).items()
        # What runs as a module is loaded belongs to no test.
        lines[str(Path(file).relative_to(tree))] = {n: [t for t in ts if t] for n, ts in reached}
    found = {"seconds": watch.seconds, "lines": lines, "failed": watch.failed}
    (tree / "reach.json").write_text(json.dumps(found), encoding="utf-8")
    return status


def tests_for(mutant: Mutant, reached: dict[str, Any]) -> list[str]:
    """The tests that reach the line, or the whole module where it runs as it is loaded.

    Those of the module's own file come first, then those of its folder, then the quickest.
    """
    seconds, lines = reached["seconds"], reached["lines"].get(mutant.module, {})
    folder, stem = os.path.split(mutant.module.replace("mpq/", "tests/", 1))
    own = f"{folder}/test_{stem.lstrip('_')}::"
    tests = lines.get(str(mutant.line), [])
    if not tests:
        # Tests of a constant run no line of its module.
        ours = (test for test in seconds if test.startswith((own, mutant.module)))
        tests = sorted({*ours, *(t for those in lines.values() for t in those)})

    def order(test: str) -> tuple[bool, bool, bool, float]:
        near = test.startswith((own, mutant.module))
        return not near, not test.startswith(folder), not test.startswith("tests/"), seconds[test]

    chosen: list[str] = []
    spent = 0.0
    for test in sorted((test for test in tests if test in seconds), key=order):
        if spent + seconds[test] > SECONDS and chosen:
            continue
        chosen.append(test)
        spent += seconds[test]
    return chosen[:400]


def try_tests(tree: Path, tests: Sequence[str]) -> int:
    """What the process of a mutant does: 0 if all tests passed; the file ``failed`` names one."""
    watch = Watch()
    status = run_tests(tests, watch, "-x")
    (tree / "failed").write_text(watch.failed, encoding="utf-8")
    return status


@final
@dataclass(eq=False)
class Run:
    """A mutant whose tests run now."""

    mutant: Mutant
    source: str
    tree: Path
    limit: float
    process: int = 0
    start: float = field(default_factory=time.monotonic)

    def outcome(self) -> Row | None:
        """The row, once it is known."""
        ended, status = os.waitpid(self.process, os.WNOHANG)
        seconds = time.monotonic() - self.start
        if not ended and seconds < self.limit:
            return None
        if not ended:
            os.killpg(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
        (self.tree / self.mutant.module).write_text(self.source, encoding="utf-8")
        failed = self.tree / "failed"
        by = failed.read_text(encoding="utf-8") if failed.exists() else "the process died"
        if not ended:
            return {"outcome": "timeout", "by": f"{seconds:.0f} s"}
        if os.waitstatus_to_exitcode(status) == 0:
            return {"outcome": "survived"}
        return {"outcome": "killed", "by": by or "the tests cannot be loaded"}


def start(mutant: Mutant, tree: Path, reached: dict[str, Any]) -> Run | Row | None:
    """Begins to test a mutant; the row, if there is nothing to run; ``None`` if it is none."""
    source = (tree / mutant.module).read_text(encoding="utf-8")
    code = mutant.code(source)
    if code is None:
        return None
    tests = tests_for(mutant, reached)
    if not tests:
        return {"outcome": "survived", "by": "no test reaches it"}
    (tree / mutant.module).write_text(code, encoding="utf-8")
    limit = 30 + 3 * sum(reached["seconds"][test] for test in tests)
    run = Run(mutant, source, tree, limit)
    (tree / "failed").unlink(missing_ok=True)
    run.process = split_off(tree, lambda: try_tests(tree, tests))
    return run


def all_mutants(pattern: str) -> list[Mutant]:
    """Those of all modules whose name fits."""
    modules = sorted(path for name in PACKAGES for path in (ROOT / "mpq" / name).rglob("*.py"))
    found = []
    for path in modules:
        module = str(path.relative_to(ROOT))
        found += mutants_of(module, path.read_text(encoding="utf-8"))
    return [mutant for mutant in found if fnmatchcase(mutant.name, pattern)]


def drawn(mutants: Sequence[Mutant], sample: int, seed: int) -> list[Mutant]:
    """The sample of a seed, by the mutants' names alone; all if ``sample`` is 0."""

    def rank(mutant: Mutant) -> bytes:
        return hashlib.sha256(f"{seed} {mutant.name}".encode()).digest()

    return sorted(mutants, key=rank)[: sample or None]


def score(rows: Iterable[Row]) -> dict[str, Any]:
    """How many died, of those that can."""
    counts = Counter(row["outcome"] for row in rows)
    dead = counts["killed"] + counts["timeout"]
    of = dead + counts["survived"]
    return dict(counts) | {"died_percent": round(100 * dead / of, 1) if of else None}


def write(given: argparse.Namespace, rows: dict[str, Row], mutants: Sequence[Mutant]) -> None:
    """The whole file anew, what each seed's sample came to first."""
    old = json.loads(given.file.read_text(encoding="utf-8")) if given.file.exists() else {}
    samples = old.get("samples", {})
    samples[f"--sample {given.sample} --seed {given.seed} --only {given.only!r}"] = score(
        rows[mutant.name] for mutant in mutants if mutant.name in rows
    )
    found = {
        "command": f"python -m scripts.mutants {given.file}",
        "versions": {name: version(name) for name in ("cosmic-ray", "pytest", "hypothesis")},
        "samples": samples,
        "mutants": dict(sorted(rows.items())),
    }
    text = json.dumps(found, indent=1, ensure_ascii=False)
    # A row is a line.
    text = re.sub(r'\{\s*"outcome": ("\w+")(?:,\s*"by": (".*"))?\s*\}', _row, text)
    new = given.file.with_suffix(".new")
    new.write_text(text + "\n", encoding="utf-8")
    new.replace(given.file)


def _row(found: re.Match[str]) -> str:
    by = f', "by": {found[2]}' if found[2] else ""
    return f'{{"outcome": {found[1]}{by}}}'


def prepared(folder: Path, jobs: int) -> tuple[list[Path], dict[str, Any]]:
    """A copy of the tree for each job, and which tests reach what, found in the first."""
    first = copy_of_tree(folder / "tree0")
    _, status = os.waitpid(split_off(first, lambda: reach(first)), 0)
    if status:
        said = (first / "output.txt").read_text(encoding="utf-8")
        sys.exit(f"unchanged, the tests fail:\n{said}")
    reached = json.loads((first / "reach.json").read_text(encoding="utf-8"))
    seconds = reached["seconds"].values()
    print(f"{len(seconds)} tests take {sum(seconds):.0f} s", file=sys.stderr)
    # Python tells a stale module by the second of its change: none of the core's is kept.
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    for name in PACKAGES:
        for module in list((first / "mpq" / name).rglob("*.pyc")):
            module.unlink()
    others = (Path(shutil.copytree(first, folder / f"tree{job}")) for job in range(1, jobs))
    return [first, *others], reached


def run_all(
    todo: list[Mutant], jobs: int, deadline: float, keep: Callable[[Mutant, Row], None]
) -> None:
    """Tests one mutant after the other, ``jobs`` at once, until the deadline."""
    for name in _LOADED:
        import_module(name)
    with tempfile.TemporaryDirectory(prefix="mpq-mutants-") as folder:
        trees, reached = prepared(Path(folder), jobs)
        running: list[Run] = []
        while running or (todo and time.monotonic() < deadline):
            while todo and trees and time.monotonic() < deadline:
                mutant = todo.pop(0)
                begun = start(mutant, trees[-1], reached)
                if isinstance(begun, Run):
                    trees.pop()
                    running.append(begun)
                elif begun is not None:
                    keep(mutant, begun)
            for run in list(running):
                row = run.outcome()
                if row is not None:
                    running.remove(run)
                    trees.append(run.tree)
                    keep(run.mutant, row)
            time.sleep(0.05)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is asked for and is not in the file yet; prints the score."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--sample", type=int, default=400, help="how many mutants; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", default="*", help="such as 'mpq/problem/*'")
    parser.add_argument("--again", action="store_true", help="what survived, once more")
    given = parser.parse_args(arguments)
    os.environ.setdefault("MPQ_DATA", str(ROOT.parent / "shared" / "data"))
    deadline = time.monotonic() + 60 * given.minutes
    old = json.loads(given.file.read_text(encoding="utf-8")) if given.file.exists() else {}
    rows: dict[str, Row] = old.get("mutants", {})
    equivalent = json.loads(EQUIVALENT.read_text(encoding="utf-8"))
    mutants = drawn(all_mutants(given.only), given.sample, given.seed)
    rows |= {m.name: {"outcome": "equivalent"} for m in mutants if m.name in equivalent}

    def keep(mutant: Mutant, row: Row) -> None:
        rows[mutant.name] = row
        print(row["outcome"], mutant.name, row.get("by", ""), file=sys.stderr, flush=True)
        write(given, rows, mutants)

    def is_due(mutant: Mutant) -> bool:
        row = rows.get(mutant.name)
        return row is None or (given.again and row["outcome"] == "survived")

    run_all([mutant for mutant in mutants if is_due(mutant)], given.jobs, deadline, keep)
    write(given, rows, mutants)
    print(json.dumps(score(rows[m.name] for m in mutants if m.name in rows)))


if __name__ == "__main__":
    main()
