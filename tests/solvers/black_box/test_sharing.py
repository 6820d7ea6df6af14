"""Four processes at once on one study, in every storage that there is here."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
import pytest
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.quantization.precision import Precision
from mpq.solvers.black_box.evolutionary import Evolutionary

PRECISIONS = tuple(map(Precision.parse, ("w2a8", "w4a8", "w6a8", "w8a8")))
NUM_PROCESSES, NUM_TRIALS, BATCH_SIZE = 4, 120, 4
IN_A_PROCESS = """
import json, sys, time
from pathlib import Path
import numpy as np
from mpq.problem.problem import Problem
from mpq.solvers.black_box.evolutionary import Evolutionary

storage, folder, seed, count, num_trials, batch_size = sys.argv[1:]
problem = Problem.from_json(sys.stdin.read())
measured = []

def losses(choices):
    if not measured:
        (Path(folder) / f"begun-{seed}").touch()
        # So that none has ended before all have begun; not for ever, should one have failed.
        for _ in range(6000):
            if len(list(Path(folder).glob("begun-*"))) == int(count):
                break
            time.sleep(0.01)
    measured.extend(choices.tolist())
    time.sleep(0.002 * len(choices))
    return (choices * np.arange(1, choices.shape[1] + 1)).sum(axis=1) % 17 + choices[:, 0] / 10

solver = Evolutionary(
    num_trials=int(num_trials), population_size=10, batch_size=int(batch_size), seed=int(seed),
    storage=storage, objective=losses,
)
loss = solver.solve(problem).loss
print(json.dumps([measured, loss]))
"""


def problem() -> Problem:
    """Twelve layers at four precisions, most of whose assignments are within the budget."""
    rng = np.random.default_rng(0)
    names = tuple(f"layer{i}" for i in range(12))
    loss = -np.sort(-rng.lognormal(0, 1, (12, 4)), axis=1)
    cost = np.sort(rng.random((12, 4)), axis=1)
    size = CostTable("size", "bytes", names, PRECISIONS, cost)
    budget = Budget.of(size, 0.8 * float(cost[:, 3].sum()))
    return Problem(CostTable("loss", "nats", names, PRECISIONS, loss), Constraints((budget,)))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a database of a PostgreSQL server that runs for this module, on a socket."""
    pytest.importorskip("psycopg", reason="the driver of PostgreSQL is not installed")
    if not (shutil.which("initdb") and shutil.which("pg_ctl")):
        pytest.skip("there is no PostgreSQL server on this machine")
    # The path of a socket is at most about 100 characters.
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    # The server refuses to run as root.
    user = {"user": "nobody"} if os.geteuid() == 0 else {}
    if user:
        shutil.chown(folder, **user)
    data = str(folder / "data")
    begin = ["pg_ctl", "-D", data, "-w", "-l", str(folder / "log")]
    options = f"-k {folder} -c listen_addresses= -c fsync=off"

    def run(*command: str) -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, **user)  # type: ignore[call-overload]

    run("initdb", "-D", data, "-U", "me", "-A", "trust")
    run(*begin, "-o", options, "start")
    try:
        yield f"postgresql://me@/postgres?host={folder}"
    finally:
        run(*begin, "-m", "immediate", "stop")
        shutil.rmtree(folder)


def trials_of(storage: str) -> list[optuna.trial.FrozenTrial]:
    """All that a study holds, as optuna reads it."""
    if "://" not in storage:
        journal = JournalStorage(JournalFileBackend(storage))
        return optuna.load_study(study_name="mpq", storage=journal).trials
    database = RDBStorage(storage)
    found = optuna.load_study(study_name="mpq", storage=database).trials
    database.remove_session()
    database.engine.dispose()
    return found


@pytest.mark.parametrize("kind", ["journal", "sqlite", "postgresql"])
def test_four_processes_share_a_study(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Nothing is lost; no process measures anything twice, nor what another has written before.

    What others have under way at the same time nobody knows: at the end, too, each may have a batch
    of its own.
    """
    urls: dict[str, Callable[[], str]] = {
        "journal": lambda: str(tmp_path / "search.log"),
        "sqlite": lambda: f"sqlite:///{tmp_path}/search.db",
        "postgresql": lambda: str(request.getfixturevalue("server")),
    }
    storage = urls[kind]()
    numbers = [str(n) for n in (NUM_PROCESSES, NUM_TRIALS, BATCH_SIZE)]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", IN_A_PROCESS, storage, str(tmp_path), str(seed), *numbers],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for seed in range(NUM_PROCESSES)
    ]  # fmt: skip
    try:
        for process in started:
            assert process.stdin is not None
            process.stdin.write(problem().to_json())
            process.stdin.close()
            process.stdin = None
        ended = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()

    assert [process.returncode for process in started] == [0] * NUM_PROCESSES, ended
    answers = [json.loads(out) for out, _ in ended]
    measured = [[",".join(map(str, columns)) for columns in rows] for rows, _ in answers]
    kept = [trial.user_attrs["mpq:choice"] for trial in trials_of(storage)]
    assert Counter(kept) == Counter(row for rows in measured for row in rows)
    assert NUM_TRIALS <= len(kept) <= NUM_TRIALS + (NUM_PROCESSES - 1) * BATCH_SIZE
    assert all(len(set(rows)) == len(rows) > 0 for rows in measured)
    # The first batch is begun without knowing of each other; later ones seldom meet.
    assert len(kept) - len(set(kept)) <= NUM_PROCESSES * BATCH_SIZE
    whole = Evolutionary(num_trials=NUM_TRIALS, storage=storage, objective=refusing)
    assert whole.solve(problem()).loss == min(loss for _, loss in answers)


def refusing(assignments: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """Is never asked: the study is complete."""
    raise AssertionError(assignments)


def test_tables_that_another_process_makes_meanwhile_are_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these errors is what SQLite said to one of four processes that began at once."""
    errors: list[SQLAlchemyError] = [
        OperationalError("CREATE TABLE", None, sqlite3.Error("table studies already exists")),
        IntegrityError("INSERT", None, sqlite3.Error("UNIQUE constraint failed: version_num")),
    ]
    create = optuna.create_study

    def meeting(**options: Any) -> optuna.Study:
        if errors:
            raise errors.pop()
        return create(**options)

    monkeypatch.setattr(optuna, "create_study", meeting)
    storage = f"sqlite:///{tmp_path}/search.db"

    Evolutionary(num_trials=6, population_size=2, storage=storage).solve(problem())

    assert not errors
    assert len(trials_of(storage)) == 6
