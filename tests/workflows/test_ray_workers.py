"""Ray: a local cluster of two workers measures what one process measures, also where some die."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from torch import Tensor
from typer.testing import CliRunner

import mpq
from mpq._support.ray_workers import RayWorkers
from mpq._support.workers import Workers
from mpq.cli.__main__ import app
from mpq.errors import InputError, MissingDependencyError, ModelError, ScoreError, WorkerError
from mpq.workflows.score import Score
from mpq.workflows.shards import estimate_shard
from tests.workflows.networks import Net, batches

ROOT = Path(__file__).resolve().parents[2]
LIMIT = {"effective_bits": 4.0}
STORE_BYTES = 200 * 2**20
ASKING = ("measured", "measured:interactions=true", "measured:batched=true", "pairwise", "auto")


def images() -> list[Tensor]:
    return batches(4)


def task(workers: str | None, **options: Any) -> mpq.Task:
    torch.manual_seed(0)
    given = {"candidates": ["w2a8", "w4a8", "w8a8"], "rounding": "nearest", **options}
    model = given.pop("model", None) or Net().eval()
    return mpq.Task(model, given.pop("data", images), workers=workers, **given)


def search(workers: str | None, sensitivity: str = "measured", **options: Any) -> Any:
    solver = options.pop("solver", "auto")
    return mpq.search(task(workers, **options), LIMIT, sensitivity=sensitivity, solver=solver)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two workers here, which all tests of the module use."""
    ray = pytest.importorskip("ray")
    # So that workers find the tests' own classes; other processes see nothing of it.
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    ray.init(
        address="local", num_cpus=2, object_store_memory=STORE_BYTES, include_dashboard=False,
        log_to_driver=False, logging_level="error",
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )  # fmt: skip
    yield
    ray.shutdown()


def told(result: Any) -> dict[str, Any]:
    """All that a run says, but its times."""
    found: dict[str, Any] = json.loads(result.to_json())
    found["solution"] = {k: x for k, x in found["solution"].items() if "seconds" not in k}
    return found


class Stopped(Net):
    """Nothing can be differentiated, so that ``auto`` measures all."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("sensitivity", ASKING)
def test_workers_find_what_one_process_finds(sensitivity: str) -> None:
    """To the last bit: cells are added up in the order of one process."""
    torch.manual_seed(0)
    net = Stopped().eval()

    found, expected = (told(search(by, sensitivity, model=net)) for by in ("ray", None))

    assert found == expected


@pytest.mark.usefixtures("cluster")
def test_workers_compare_as_one_process_does(tmp_path: Path) -> None:
    """Assignments, predictions and optima; a second comparison goes on from the journal."""
    estimators = ["sketch", "measured", "first-order:labels=targets"]

    def compared(workers: str | None, folder: Path | None) -> Any:
        return mpq.compare(task(workers), LIMIT, estimators=estimators, num_random=3, folder=folder)

    expected, found = compared(None, None), compared("ray", tmp_path)
    rows = (tmp_path / "measured.jsonl").read_text().splitlines()
    again = compared("ray", tmp_path)

    for one in (found, again):
        assert one.trials == expected.trials
        for score, other in zip(one.scores, expected.scores, strict=True):
            assert score.predicted == other.predicted
            assert score.solved == other.solved
            assert score.error == other.error
    assert "label" in found.scores[2].error or "target" in found.scores[2].error
    assert (tmp_path / "measured.jsonl").read_text().splitlines() == rows


MEASURING = ("evolutionary", "bayesian", "surrogate")


def measured_search(workers: str | None, solver: str, more: str = "", **options: Any) -> Any:
    asked = f"{solver}:is_measured=true,batch_size=5,{more or 'num_trials=14'}"
    # Of the 81 assignments more than are asked about are within it.
    limit = {"effective_bits": 6.0}
    return mpq.search(task(workers, **options), limit, sensitivity="sketch", solver=asked)


def kept_trials(storage: Path) -> list[Any]:
    """Assignments and losses of a study, in the order in which they were written."""
    journal = JournalStorage(JournalFileBackend(str(storage)))
    study = optuna.load_study(study_name="mpq", storage=journal)
    return [(trial.values, trial.user_attrs) for trial in study.trials]


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("solver", MEASURING)
def test_workers_measure_what_a_solver_asks(
    solver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same trials, to the last bit and in the same order, whoever was done first."""
    more = "num_trials=14,storage=search.log"
    more += ",population_size=6" if solver == "evolutionary" else ""

    def kept_by(workers: str | None) -> tuple[Any, list[Any]]:
        (tmp_path / str(workers)).mkdir()
        monkeypatch.chdir(tmp_path / str(workers))
        return told(measured_search(workers, solver, more)), kept_trials(Path("search.log"))

    expected, found = kept_by(None), kept_by("ray")

    assert found == expected
    assert len(found[1]) == 14


