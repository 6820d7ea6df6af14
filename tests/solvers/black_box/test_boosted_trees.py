"""Trees that learn from measurements: what they find, and what they take over from other runs."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from mpq.errors import InputError, MismatchError, MissingDependencyError
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.quantization.precision import Precision
from mpq.solvers import BoostedTrees

TEXTS = ("w8a8", "w8za8", "w8ta8", "w4a8", "w4za8", "w4ta8", "w8a8s", "w4a8s")
PRECISIONS = tuple(map(Precision.parse, TEXTS))
BITS = np.array([8.0, 8.0, 8.0, 4.0, 4.0, 4.0, 8.0, 4.0])
BAD = np.array([0.3, 0.0, 0.8, 0.5, 0.1, 1.0, 0.6, 0.9])
Columns = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float64]


def problem(layers: int = 9) -> Problem:
    """Configurations of a network: all inner layers alike; predicted losses say nothing."""
    names = tuple(f"layer{i}" for i in range(layers))
    cost = CostTable("size", "bytes", names, PRECISIONS, np.tile(BITS, (layers, 1)))
    loss = CostTable("loss", "nats", names, PRECISIONS, np.zeros((layers, 8)))
    return Problem(loss, Constraints((Budget.of(cost, 6.0 * layers),), (names[1:-1],)))


def measured(columns: Columns) -> Floats:
    """The first layer matters most, then the inner ones."""
    first, inner, last = BAD[columns[:, 0]], BAD[columns[:, 1]], BAD[columns[:, -1]]
    return np.asarray(4 * first + 2 * inner + last + first * inner)


def test_better_than_as_many_at_random() -> None:
    """With a tenth of all configurations measured, over several seeds."""
    found = [
        BoostedTrees(num_trials=30, seed=seed, explore=explore, objective=measured)
        .solve(problem())
        .loss
        for explore in (0.2, 1.0)
        for seed in range(2)
    ]

    assert np.mean(found[:2]) < 0.7 * np.mean(found[2:])


def test_a_seed_measures_the_same() -> None:
    """And never the same twice."""
    asked: list[list[tuple[int, ...]]] = []
    for seed in (3, 3, 4):
        rows: list[tuple[int, ...]] = []

        def losses(columns: Columns, rows: list[tuple[int, ...]] = rows) -> Floats:
            rows.extend(map(tuple, columns.tolist()))
            return measured(columns)

        BoostedTrees(num_trials=20, seed=seed, objective=losses).solve(problem())
        asked.append(rows)

    assert asked[0] == asked[1] != asked[2]
    assert len(set(asked[0])) == 20


def test_all_are_tried_where_there_is_time() -> None:
    """The best of all configurations, which an exhaustive look knows."""
    asked = problem(4)
    found = BoostedTrees(num_trials=1000, batch_size=100, objective=measured).solve(asked)

    every = np.array(np.meshgrid(*[np.arange(8)] * 3)).reshape(3, -1).T[:, [0, 1, 1, 2]]
    within = every[BITS[every].sum(axis=1) <= 24]
    assert found.loss == measured(within).min()


def test_an_earlier_run_of_another_network_helps(tmp_path: Path) -> None:
    """Of more layers, which loses a hundred times as much: its order is what is learned."""
    storage = str(tmp_path / "other.log")

    def larger(columns: Columns) -> Floats:
        return 100 * measured(columns)

    BoostedTrees(num_trials=60, storage=storage, objective=larger).solve(problem(20))
    few = [BoostedTrees(num_trials=6, seed=seed, objective=measured) for seed in range(2)]

    alone = np.mean([solver.solve(problem()).loss for solver in few])
    after = np.mean([replace(x, earlier=storage).solve(problem()).loss for x in few])

    assert after < 0.7 * alone


def test_other_candidates_teach_nothing(tmp_path: Path) -> None:
    """They are named."""
    storage = str(tmp_path / "other.log")
    BoostedTrees(num_trials=6, storage=storage, objective=measured).solve(problem())
    names = tuple(f"layer{i}" for i in range(4))
    others = tuple(map(Precision.parse, ("w2", "w3")))
    asked = Problem(CostTable("loss", "nats", names, others, np.zeros((4, 2))), Constraints(()))

    with pytest.raises(MismatchError, match="give the same candidates"):
        BoostedTrees(earlier=storage, objective=measured).solve(asked)


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers out of range, and a package that is missing."""
    with pytest.raises(InputError, match="explore from 0 to 1"):
        BoostedTrees(explore=2.0)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setattr("mpq.solvers.black_box.boosted_trees.find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'mpq\[trees\]'"):
        BoostedTrees().check()
