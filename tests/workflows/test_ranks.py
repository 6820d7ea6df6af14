"""``torchrun``: two processes share a search, and say what one says."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import mpq
from mpq._support.ranks import Ranks
from mpq.cli.__main__ import app
from mpq.errors import InputError, ModelError, WorkerError
from mpq.network.batch import Batch
from mpq.network.examples import Calibration
from mpq.network.metric import KL
from mpq.sensitivity import DiagonalFisher, OutputSketch
from mpq.workflows.evaluate import Reference
from mpq.workflows.kept_estimates import rank_share
from mpq.workflows.setup import Prepared
from mpq.workflows.shared_measurements import CALIBRATION, HELD_OUT, SharedMeasurements
from mpq.workflows.sums import OnTargets, Sums
from tests.user_file import user_file
from tests.workflows import ranked

ROOT = Path(__file__).resolve().parents[2]
RUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
NET = (
    user_file(num_batches=6)
    + """
import os

def failing():
    if os.environ.get("RANK") == "1":
        raise RuntimeError("this machine has lost its disk")
    return calibration()
"""
)
ASKED = ("--model", "net.py:make_net", "--limit", "effective_bits=4", "--quiet")


def torchrun(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Two processes, each with as many threads as this one."""
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*RUN, *arguments], cwd=folder, env={**os.environ, **threads},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], Any]:
    """What two ranks find, and one process."""
    folder = tmp_path_factory.mktemp("ranks")
    done = torchrun(folder, "-m", "tests.workflows.ranked", str(folder))
    assert done.returncode == 0, done.stderr
    by_rank = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]
    return by_rank, ranked.found(None, str(folder / "alone"))


def test_ranges_are_those_of_one_process(both: tuple[list[Any], Any]) -> None:
    """To the last bit: samples stand in the order of batches."""
    by_rank, alone = both

    assert alone["ranges"]
    assert all(found["ranges"] == alone["ranges"] for found in by_rank)


def test_second_moments_are_those_of_one_process(both: tuple[list[Any], Any]) -> None:
    """Up to the order of sums, in float32; and the ranks have the same to the last bit."""
    (first, second), alone = both

    for name, moment in alone["moments"].items():
        torch.testing.assert_close(first["moments"][name], moment, rtol=1e-4, atol=1e-5)
        assert torch.equal(first["moments"][name], second["moments"][name])


@pytest.mark.parametrize("name", [*ranked.ESTIMATORS, "no gradients", "kept", "kept again"])
def test_an_estimate_is_that_of_one_process(both: tuple[list[Any], Any], name: str) -> None:
    """Up to the order of sums; the same assignment, with the same measured loss, in all ranks."""
    by_rank, alone = both

    for found in by_rank:
        np.testing.assert_allclose(
            found[name]["table"], alone[name]["table"], rtol=1e-9, atol=1e-15
        )
        assert found[name]["assignment"] == alone[name]["assignment"]
        assert found[name]["measured"] == alone[name]["measured"]


def test_every_rank_measures_its_own_batches(both: tuple[list[Any], Any]) -> None:
    """All are asked the same, on held-out and on calibration examples."""
    (first, second), _ = both

    assert first["asked"] == second["asked"]
    assert set(first["asked"]) == {HELD_OUT, CALIBRATION}


@pytest.mark.parametrize("name", ["codes", "again"])
def test_codes_give_the_same_assignment(both: tuple[list[Any], Any], name: str) -> None:
    """Their second moments differ in the last digits of float32."""
    by_rank, alone = both

    for found in by_rank:
        np.testing.assert_allclose(found[name]["table"], alone[name]["table"], rtol=0.02)
        assert found[name]["assignment"] == alone[name]["assignment"]


