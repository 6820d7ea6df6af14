"""Bayesian search: what optuna's sampler is asked, and what comes of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import optuna
import pytest

import mpq
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.quantization.precision import Precision
from mpq.solvers.black_box.bayesian import Bayesian

PRECISIONS = tuple(map(Precision.parse, ("w2a8", "w4a8", "w6a8", "w8a8")))
Assignments = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float64]
TARGET = np.array([1, 3, 0, 2, 2, 1, 3, 0, 1, 2])


def problem() -> Problem:
    """Ten layers whose predicted losses say nothing; the limit leaves most assignments."""
    names = tuple(f"layer{i}" for i in range(10))
    cost = CostTable("size", "bytes", names, PRECISIONS, np.tile([2.0, 4.0, 6.0, 8.0], (10, 1)))
    loss = CostTable("loss", "nats", names, PRECISIONS, np.ones((10, 4)))
    return Problem(loss, Constraints((Budget.of(cost, 60.0),), fixed={"layer2": PRECISIONS[0]}))


def distance(assignments: Assignments) -> Floats:
    """To a target, in columns: with structure that a density can find."""
    return np.asarray(np.abs(assignments - TARGET).sum(axis=1, dtype=np.float64))


@pytest.mark.parametrize("seed", range(3))
def test_it_learns_where_losses_are_low(seed: int) -> None:
    """Among its last trials are far better ones than among as many at random."""
    seen: list[float] = []

    def measured(assignments: Assignments) -> Floats:
        seen.extend(distance(assignments).tolist())
        return distance(assignments)

    Bayesian(num_trials=150, seed=seed, is_seeded=False, objective=measured).solve(problem())

    early, late = np.mean(seen[:30]), np.mean(seen[-30:])
    assert late < 0.6 * early
    assert min(seen) <= 3


def test_the_sampler_is_told_of_every_trial_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch after batch what is new; twice the same trial would count twice in its densities."""
    told = []
    add = optuna.Study.add_trial

    def add_trial(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        told.append(tuple(trial.params.values()))
        add(study, trial)

    monkeypatch.setattr(optuna.Study, "add_trial", add_trial)

    Bayesian(num_trials=40, batch_size=5, is_seeded=False, objective=distance).solve(problem())

    assert len(told) == len(set(told)) == 35  # of the last batch nobody asks


def test_the_sampler_works_in_memory(tmp_path: Path) -> None:
    """The storage takes finished trials only, one attribute each: no parameter, no failed trial."""
    path = str(tmp_path / "run.log")
    solver = Bayesian(num_trials=35, storage=path, study="mine", objective=distance)

    solution = solver.solve(problem())

    backend = optuna.storages.journal.JournalFileBackend(path)
    study = optuna.load_study(study_name="mine", storage=optuna.storages.JournalStorage(backend))
    assert {trial.state for trial in study.trials} == {optuna.trial.TrialState.COMPLETE}
    assert all(trial.params == {} and len(trial.user_attrs) == 1 for trial in study.trials)
    assert len(study.trials) == 35
    assert study.best_value == solution.loss
    best = study.best_trial.user_attrs["mpq:choice"]
    assert solution.columns is not None
    assert best == ",".join(map(str, solution.columns.tolist()))


def test_a_solver_of_that_name_has_these_options() -> None:
    """What ``--solver`` takes."""
    registry = mpq.SOLVERS
    options = type(registry)("solver", (Bayesian,), registry.group).build(
        "bayesian:num_trials=30,study=a", seed=4
    )

    assert options == Bayesian(num_trials=30, study="a", seed=4)
    assert replace(options, objective=distance) == options


def test_layers_with_one_precision_left_are_no_parameters() -> None:
    """Where every layer is fixed there is one assignment, and it is found."""
    fixed = {f"layer{i}": PRECISIONS[column] for i, column in enumerate([0] * 10)}

    asked = problem()
    asked = replace(asked, constraints=replace(asked.constraints, fixed=fixed))
    solution = Bayesian(num_trials=20, objective=distance).solve(asked)

    assert solution.columns is not None
    assert solution.columns.tolist() == [0] * 10
    assert solution.loss == TARGET.sum()