@pytest.mark.usefixtures("cluster")
def test_one_process_goes_on_from_what_workers_measured_for_a_solver(tmp_path: Path) -> None:
    """And the other way round; a study that is complete asks nobody."""
    storage = tmp_path / "search.log"
    kept = f",storage={storage}"
    whole = measured_search(None, "surrogate")

    first = measured_search("ray", "surrogate", f"num_trials=7{kept}")
    begun = len(kept_trials(storage))
    second = measured_search(None, "surrogate", f"num_trials=10{kept}")
    third = measured_search("ray", "surrogate", f"num_trials=14{kept}")

    assert begun == 7
    assert len(kept_trials(storage)) == 14
    assert first.solution.loss >= second.solution.loss >= third.solution.loss
    assert third.solution.loss == whole.solution.loss
    assert third.assignment.precisions == whole.assignment.precisions


class Mortal(Net):
    """Kills the process that runs it, if it is a worker, by chance and a few times in all."""

    def __init__(self, folder: Path, most: int) -> None:
        super().__init__()
        self.folder, self.most, self.home, self.calls = folder, most, os.getpid(), 0

    def forward(self, x: Tensor) -> Tensor:
        if os.getpid() != self.home:
            marks = len(list(self.folder.iterdir()))
            self.calls += 1
            # Another seed in every process, or all would die at the same call.
            chance = random.Random(os.getpid() * 1000 + self.calls).random()
            if marks < self.most and chance < 0.5:
                (self.folder / f"killed-{os.getpid()}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


@pytest.mark.usefixtures("cluster")
def test_workers_that_are_killed_lose_a_task_each(tmp_path: Path) -> None:
    """Three are, mid-way, at random: the result is that of one process all the same."""
    torch.manual_seed(0)
    net = Mortal(tmp_path, 3).eval()
    expected = told(search(None, model=net))

    found = told(search("ray", model=net))

    assert found == expected
    assert len(list(tmp_path.iterdir())) >= 1


@pytest.mark.usefixtures("cluster")
def test_workers_that_are_killed_lose_a_trial_each(tmp_path: Path) -> None:
    """Mid-way, by chance: a solver is told what it is told in one process."""
    torch.manual_seed(0)
    net = Mortal(tmp_path, 3).eval()
    expected = told(measured_search(None, "surrogate", model=net))

    found = told(measured_search("ray", "surrogate", model=net))

    assert found == expected
    assert len(list(tmp_path.iterdir())) >= 1


@pytest.mark.usefixtures("cluster")
def test_rows_land_in_the_journal(tmp_path: Path) -> None:
    """One process goes on from what workers measured, and workers from what it did."""
    journal = f"measured:journal={tmp_path / 'rows.jsonl'}"
    expected = search("ray", journal)
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 3 * 4  # a header; three batches, four layers

    again = search(None, journal)
    (tmp_path / "rows.jsonl").write_text("\n".join(lines[:5]) + "\n")
    resumed = search("ray", journal)

    assert told(again) == told(expected) == told(resumed)
    assert sorted((tmp_path / "rows.jsonl").read_text().splitlines()) == sorted(lines)


class Broken(Net):
    """Answers nothing that is a number, but where it was made."""

    def __init__(self) -> None:
        super().__init__()
        self.home = os.getpid()

    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        return found if os.getpid() == self.home else found * float("nan")


@pytest.mark.usefixtures("cluster")
def test_an_error_of_a_task_is_that_of_one_process() -> None:
    """Of its class, in its words."""
    with pytest.raises(ModelError, match="finite|NaN|nan"):
        search("ray", model=Broken().eval())


class Staying:
    """Can be copied, and not pickled."""

    def __deepcopy__(self, memo: Any) -> "Staying":
        return self

    def __reduce__(self) -> Any:
        raise TypeError("it stays here")


@pytest.mark.usefixtures("cluster")
def test_what_cannot_travel_is_said() -> None:
    """A lock or an open file in the network."""
    net = Net().eval()
    net.log = Staying()  # type: ignore[assignment]

    with pytest.raises(WorkerError, match="cannot be sent to workers: it stays here"):
        search("ray", model=net)


@pytest.mark.parametrize(
    ("sensitivity", "message"),
    [
        ("sketch", "the estimator 'sketch' has none; take auto, measured, pairwise"),
        ("measured:tolerance=0.1", "leave out tolerance, or --workers"),
    ],
)
@pytest.mark.usefixtures("cluster")
def test_what_workers_cannot_do_is_refused(sensitivity: str, message: str) -> None:
    """In a sentence."""
    with pytest.raises(InputError, match=message):
        search("ray", sensitivity)


def test_who_shares_otherwise_is_refused(tmp_path: Path) -> None:
    """A shard has no workers, and a comparison no ranks."""
    with pytest.raises(InputError, match="leave out workers"):
        estimate_shard(task("ray", cache=tmp_path), "1/2")
    with pytest.raises(InputError, match="compared by --workers ray, or in one process"):
        mpq.compare(task("torchrun"), LIMIT)


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """How to install it."""
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(MissingDependencyError, match=r"pip install 'mpq\[ray\]'"):
        search("ray")


class Nowhere:
    """The package, where no cluster answers."""

    def is_initialized(self) -> bool:
        return False

    def init(self, address: str, **_: Any) -> None:
        raise ConnectionError(f"nobody answers at {address}\nand a trace of it")


def test_a_cluster_that_does_not_answer_is_an_error() -> None:
    """On one line, with its address and what to do."""
    workers = RayWorkers(Nowhere(), Workers.parse("ray://127.0.0.1:1"))

    with pytest.raises(WorkerError, match=r"at ray://127.0.0.1:1: nobody answers .*:1; start one"):
        _ = workers.count


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ray", Workers("ray")),
        ("ray:3", Workers("ray", count=3)),
        ("ray://head:10001", Workers("ray", "ray://head:10001")),
        ("torchrun", Workers("torchrun")),
    ],
)
def test_workers_are_read(text: str, expected: Workers) -> None:
    """As they are written."""
    assert Workers.parse(text) == expected