def test_the_command_line_shares_and_one_rank_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``torchrun -m mpq search``: the answer once, and the files of one search."""
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    asked = ("search", *ASKED, "--data", "net.py:calibration", "--json")
    one = CliRunner().invoke(app, [*asked, "--output", "one"])

    two = torchrun(tmp_path, "-m", "mpq", *asked, "--output", "two")

    assert one.exit_code == 0, one.output
    assert two.returncode == 0, two.stderr
    assert json.loads(two.stdout)["layers"] == json.loads(one.stdout)["layers"]
    names = [{path.name for path in (tmp_path / run).iterdir()} for run in ("one", "two")]
    assert names[0] == names[1]


def test_a_rank_that_fails_ends_all_with_its_error(tmp_path: Path) -> None:
    """Nobody waits for it, and no results are left."""
    (tmp_path / "net.py").write_text(NET)

    done = torchrun(tmp_path, "-m", "mpq", "search", *ASKED, "--data", "net.py:failing")

    assert done.returncode != 0
    assert "this machine has lost its disk" in done.stderr
    assert not (tmp_path / "mpq-run").exists() or not list((tmp_path / "mpq-run").iterdir())


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("search", "--cache", "kept", "--shard", "1/2"), "torchrun and --shard both split"),
        (("devices",), "torchrun shares the work of search and frontier"),
    ],
)
def test_commands_that_are_not_shared_are_refused(
    command: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process would do all of it, and write the same files."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")

    done = CliRunner().invoke(app, list(command))

    assert done.exit_code == 2
    assert message in " ".join(done.output.split())


def test_estimators_and_data_that_cannot_be_split_are_refused() -> None:
    """In a sentence, before a batch is looked at."""
    on = Prepared.of(ranked.task(rounding="nearest")).asked

    with pytest.raises(InputError, match="torchrun splits what adds up .* 'fisher' cannot be"):
        rank_share(on, DiagonalFisher(), Pair(0, 2))
    with pytest.raises(InputError, match="6 batches cannot be split into 7 shares"):
        rank_share(on, OutputSketch(), Ranks(0, 7))


def test_processes_that_joined_nothing_are_told_how() -> None:
    """And words that are no workers."""
    with pytest.raises(InputError, match="start them by `torchrun"):
        mpq.search(ranked.task(workers="torchrun"), ranked.LIMIT, sensitivity="sketch")
    with pytest.raises(InputError, match="write ray .*, ray:2"):
        ranked.task(workers="dask")


class Threads(Ranks):  # type: ignore[misc]
    """Ranks of threads, which hand over what processes would send."""

    def __init__(self, rank: int, told: list[Any], barrier: threading.Barrier) -> None:
        super().__init__(rank, len(told))
        self._told, self._barrier = told, barrier

    def gathered(self, value: Any) -> list[Any]:
        self._told[self.rank] = value
        self._barrier.wait(timeout=10)
        found = list(self._told)
        self._barrier.wait(timeout=10)
        return found

    def from_first(self, value: Any) -> Any:
        return self.gathered(value)[0]


def led(work: Callable[[Ranks], Any], serve: Callable[[int, Any], Any], size: int = 3) -> list[Any]:
    """What ``Ranks.led`` gives or raises, by rank."""
    told, barrier = [None] * size, threading.Barrier(size)
    found: list[Any] = [None] * size

    def run(rank: int) -> None:
        ranks = Threads(rank, told, barrier)
        try:
            found[rank] = ranks.led(partial(work, ranks), partial(serve, rank))
        except Exception as error:  # whatever it is, it is looked at
            found[rank] = error
        assert not ranks.is_leading

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    return found


def test_all_do_what_the_first_one_asks() -> None:
    """As often as it asks, and all have what its work gives."""

    def work(ranks: Ranks) -> list[Any]:
        return [ranks.ask(question) for question in (5, 7)]

    assert led(work, lambda rank, asked: asked + 10 * rank) == [[[5, 15, 25], [7, 17, 27]]] * 3


def test_work_that_fails_ends_the_others() -> None:
    """With its words, after any number of questions."""

    def work(ranks: Ranks) -> None:
        ranks.ask(1)
        raise ValueError("nothing is feasible")

    first, *others = led(work, lambda rank, asked: asked)

    assert isinstance(first, ValueError)
    assert all(isinstance(x, WorkerError) for x in others)
    assert all("rank 0 failed: ValueError: nothing is feasible" in str(x) for x in others)


@pytest.mark.parametrize("failing", [0, 2])
def test_a_rank_that_fails_to_serve_ends_all(failing: int) -> None:
    """Nobody waits: its own error there, with its number in the others."""

    def serve(rank: int, asked: int) -> int:
        return asked // (rank - failing)

    found = led(lambda ranks: ranks.ask(1), serve)

    assert isinstance(found[failing], ZeroDivisionError)
    others = [x for rank, x in enumerate(found) if rank != failing]
    assert all(isinstance(x, WorkerError) for x in others)
    assert all(f"rank {failing} failed: ZeroDivisionError" in str(x) for x in others)


def test_an_error_of_a_measurement_is_raised_by_the_first() -> None:
    """As if one process had measured; the others go on serving."""

    def work(ranks: Ranks) -> str:
        with pytest.raises(ModelError, match="batch 1 is not finite"):
            SharedMeasurements(ranks, HELD_OUT).sums({})
        return "another assignment"

    def serve(rank: int, _: Any) -> Any:
        return ModelError("the output of batch 1 is not finite") if rank == 1 else Sums()

    assert led(work, serve) == ["another assignment"] * 3


def test_shares_are_put_together_in_the_order_of_examples() -> None:
    """Also where some ranks had more batches, or cut theirs in halves."""

    def share(*starts: int) -> Sums:
        found = Sums()
        for start in starts:
            found.add(Batch(start=start), np.full(2, float(start)), OnTargets(2, 1, 0.5))
        return found

    found = Sums.joined([share(0, 2, 8), share(4), share(6)])

    assert [batch.start for batch in found.batches] == [0, 2, 4, 6, 8]
    measured = found.measurement(KL)
    assert measured.by_example.tolist() == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8]
    assert (measured.divergence, measured.accuracy) == (4.0, 0.5)
    assert measured.cross_entropy_nats == 0.25


def test_a_share_is_compared_with_its_own_answers_however_batches_are_cut() -> None:
    """Where memory ran out, the original's answers are in pieces of batches."""
    torch.manual_seed(0)
    data = Calibration([torch.randn(8, 6) for _ in range(4)]).between(8, 32)
    original, other = torch.nn.Linear(6, 3), torch.nn.Linear(6, 3)
    whole = Reference(original, data)
    cut = Reference(original, data.by(2))

    assert whole.num_batches == cut.num_batches == 3
    for reference in (whole, cut):
        shares = [reference.share(Ranks(rank, 2)).sums(other) for rank in range(2)]
        joined = Sums.joined(shares).measurement(KL)
        assert joined.by_example.tolist() == pytest.approx(
            whole.compare(other).by_example.tolist(), rel=1e-6
        )
    assert cut.with_its_examples().compare(other) == cut.compare(other)


def test_a_share_of_examples_knows_where_its_batches_stand() -> None:
    """Among all of them, and in pieces."""
    data = Calibration([torch.zeros(4, 1)] * 5).between(2, 18)

    def starts(found: Calibration) -> list[int]:
        return [batch.start for batch in found]

    assert starts(data.share(Ranks(0, 2))) == [2, 8, 16]
    assert starts(data.share(Ranks(1, 2))) == [4, 12]
    assert starts(data.share(Ranks(1, 2)).by(2)) == [4, 6, 12, 14]
    assert starts(data) == [2, 4, 8, 12, 16]


class Pair(Ranks):  # type: ignore[misc]
    """Two ranks of which the other one has failed."""

    def gathered(self, value: Any) -> list[Any]:
        return [value, (None, "RuntimeError: no disk")]


def test_an_error_of_another_rank_is_an_error() -> None:
    """With its number and its words; an own one is raised as it is."""
    with pytest.raises(WorkerError, match="rank 1 failed: RuntimeError: no disk"):
        Pair(0, 2).together(lambda: 3)
    with pytest.raises(ZeroDivisionError):
        Pair(0, 2).together(lambda: 1 // 0)
