"""Searches among more moves than pairs are tried of: in batches, and within a time limit."""

import time
from collections.abc import Callable

import numpy as np
import pytest

from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.interactions import Interactions
from mpq.problem.problem import Problem
from mpq.problem.solution import Status
from mpq.quantization.precision import Precision
from mpq.solvers import BranchAndBound, Lagrangian, LocalSearch, OuterApproximation, Solver
from mpq.solvers.proofs import best_known
from mpq.solvers.quadratic import local_search as module_under_test
from mpq.solvers.quadratic.batches import batch
from mpq.solvers.quadratic.moves import Quadratic
from tests.solvers.quadratic.cases import KINDS, of_kind, random_case

BITS = np.array([2.0, 3.0, 4.0, 5.0, 6.0, 8.0])


def large(num_layers: int, num_rows: int = 64, seed: int = 0) -> Problem:
    """Errors that halve with every bit, and are correlated over layers; two thirds of the bytes."""
    rng = np.random.default_rng(seed)
    factor = rng.standard_normal((num_rows, num_layers, 1)) + rng.standard_normal((num_rows, 1, 1))
    factor = factor + 0.3 * rng.standard_normal((num_rows, num_layers, len(BITS)))
    factor *= np.exp(rng.normal(0, 0.8, (num_layers, 1))) * 2.0**-BITS
    names = tuple(f"layer{i}" for i in range(num_layers))
    precisions = tuple(Precision.parse(f"w{int(bits)}") for bits in BITS)
    size = np.floor(1000 * rng.lognormal(0, 1, (num_layers, 1))) * BITS / 8
    low, high = size.min(axis=1).sum(), size.max(axis=1).sum()
    table = CostTable("weight", "bytes", names, precisions, size)
    return Problem(
        CostTable("loss", "nats", names, precisions, 0.5 * np.mean(factor**2, axis=0)),
        Constraints((Budget.of(table, low + (high - low) / 3),)),
        Interactions(factor, 0.3),
    )


LATE: dict[str, Callable[[], Solver]] = {
    "local-search": lambda: LocalSearch(time_limit_s=0.5),
    "branch-and-bound": lambda: BranchAndBound(time_limit_s=0.5),
    "outer-approximation": lambda: OuterApproximation(gap=0.0, time_limit_s=0.5),
}


@pytest.mark.parametrize("name", LATE)
def test_a_time_limit_is_kept(name: str) -> None:
    """On 12,000 moves and half a second: within the budget, no worse than what needs no search."""
    problem = large(2000)
    known = best_known(problem)
    assert known is not None

    start = time.process_time()
    found = LATE[name]().solve(problem)
    seconds = time.process_time() - start

    assert seconds < 8
    assert found.status is Status.TIME_LIMIT
    assert found.columns is not None
    assert problem.is_feasible(found.columns)
    assert found.loss == problem.loss_of(found.columns) <= problem.loss_of(known)
    additive = Lagrangian().solve(problem.additive()).columns
    assert additive is not None
    assert found.loss <= problem.loss_of(additive)
    assert found.bound is not None
    assert found.bound <= found.loss


def test_few_rows_leave_next_to_nothing_open() -> None:
    """Of 3,000 moves the search and the relaxation are a thousandth apart; both are repeatable."""
    problem = large(500)

    found, again = (LocalSearch(5, time_limit_s=None).solve(problem) for _ in range(2))

    assert found.gap is not None
    assert found.gap < 1e-3
    assert found.columns is not None
    assert again.columns is not None
    assert (found.columns == again.columns).all()
    assert (found.loss, found.bound) == (again.loss, again.bound)


def test_cuts_close_what_the_relaxation_leaves() -> None:
    """A hundred layers, sixteen rows: proved to a thousandth, and no bound above what is found."""
    problem = large(110, num_rows=16)

    found = OuterApproximation(time_limit_s=60.0).solve(problem)

    assert found.gap is not None
    assert found.gap <= 1e-3
    assert found.loss <= LocalSearch(50).solve(problem).loss * (1 + 1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_few_moves_taken_for_many_are_searched_as_well(
    kind: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the relaxation, in batches and shares: nearly the best of all, and never below it."""
    monkeypatch.setattr(module_under_test, "_MAX_PAIRED", 9)
    case = of_kind(random_case(seed, num_layers=6), kind)

    found = LocalSearch(num_restarts=40).solve(case.problem())

    best = case.losses().min()
    assert found.columns is not None
    assert case.problem().is_feasible(found.columns)
    assert best * (1 - 1e-6) <= found.loss <= 1.1 * best
    assert found.bound is not None
    assert found.bound <= best * (1 + 1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_a_batch_is_the_best_beginning_of_what_gains_alone(kind: str, seed: int) -> None:
    """Beginnings of the list are tried one by one with the problem's own arithmetic."""
    case = of_kind(random_case(seed, num_layers=6), kind)
    problem, quadratic = case.problem(), Quadratic.of(case.problem())
    held = quadratic.starts.copy()  # the cheapest of every layer
    single = quadratic.changes(held)
    costs = quadratic.costs
    extra = costs - costs[:, held[quadratic.group]]
    room = quadratic.limits - costs[:, held].sum(axis=1)
    alone = [
        min(
            (single[m], m)
            for m in np.flatnonzero(quadratic.group == group).tolist()
            if (extra[:, m] <= room).all()
        )
        for group in range(len(held))
    ]
    order = [move for gain, move in sorted(alone) if gain < 0]
    assert order

    found = batch(quadratic, held, single, extra, room)

    assert found.tolist() == order[: len(found)]
    losses = []
    for count in range(1, len(order) + 1):
        columns = quadratic.column[held].copy()
        columns[quadratic.group[order[:count]]] = quadratic.column[order[:count]]
        layers = problem.grouped.expand(columns)
        losses.append(problem.loss_of(layers) if problem.is_feasible(layers) else np.inf)
    assert losses[len(found) - 1] == pytest.approx(min(losses), rel=1e-9)
    assert losses[len(found) - 1] < quadratic.loss(quadratic.column[held])