@pytest.mark.parametrize("text", ["ray:0", "ray:", "ray://head", "dask", "torchrun:2"])
def test_other_workers_are_refused(text: str) -> None:
    """With what there is."""
    with pytest.raises(InputError, match="write ray "):
        Workers.parse(text)


NET = """
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 32), nn.Linear(32, 5)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))

def make_net():
    torch.manual_seed(0)
    return Own().eval()

def data():
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        yield torch.randn(32, 16, generator=generator)
"""


def test_the_command_line_starts_workers_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a network of a file, whose module is on no worker; and they end with the command."""
    pytest.importorskip("ray")
    (tmp_path / "net.py").write_text(NET)
    asked = (
        "search", "--model", "net.py:make_net", "--data",
        "net.py:data", "--limit", "effective_bits=5", "--precisions", "w2a8,w4a8,w8a8",
        "--sensitivity", "measured", "--rounding", "nearest", "--json", "--quiet",
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    alone = CliRunner().invoke(app, asked)

    shared = subprocess.run(
        [sys.executable, "-m", "mpq", *asked, "--workers", "ray:2"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip

    assert alone.exit_code == 0, alone.output
    assert json.loads(shared.stdout) == json.loads(alone.stdout)


def spread(network: Any) -> Tensor:
    """A score that quantizing changes."""
    found: Tensor = sum(p.detach().abs().sum() for p in network.parameters())
    return found


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("score", [Score.of(spread, higher_is_better=True), "sqnr"])
def test_workers_ask_a_score(score: Any) -> None:
    """About what a solver tries; the answer is that of one process."""
    solver = "evolutionary:is_measured=true,num_trials=12"
    alone, together = (
        search(workers, "weight-error", score=score, solver=solver) for workers in (None, "ray")
    )
    assert together.measured.score == alone.measured.score
    assert told(together) == told(alone)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("score", [Score.of(spread, higher_is_better=True), "sqnr"])
def test_workers_ask_a_score_of_single_layers(score: Any, tmp_path: Path) -> None:
    """The prices of one process; what they were told is kept, so that nobody is asked again."""
    alone = search(None, "measured:score=own", score=score)

    together = search("ray", "measured:score=own", score=score, cache=tmp_path)

    assert together.problem.loss.values.any()
    assert told(together) == told(alone)
    for estimate in tmp_path.glob("*.estimate"):
        estimate.unlink()
    kept = set(tmp_path.glob("*.score"))
    assert told(search(None, "measured:score=own", score=score, cache=tmp_path)) == told(alone)
    assert set(tmp_path.glob("*.score")) == kept


def home_only(home: int, network: Any) -> Tensor:
    """A score that finds its file in one process alone."""
    if os.getpid() != home:
        raise OSError("no such file")
    return spread(network)


@pytest.mark.usefixtures("cluster")
def test_an_error_of_a_score_on_a_worker_is_that_of_one_process() -> None:
    """Which score, of which network (workers end in any order), and what it raised."""
    score = Score.of(partial(home_only, os.getpid()), higher_is_better=True, name="mine")

    with pytest.raises(
        ScoreError, match=r"^the score mine .* with .* in w[0-9]+a8: OSError: no such"
    ):
        search("ray", "measured:score=own", score=score)


@pytest.mark.usefixtures("cluster")
def test_workers_ask_a_score_for_a_comparison() -> None:
    """Of assignments, and for an estimate by it."""
    asked = {"score": Score.of(spread, higher_is_better=True)}
    alone, together = (
        mpq.compare(task(workers, **asked), LIMIT, estimators=["measured:score=own"], num_random=3)
        for workers in (None, "ray")
    )
    assert [x.divergence for x in together.trials] == [x.divergence for x in alone.trials]
    assert together.scores[0].predicted == alone.scores[0].predicted
