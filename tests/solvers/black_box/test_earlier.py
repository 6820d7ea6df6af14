"""Searches that begin where an earlier one ended: at other limits, on other losses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from mpq.errors import InputError, MismatchError
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.quantization.precision import Precision
from mpq.solvers import IntegerLinearProgram
from mpq.solvers._base import MeasuredLosses
from mpq.solvers.black_box.boosted_trees import BoostedTrees
from mpq.solvers.black_box.earlier import Earlier
from mpq.solvers.black_box.surrogate import Surrogate

PRECISIONS = tuple(map(Precision.parse, ("w2a8", "w4a8", "w6a8", "w8a8")))
LAYERS = tuple(f"layer{i}" for i in range(12))
TRUE = np.random.default_rng(1).lognormal(0, 2, (12, 1)) * 0.25 ** np.arange(4.0)
Columns = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float64]


def problem(share: float, **options: object) -> Problem:
    """Predicted losses and bytes of twelve layers, within a share of the largest."""
    rng = np.random.default_rng(0)
    loss = -np.sort(-rng.lognormal(0, 1, (12, 4)), axis=1)
    cost = np.sort(rng.integers(1, 50, (12, 4)), axis=1).astype(np.float64)
    low, high = cost.min(axis=1).sum(), cost.max(axis=1).sum()
    budget = Budget.of(
        CostTable("size", "bytes", LAYERS, PRECISIONS, cost), float(low + share * (high - low))
    )
    table = CostTable("loss", "nats", LAYERS, PRECISIONS, loss)
    return Problem(table, Constraints((budget,), **options))  # type: ignore[arg-type]


def true_loss(columns: Columns, factor: float = 1.0) -> Floats:
    """What the prediction is far from: other layers matter."""
    return np.asarray(factor * TRUE[np.arange(12), columns].sum(axis=1))


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Trials of a search with more room."""
    file = str(tmp_path_factory.mktemp("earlier") / "earlier.log")
    Surrogate(num_trials=40, storage=file, objective=true_loss).solve(problem(0.6))
    return file


def test_trials_are_read_as_they_were_measured(storage: str) -> None:
    """Layers, precisions, assignments, losses; the file stays as it is."""
    before = Path(storage).read_bytes()

    found = Earlier.read(storage, "mpq")

    assert (found.layers, found.precisions) == (LAYERS, tuple(map(str, PRECISIONS)))
    assert len(found.columns) == 40
    assert found.losses.tolist() == true_loss(found.columns).tolist()
    assert Path(storage).read_bytes() == before


@pytest.mark.parametrize("factor", [1.0, 20.0])
def test_few_measurements_are_enough_after_an_earlier_search(storage: str, factor: float) -> None:
    """At another limit, also where all losses are in another unit."""

    def losses(columns: Columns) -> Floats:
        return true_loss(columns, factor)

    asked, few = problem(0.4), Surrogate(num_trials=10, batch_size=5, objective=losses)
    alone = few.solve(asked).loss
    after = replace(few, earlier=storage).solve(asked).loss

    exact = replace(asked, loss=replace(asked.loss, values=factor * TRUE))
    best = IntegerLinearProgram().solve(exact).loss
    assert after < 0.6 * alone
    assert after == pytest.approx(best, rel=0.1)


def test_candidates_in_another_order_and_fewer(storage: str) -> None:
    """Precisions are known by their names; trials with others are left out."""
    asked = problem(0.6)
    loss = asked.loss
    fewer = (2, 0, 1)
    table = CostTable(
        "loss", "nats", LAYERS, tuple(PRECISIONS[i] for i in fewer), loss.values[:, fewer]
    )

    found = Earlier.read(storage, "mpq")
    low = found.columns.copy()
    low[:3], low[3:, 0] = np.minimum(low[:3], 2), 3
    columns, losses = replace(found, columns=low).of_layers(Problem(table, Constraints(())))

    assert np.array(fewer)[columns].tolist() == low[:3].tolist()
    assert losses.tolist() == found.losses[:3].tolist()


def test_what_cannot_be_learned_from(storage: str, tmp_path: Path) -> None:
    """Another network, other candidates, other rules, no file, no study."""
    earlier, solver = Earlier.read(storage, "mpq"), Surrogate(earlier=storage, num_trials=5)
    with pytest.raises(MismatchError, match="of 12 layers, the first of them 'other'"):
        replace(earlier, layers=("other", *LAYERS[1:])).of_layers(problem(0.5))
    with pytest.raises(MismatchError, match="give the same candidates"):
        replace(earlier, precisions=("w3", "w5", "w7", "w9")).of_layers(problem(0.5))
    with pytest.raises(MismatchError, match="give it the same rules"):
        solver.solve(problem(0.9, ties=(LAYERS,)))
    with pytest.raises(InputError, match="there is no such file"):
        replace(solver, earlier=str(tmp_path / "none.log")).solve(problem(0.5))
    with pytest.raises(InputError, match="no study 'mine'; it has mpq"):
        replace(solver, study="mine").solve(problem(0.5))


@pytest.mark.parametrize("solver", [Surrogate(num_trials=4), BoostedTrees(num_trials=4)])
def test_losses_of_another_kind_teach_nothing(
    solver: Surrogate | BoostedTrees, tmp_path: Path
) -> None:
    """Other examples and rounding do; another metric, score, or predicted losses do not."""
    first = {"metric": "kl", "score": "", "examples": "1", "rounding": "nearest"}
    storage, asked = str(tmp_path / "first.log"), problem(0.5)
    replace(solver, storage=storage).bind(MeasuredLosses(true_loss, lambda: first)).solve(asked)
    learning = replace(solver, earlier=storage)

    def learns(**changed: str) -> None:
        told = {**first, **changed}
        learning.bind(MeasuredLosses(true_loss, lambda: told)).solve(problem(0.4))

    learns(examples="2", rounding="gptq")
    with pytest.raises(
        MismatchError, match=r"\(metric kl\) measured .* score .*\(score accuracy\)"
    ):
        learns(score="accuracy 123 higher")
    with pytest.raises(MismatchError, match=r"another metric than this one \(metric l1\)"):
        learns(metric="l1")
    with pytest.raises(MismatchError, match="or predicted ones"):
        learning.solve(asked)
