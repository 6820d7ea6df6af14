"""What several test files need: the real data, a quick demo search, tiny networks."""

import gc
import os
import random
import shutil
from collections.abc import Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for each other take minutes

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis.internal.conjecture import providers
from safetensors.torch import save_file

import mpq
from mpq import demo
from mpq.backends import shipping
from mpq.backends.fresh import FreshRun, run_batches, run_otherwise
from mpq.backends.runtime import Traceable
from mpq.backends.target import Target
from mpq.network.examples import Batch
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints

# Hypothesis draws constants that it reads in all local modules loaded so far: what a test is given
# would depend on which other tests were collected.
assert hasattr(providers, "is_local_module_file"), "hypothesis reads local constants another way"
providers.is_local_module_file = lambda _: False
settings.register_profile("mpq", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("mpq")
torch.set_num_threads(1)

PRECISIONS = tuple(
    map(mpq.Precision.parse, [f"w{bits}a{a}" for a in (8, 4) for bits in range(2, 9)] + ["fp8"])
)
ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("MPQ_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with the published networks and tables; tests that need it skip without it."""
    if not DATA.is_dir():
        pytest.skip(f"the published networks are not there ({DATA}); set MPQ_DATA")
    return DATA


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


class MakeProblem(Protocol):
    """Makes a problem from plain numbers."""

    def __call__(
        self, loss: Any, costs: Any = (), limits: Any = (), **rules: Any
    ) -> mpq.Problem: ...


@pytest.fixture(scope="session")
def make_problem() -> MakeProblem:
    """Layers ``l0``, ``l1``, ... at up to 16 precisions; budgets ``r0``, ``r1``, ... in bytes."""

    def make(loss: Any, costs: Any = (), limits: Any = (), **rules: Any) -> mpq.Problem:
        values = np.array(loss, dtype=np.float64)
        layers = tuple(f"l{i}" for i in range(len(values)))
        precisions = PRECISIONS[: values.shape[1]]
        budgets = tuple(
            Budget.of(mpq.CostTable(f"r{i}", "bytes", layers, precisions, cost), float(limit))
            for i, (cost, limit) in enumerate(zip(costs, limits, strict=True))
        )
        table = mpq.CostTable("loss", "nats", layers, precisions, values)
        interactions = rules.pop("interactions", None)
        return mpq.Problem(table, Constraints(budgets, **rules), interactions)

    return make


@pytest.fixture(scope="session")
def result() -> mpq.SearchResult:
    """A search on the demo network, shared by the tests that only look at it."""
    task = mpq.Task(demo.make_net(), demo.calibration, held_out=demo.held_out, device="cortex-m7")
    return mpq.search(task, ["weight_bytes=60KiB", "latency=4.7ms"])


@pytest.fixture(scope="session")
def _saved(result: mpq.SearchResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    result.save(folder, result.frontier(num_points=2))
    return folder


@pytest.fixture
def saved_result(_saved: Path, tmp_path: Path) -> Path:
    """The files of that search in a folder of the test's own, which it may damage."""
    return Path(shutil.copytree(_saved, tmp_path, dirs_exist_ok=True))


@pytest.fixture
def small_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches of 64 of the demo's examples, for tests that ask nothing about its losses."""
    for name in ("calibration", "held_out"):
        images, labels = next(getattr(demo, name)())
        few = tuple(zip(images.split(64), labels.split(64), strict=True))
        monkeypatch.setattr(demo, name, partial(iter, few))


def _here(
    target: Target, spelled: str, folder: Path, batches: Sequence[Batch], exchange: Path
) -> FreshRun:
    """What ``run_fresh`` does, without another process."""
    loaded = target.load(folder)
    with torch.no_grad():
        outputs, more = run_batches(loaded, batches)
    file = exchange / "weights.safetensors"
    save_file({name: t.float().contiguous().clone() for name, t in loaded.weights.items()}, file)
    others = run_otherwise(target.load_otherwise(folder), batches)
    return FreshRun(tuple(outputs), 0.5, loaded.versions, loaded.kinds, file, others, tuple(more))


def _seen(
    target: Target, spelled: str, folder: Path, batch: Batch, exchange: Path
) -> Mapping[str, torch.Tensor]:
    """What ``trace_fresh`` does, without another process."""
    loaded = target.load(folder)
    return loaded.traced(batch) if isinstance(loaded, Traceable) else {}


@pytest.fixture
def same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports are run here: another process takes half a minute to import all that it needs."""
    monkeypatch.setattr(shipping, "run_fresh", _here)
    monkeypatch.setattr(shipping, "trace_fresh", _seen)


def _seed_all() -> None:
    random.seed(0)
    np.random.seed(0)
    # torch.manual_seed writes down the whole stack for each kind of device that is not there yet.
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)


def pytest_collectstart() -> None:
    """Networks that a module makes when it is imported are the same whichever came before it."""
    _seed_all()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test draws, and its fixtures, does not depend on which tests ran before it."""
    _seed_all()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is collected stays to the end: that garbage collection walks over it is for nothing."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _what_lives_on_is_not_walked_over() -> None:
    """Of the files before: packages that they imported make each collection take a second.

    Measuring memory collects garbage every time. What a file has left is collected first, so that
    no garbage is kept.
    """
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that ``tests/slow.txt`` names, which ``make test-fast`` leaves out."""
    slow = set((ROOT / "tests" / "slow.txt").read_text(encoding="utf-8").splitlines())
    for item in items:
        if item.nodeid.partition("[")[0] in slow:
            item.add_marker(pytest.mark.slow)
