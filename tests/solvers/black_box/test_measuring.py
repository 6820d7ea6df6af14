"""What the solvers of measured losses share: batches, storage, resuming, sharing."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import optuna
import pytest

from mpq._support.events import listening
from mpq._support.progress import Progressed
from mpq._support.study_file import study_file
from mpq.errors import (
    FileFormatError,
    InputError,
    MismatchError,
    MissingDependencyError,
    SolverError,
)
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.interactions import Interactions
from mpq.problem.problem import Problem
from mpq.problem.solution import Status
from mpq.quantization.precision import Precision
from mpq.solvers._base import MeasuredLosses
from mpq.solvers.black_box._base import MeasuringSolver, predicted
from mpq.solvers.black_box.bayesian import Bayesian
from mpq.solvers.black_box.evolutionary import Evolutionary
from mpq.solvers.black_box.surrogate import Surrogate
from tests.callbacks.listeners import Kept

PRECISIONS = tuple(map(Precision.parse, ("w2a8", "w4a8", "w6a8", "w8a8")))
Floats = npt.NDArray[np.float64]
Assignments = npt.NDArray[np.intp]

Solvers = Evolutionary | Bayesian | Surrogate
EVERY: list[Solvers] = [
    Evolutionary(num_trials=40, population_size=10, batch_size=10),
    Bayesian(num_trials=40, batch_size=10),
    Surrogate(num_trials=40, batch_size=10),
]


def name_of(solver: MeasuringSolver) -> str:
    """How pytest calls a solver."""
    return solver.name


@dataclass(frozen=True, eq=False)
class Case:
    """A problem as plain numbers, from which the reference works; one limit that binds."""

    loss: Floats
    cost: Floats
    limit: float
    ties: tuple[tuple[int, ...], ...] = ()
    fixed: dict[int, int] = field(default_factory=dict)

    def problem(self, interactions: Interactions | None = None) -> Problem:
        """The same for mpq."""
        names = tuple(f"layer{i}" for i in range(len(self.loss)))
        precisions = PRECISIONS[: self.loss.shape[1]]
        cost = CostTable("size", "bytes", names, precisions, self.cost)
        return Problem(
            CostTable("loss", "nats", names, precisions, self.loss),
            Constraints(
                (Budget.of(cost, self.limit),),
                tuple(tuple(names[i] for i in tie) for tie in self.ties),
                {names[i]: precisions[column] for i, column in self.fixed.items()},
            ),
            interactions=interactions,
        )

    def feasible(self) -> Assignments:
        """``[A, L]`` every assignment within the limit that keeps ties and fixed layers."""
        layers, precisions = self.loss.shape
        every = np.array(list(product(range(precisions), repeat=layers)), dtype=np.intp)
        keep = self.cost[np.arange(layers), every].sum(axis=1) <= self.limit
        for tie in self.ties:
            keep &= (every[:, list(tie)] == every[:, [tie[0]]]).all(axis=1)
        for layer, column in self.fixed.items():
            keep &= every[:, layer] == column
        return np.asarray(every[keep])


def random_case(seed: int, layers: int = 4, precisions: int = 3, share: float = 0.5) -> Case:
    """Losses that fall and costs that rise with the bits."""
    rng = np.random.default_rng(seed)
    loss = -np.sort(-rng.lognormal(0, 1, (layers, precisions)), axis=1)
    cost = np.sort(rng.integers(1, 50, (layers, precisions)), axis=1).astype(np.float64)
    low, high = cost.min(axis=1).sum(), cost.max(axis=1).sum()
    return Case(loss, cost, float(np.floor(low + share * (high - low))))


def rugged(assignments: Assignments) -> Floats:
    """A loss that is neither a sum nor a quadratic form."""
    weights = np.arange(1, assignments.shape[1] + 1) ** 2  # integers: the same in any batch
    return np.asarray(2 + np.sin(assignments @ weights) + 0.05 * assignments.max(axis=1))


class Recorder:
    """An objective that remembers what it was asked."""

    def __init__(self, objective: Callable[[Assignments], Floats] = rugged) -> None:
        self.batches: list[Assignments] = []
        self._objective = objective

    def __call__(self, assignments: Assignments) -> Floats:
        self.batches.append(assignments.copy())
        return self._objective(assignments)

    def rows(self) -> list[tuple[int, ...]]:
        """Every assignment, in the order of the questions."""
        return [tuple(row) for batch in self.batches for row in batch.tolist()]


@pytest.mark.parametrize("solver", EVERY, ids=name_of)
def test_batches_are_what_was_promised(solver: Solvers) -> None:
    """``[P, L]``, at most a batch at once, within the budgets, none twice, as many as asked."""
    problem = replace(random_case(0, layers=12, precisions=4), ties=((0, 5),)).problem()
    recorder = Recorder()

    solution = solver.bind(recorder).solve(problem)

    rows = recorder.rows()
    assert all(b.shape[0] <= 10 and b.shape[1:] == (12,) for b in recorder.batches)
    assert [len(b) for b in recorder.batches] == [10] * 4
    assert all(problem.is_feasible(np.array(row)) for row in rows)
    assert len(set(rows)) == len(rows) == 40
    assert solution.loss == min(float(rugged(np.array([row]))[0]) for row in rows)


@pytest.mark.parametrize("solver", EVERY, ids=name_of)
@pytest.mark.parametrize("seed", range(3))
def test_small_problems_are_searched_to_the_end(solver: Solvers, seed: int) -> None:
    """Where there are enough trials for everything, the least measured loss is found."""
    case = replace(random_case(seed, layers=5), ties=((0, 2),), fixed={4: 1} if seed else {})
    objective = Recorder()

    solution = replace(solver, num_trials=300).bind(objective).solve(case.problem())

    losses = rugged(case.feasible())
    assert solution.columns is not None
    assert solution.loss == losses.min()
    assert solution.loss == rugged(solution.columns[None])[0]
    assert (solution.status, solution.bound) == (Status.FEASIBLE, None)
    assert len(objective.rows()) <= len(losses)


@pytest.mark.parametrize("solver", EVERY, ids=name_of)
def test_without_an_objective_the_predicted_loss_is_minimised(solver: Solvers) -> None:
    """With interactions, against all assignments; without, the exact answer with its proof."""
    case = random_case(1, layers=4)
    factor = np.random.default_rng(1).standard_normal((9, 4, 3)).astype(np.float32)
    problem = case.problem(Interactions(factor, 0.3))

    solution = replace(solver, num_trials=100).solve(problem)

    chosen = factor.astype(np.float64)[:, np.arange(4), case.feasible()]  # [S, A, L]
    pairs = 0.5 * (chosen.sum(axis=2) ** 2 - (chosen**2).sum(axis=2)).mean(axis=0)
    losses = case.loss[np.arange(4), case.feasible()].sum(axis=1) + 0.7 * pairs
    assert solution.loss == pytest.approx(losses.min(), rel=1e-6)
    assert solver.solve(problem.additive()).status is Status.OPTIMAL


def test_predicted_losses_of_a_batch() -> None:
    """Each is the problem's own, up to the last digits."""
    factor = np.random.default_rng(1).standard_normal((9, 4, 3))
    for interactions in (None, Interactions(factor, 0.2)):
        problem = random_case(1).problem(interactions)
        assignments = random_case(1).feasible()

        losses = predicted(problem)(assignments)

        expected = [problem.loss_of(columns) for columns in assignments]
        np.testing.assert_allclose(losses, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", EVERY, ids=name_of)
def test_an_infeasible_problem_is_recognised(solver: Solvers) -> None:
    """With the shortfalls, and nothing is measured."""
    recorder = Recorder()
    case = replace(random_case(0), limit=1.0)

    solution = solver.bind(recorder).solve(case.problem())

    assert solution.status is Status.INFEASIBLE
    assert [s.resource for s in solution.shortfalls] == ["size"]
    assert recorder.batches == []


@pytest.mark.parametrize(
    ("solver", "kind"),
    [*((solver, "journal") for solver in EVERY), (EVERY[0], "sqlite")],
    ids=["evolutionary", "bayesian", "surrogate", "evolutionary-sqlite"],
)
def test_a_search_goes_on_where_it_ended(solver: Solvers, kind: str, tmp_path: Path) -> None:
    """Ended within a batch: no trial is evaluated again, and the rest is as without the end."""
    problem = random_case(3, layers=12, precisions=4).problem()
    storage = str(tmp_path / "run.log") if kind == "journal" else f"sqlite:///{tmp_path}/run.db"
    whole, first, second, third = (Recorder() for _ in range(4))
    stored = replace(solver, storage=storage, study="a study")

    expected = solver.bind(whole).solve(problem)
    replace(stored, num_trials=25).bind(first).solve(problem)
    resumed = stored.bind(second).solve(problem)
    again = stored.bind(third).solve(problem)

    assert (len(first.rows()), len(second.rows()), third.rows()) == (25, 15, [])
    assert first.rows() + second.rows() == whole.rows()
    for solution in (resumed, again):
        assert solution.loss == expected.loss
        np.testing.assert_array_equal(solution.columns, expected.columns)


@pytest.mark.parametrize("solver", EVERY, ids=name_of)
def test_a_failure_loses_one_batch_only(solver: Solvers, tmp_path: Path) -> None:
    """What was finished before the objective failed is not evaluated again."""
    problem = random_case(3, layers=12, precisions=4).problem()
    stored = replace(solver, storage=str(tmp_path / "run.log"))
    recorder = Recorder()

    def failing(assignments: Assignments) -> Floats:
        if len(recorder.batches) == 2:
            raise KeyboardInterrupt
        return recorder(assignments)

    with pytest.raises(KeyboardInterrupt):
        stored.bind(failing).solve(problem)
    rest = Recorder()
    stored.bind(rest).solve(problem)

    assert len(recorder.rows()) == len(rest.rows()) == 20
    assert not set(recorder.rows()) & set(rest.rows())


IN_A_PROCESS = """
import sys, time
from pathlib import Path
import numpy as np
from mpq.problem.problem import Problem
from mpq.solvers.black_box.evolutionary import Evolutionary

problem = Problem.from_json(sys.stdin.read())
num_measured = 0
here, other = (Path(f"{sys.argv[1]}.{name}") for name in sys.argv[2:4])

def measured(choices):
    global num_measured
    here.touch()
    while not other.exists():  # so that none has ended before the other has begun
        time.sleep(0.01)
    num_measured += len(choices)
    return (choices * np.arange(1, choices.shape[1] + 1)).sum(axis=1) % 17 + choices[:, 0] / 10

solver = Evolutionary(
    num_trials=300, population_size=10, batch_size=5, seed=int(sys.argv[2]), storage=sys.argv[1],
    objective=measured,
)
solution = solver.solve(problem)
print(num_measured, solution.loss)
"""


def test_two_processes_share_a_study(tmp_path: Path) -> None:
    """At the same time: together they evaluate what one would, and both answers are in there."""
    storage = str(tmp_path / "run.log")
    problem = random_case(3, layers=12, precisions=4).problem()
    text = problem.to_json()
    recorder = Recorder()

    started = [
        subprocess.Popen(
            [sys.executable, "-c", IN_A_PROCESS, storage, seed, other],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed, other in (("1", "2"), ("2", "1"))
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write(text)
        process.stdin.close()
        process.stdin = None
    try:
        printed = [process.communicate(timeout=60)[0].split() for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()
    solver = Evolutionary(num_trials=300, batch_size=5, storage=storage, objective=recorder)
    whole = solver.solve(problem)

    counts = [int(words[0]) for words in printed]
    # Either may have a batch under way when the other writes the last trial.
    assert 300 <= sum(counts) <= 305
    assert min(counts) > 0
    assert recorder.batches == []
    assert whole.loss == min(float(words[1]) for words in printed)


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_solvers_share_a_study(kind: str, tmp_path: Path) -> None:
    """What one has measured the next one builds on."""
    problem = random_case(3, layers=12, precisions=4).problem()
    storage = str(tmp_path / "run.log") if kind == "journal" else f"sqlite:///{tmp_path}/run.db"
    recorder = Recorder()

    losses = [
        replace(solver, num_trials=count, storage=storage).bind(recorder).solve(problem).loss
        for solver, count in zip(EVERY, (20, 30, 40), strict=True)
    ]

    assert len(recorder.rows()) == len(set(recorder.rows())) == 40
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == min(float(rugged(np.array([row]))[0]) for row in recorder.rows())


def stored_problem(tmp_path: Path) -> tuple[Case, Evolutionary]:
    """A case, and a solver in whose storage its trials are."""
    case = random_case(0)
    solver = replace(EVERY[0], storage=str(tmp_path / "run.log"), objective=rugged)
    assert isinstance(solver, Evolutionary)
    solver.solve(case.problem())
    return case, solver


OTHERS: dict[str, tuple[Callable[[Case], Case], str]] = {
    "limit": (lambda case: replace(case, limit=case.limit + 1), "other layers"),
    "cost": (lambda case: replace(case, cost=case.cost + 1e-9), "other layers"),
    "ties": (lambda case: replace(case, ties=((0, 1),)), "other layers"),
    "fixed": (lambda case: replace(case, fixed={0: 0}), "other layers"),
    "loss": (lambda case: replace(case, loss=case.loss * 1.01), "another predicted loss"),
    "layers": (lambda case: random_case(0, layers=5), "other layers"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_study_of_another_problem_is_refused(what: str, tmp_path: Path) -> None:
    """Trials of different problems are never mixed; the message says what differs."""
    case, solver = stored_problem(tmp_path)
    change, reason = OTHERS[what]

    with pytest.raises(MismatchError, match=f"study 'mpq' belongs to another problem.*{reason}"):
        solver.solve(change(case).problem())
    replace(solver, study="another").solve(change(case).problem())


def test_a_study_of_another_kind_is_refused(tmp_path: Path) -> None:
    """Measured and predicted losses do not mix, nor do one objective and several."""
    case, solver = stored_problem(tmp_path)

    with pytest.raises(MismatchError, match="kind of loss"):
        replace(solver, objective=None).solve(case.problem())
    with pytest.raises(MismatchError, match="1 objectives instead of 2"):
        replace(solver, objectives="loss+costs").solve(case.problem())


def test_the_last_digits_of_an_estimate_do_not_matter(tmp_path: Path) -> None:
    """Another machine estimates the same table in another order of sums."""
    case, solver = stored_problem(tmp_path)
    recorder = Recorder()

    solver.bind(recorder).solve(replace(case, loss=case.loss * (1 + 1e-9)).problem())

    assert recorder.batches == []


def test_trials_that_break_a_budget_are_not_taken_on_trust(tmp_path: Path) -> None:
    """Somebody wrote one into the study, with a loss that nothing has."""
    case, solver = stored_problem(tmp_path)
    (study,) = optuna.get_all_study_summaries(journal(solver.storage))
    loaded = optuna.load_study(study_name=study.study_name, storage=journal(solver.storage))
    best = ",".join(str(column) for column in case.cost.argmax(axis=1))
    loaded.add_trial(optuna.create_trial(value=-9.0, user_attrs={"mpq:choice": best}))

    solution = replace(solver, num_trials=41).solve(case.problem())

    assert solution.loss >= 1.0
    loaded.add_trial(optuna.create_trial(value=-9.0, user_attrs={"mpq:choice": "7,7,7,7"}))
    with pytest.raises(FileFormatError, match="or is damaged"):
        solver.solve(case.problem())


@pytest.mark.parametrize("choice", ["-1,-1,-1,-1", "-1,0,0,0", "0,0,0,-2"])
def test_columns_below_0_are_not_taken_on_trust(choice: str, tmp_path: Path) -> None:
    """numpy would count them from the end, and take them for a choice that is allowed."""
    case, solver = stored_problem(tmp_path)
    (study,) = optuna.get_all_study_summaries(journal(solver.storage))
    loaded = optuna.load_study(study_name=study.study_name, storage=journal(solver.storage))
    loaded.add_trial(optuna.create_trial(value=-9.0, user_attrs={"mpq:choice": choice}))

    with pytest.raises(FileFormatError, match="or is damaged"):
        solver.solve(case.problem())


def journal(path: str) -> optuna.storages.JournalStorage:
    """The storage as optuna knows it."""
    backend = optuna.storages.journal.JournalFileBackend(path)
    return optuna.storages.JournalStorage(backend)


@pytest.mark.parametrize(
    ("storage", "error", "message"),
    [
        ("oracel://host/db", InputError, "cannot be used: Can't load plugin.*give a path"),
        ("sqlite:search.db", InputError, "expected a path .* or a database URL"),
        ("redis://host", InputError, "expected a path .* or a database URL"),
        ("sqlite:////nowhere/search.db", InputError, "cannot be used: .*unable to open"),
        ("mysql://host/db", MissingDependencyError, "not installed: pip install mysqlclient, or"),
        ("mssql+pyodbc://host/db", MissingDependencyError, "not installed: No module .*pyodbc"),
        ("/nowhere/search.log", InputError, "cannot be used: .*No such file or directory"),
        ("{tmp_path}", InputError, "it is no regular file"),
        ("mysql://me:secret@host/db", MissingDependencyError, r"me:\*\*\*@host.* not installed"),
        ("{tmp_path}/user.py", FileFormatError, "is no journal .* begins with 'print"),
        ("{tmp_path}/notes.txt", FileFormatError, "is no journal of optuna's, or is damaged"),
        ("{tmp_path}/lines.jsonl", FileFormatError, "is no journal of optuna's, or is damaged"),
        ("sqlite:///{tmp_path}/notes.txt", InputError, "cannot be used: .*not a database"),
    ],
)
def test_a_storage_that_cannot_be_used(
    storage: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    """The message says what was expected; nothing is measured."""
    (tmp_path / "notes.txt").write_text("just a note\n" * 200)
    (tmp_path / "user.py").write_text("print()  # hours of work, without a line end")
    (tmp_path / "lines.jsonl").write_text('{"loss": 1}\n{"loss": 2}\n')
    recorder = Recorder()
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    solver = replace(EVERY[0], storage=storage.format(tmp_path=tmp_path)).bind(recorder)

    with pytest.raises(error, match=message):
        solver.solve(random_case(0).problem())

    assert recorder.batches == []
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("url", "module", "line"),
    [
        ("postgresql://me:secret@host/db", "psycopg", r"pip install 'psycopg\[binary\]'"),
        ("postgresql+psycopg2://host/db", "psycopg2", "pip install psycopg2-binary"),
        ("mysql+pymysql://host/db", "pymysql", r"pip install 'pymysql\[rsa\]'"),
    ],
)
def test_a_driver_that_is_missing_is_named_with_its_line(
    url: str, module: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not it is installed here."""
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(MissingDependencyError, match=f"driver is not installed: {line}$"):
        replace(EVERY[0], storage=url).solve(random_case(0).problem())


def test_a_study_cut_anywhere_in_its_last_line_goes_on(tmp_path: Path) -> None:
    """A process that is killed in the middle of a write costs one trial."""
    case, solver = stored_problem(tmp_path)
    path = Path(solver.storage)
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    for cut in (1, len(last) // 2, len(last) - 1):
        path.write_bytes(whole[:-cut])

        calls: list[int] = []

        def counting(assignments: Assignments, calls: list[int] = calls) -> Floats:
            calls.append(len(assignments))
            return rugged(assignments)

        replace(solver, objective=counting).solve(case.problem())

        assert sum(calls) <= 1
        assert path.read_bytes()[: len(whole) - len(last)] == whole[: -len(last)]


def test_a_torn_line_is_gone_from_the_disk_before_the_next_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut the next line does not stand behind half of another."""
    path = tmp_path / "study.log"
    whole = b'{"op_code": 0}\n'
    path.write_bytes(whole + b'{"op_c')
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))

    study_file(str(path))

    assert synced == [len(whole)]
    assert path.read_bytes() == whole


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    """Whoever comes next waits for nobody."""
    case, solver = stored_problem(tmp_path)
    holding = (
        "import sys, time; from mpq._support.locks import locked\n"
        "with open(sys.argv[1], 'ab') as file, locked(file): print(flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", holding, solver.storage], stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    holder.kill()
    holder.communicate()
    start = time.monotonic()

    replace(solver, num_trials=41).solve(case.problem())

    assert time.monotonic() - start < 20
    assert {file.name for file in tmp_path.iterdir()} == {Path(solver.storage).name}


def test_a_storage_that_fails_on_the_way(tmp_path: Path) -> None:
    """Trials that cannot be written are an error of the solver, not of what was given."""
    storage = f"sqlite:///{tmp_path}/run.db"

    def dropping(assignments: Assignments) -> Floats:
        (tmp_path / "run.db").write_bytes(b"overwritten" * 1000)
        return rugged(assignments)

    with pytest.raises(SolverError, match="storage 'sqlite.*cannot be used"):
        replace(EVERY[0], storage=storage).bind(dropping).solve(random_case(0).problem())


@pytest.mark.parametrize("solver", EVERY, ids=name_of)
def test_losses_that_are_no_losses(solver: Solvers) -> None:
    """One number for each assignment, none of them nan; infinite ones are merely bad."""
    problem = random_case(0).problem()

    with pytest.raises(
        InputError, match=rf"{solver.name}: an objective returns one loss .* \(1,\)"
    ):
        solver.bind(lambda assignments: np.ones(1)).solve(problem)
    with pytest.raises(SolverError, match=rf"{solver.name}: the loss of the assignment \[.*nan"):
        solver.bind(lambda assignments: rugged(assignments) + np.nan).solve(problem)
    mostly = solver.bind(
        lambda assignments: np.where(assignments[:, 0], np.inf, rugged(assignments))
    )
    assert np.isfinite(mostly.solve(problem).loss)


@pytest.mark.parametrize("solver", EVERY, ids=name_of)
def test_starts_are_measured_first(solver: Solvers) -> None:
    """Also where the search is not seeded; one that breaks a budget is left out."""
    case = random_case(2, layers=6)
    start = tuple(case.feasible()[7].tolist())
    most_expensive = tuple(case.cost.argmax(axis=1).tolist())
    recorder = Recorder()

    replace(solver, starts=(most_expensive, start), is_seeded=False).bind(recorder).solve(
        case.problem()
    )

    assert recorder.rows()[0] == start
    assert most_expensive not in recorder.rows()


@pytest.mark.parametrize("start", [(0, 0, 0), (0, 0, 0, 9), (0, 0, 0, -1), (0, 1, 0, 0)])
def test_a_start_that_is_no_assignment(start: tuple[int, ...]) -> None:
    """One column for each layer, allowed there, the same for tied layers."""
    problem = replace(random_case(0), ties=((0, 1),)).problem()

    with pytest.raises(InputError, match=r"one column from 0 to 2 for each of the 4 layers"):
        replace(EVERY[0], starts=(start,)).solve(problem)


@pytest.mark.parametrize("solver", EVERY, ids=name_of)
@pytest.mark.parametrize("options", [{"num_trials": 0}, {"batch_size": 0}, {"seed": -1}])
def test_options_that_make_no_sense(solver: Solvers, options: dict[str, int]) -> None:
    """The message has the numbers."""
    with pytest.raises(InputError, match=f"{solver.name} needs .*got"):
        replace(solver, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", EVERY, ids=name_of)
def test_to_be_measured_means_by_something(solver: Solvers) -> None:
    """``is_measured`` without an objective is an error, not the predicted loss."""
    with pytest.raises(InputError, match="is_measured=true needs a network"):
        replace(solver, is_measured=True).solve(random_case(0).problem())
    measured = replace(solver, is_measured=True).bind(rugged).solve(random_case(0).problem())
    assert measured.status is Status.FEASIBLE


@pytest.mark.parametrize("solver", EVERY, ids=name_of)
def test_nothing_global_is_changed(solver: Solvers, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither numpy's random state nor optuna's verbosity; and nothing is printed."""
    np.random.seed(11)
    expected = np.random.random(3)
    np.random.seed(11)
    verbosity = optuna.logging.get_verbosity()

    solver.bind(rugged).solve(random_case(0, layers=8).problem())

    np.testing.assert_array_equal(np.random.random(3), expected)
    assert optuna.logging.get_verbosity() == verbosity
    assert capfd.readouterr() == ("", "")


def test_progress_is_told_where_asked_for() -> None:
    """One kind of work, one step for each trial."""
    kept = Kept()
    with listening([kept]):
        EVERY[0].bind(rugged).solve(random_case(0, layers=8).problem())

    told = [event for event in kept.of(Progressed) if event.work == "evolutionary search"]
    assert [event.done for event in told] == list(range(len(told)))
    assert len(told) > 1


IN_ANOTHER_PROCESS = """
import sys
import numpy as np
from mpq.problem.problem import Problem
from mpq.solvers.black_box.bayesian import Bayesian
from mpq.solvers.black_box.evolutionary import Evolutionary
from mpq.solvers.black_box.surrogate import Surrogate

problem = Problem.from_json(sys.stdin.read())
for kind in (Evolutionary, Bayesian, Surrogate):
    seen = []
    def measured(choices):
        seen.extend(choices.tolist())
        return np.sin(choices @ np.arange(1.0, choices.shape[1] + 1))
    kind(num_trials=40, batch_size=10, seed=3).bind(measured).solve(problem)
    print(seen)
"""


def test_the_same_trials_in_another_process() -> None:
    """Whatever the hashes of strings are there."""
    problem = random_case(5, layers=12, precisions=4).problem()

    printed = [
        subprocess.run(
            [sys.executable, "-c", IN_ANOTHER_PROCESS],
            input=problem.to_json(),
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]

    assert printed[0].count("\n") == 3
    assert printed[0] == printed[1]


@pytest.mark.parametrize("solver", EVERY, ids=name_of)
def test_the_assignment_whose_loss_is_nan_is_the_one_that_is_named(solver: Solvers) -> None:
    """Not the first of its batch: whoever looks for the reason measures it alone."""
    asked: list[list[int]] = []

    def third(assignments: Assignments) -> Floats:
        losses = rugged(assignments)
        asked.append(assignments[2].tolist())
        losses[2:] = np.nan
        assignments[:] = 0  # it is theirs to write into
        return losses

    with pytest.raises(SolverError) as caught:
        solver.bind(third).solve(random_case(0).problem())

    assert str(caught.value) == f"{solver.name}: the loss of the assignment {asked[0]} is nan"


@pytest.mark.parametrize("storage", ["run.log", "sqlite"])
def test_a_study_of_predicted_losses_takes_no_measured_ones(storage: str, tmp_path: Path) -> None:
    """And the other way round: they are of two kinds, though of the same assignments."""
    where = str(tmp_path / "run.log") if storage == "run.log" else f"sqlite:///{tmp_path}/run.db"
    problem = random_case(0).problem()
    predicting = Evolutionary(num_trials=6, population_size=2, storage=where)

    predicting.solve(problem)

    predicting.solve(problem)
    with pytest.raises(MismatchError):
        predicting.bind(rugged).solve(problem)
    other = replace(predicting, study="other")
    other.bind(rugged).solve(problem)
    with pytest.raises(MismatchError):
        other.solve(problem)


def test_kept_losses_go_on_with_the_same_ones_alone(tmp_path: Path) -> None:
    """Those measured by another score, on other examples and the like: the message names which."""
    case, solver = random_case(0), replace(EVERY[0], storage=str(tmp_path / "run.log"))
    first = {"metric": "kl", "score": "", "examples": "1"}
    solver.bind(MeasuredLosses(rugged, lambda: first)).solve(case.problem())

    solver.bind(MeasuredLosses(unasked, lambda: first)).solve(case.problem())
    for other, named in (
        ({"score": "accuracy"}, "score"),
        ({"metric": "l1", "examples": "2"}, "metric, examples"),
    ):
        changed = MeasuredLosses(unasked, partial(dict, {**first, **other}))
        with pytest.raises(MismatchError, match=rf"measured with other {named}\)"):
            solver.bind(changed).solve(case.problem())
    with pytest.raises(MismatchError, match="measured with other metric, score, examples"):
        solver.bind(unasked).solve(case.problem())


def unasked(assignments: Assignments) -> Floats:
    """Losses that nobody may ask for."""
    raise AssertionError(f"{assignments} were measured again")
