"""Parts of a problem with interactions: together they are the whole, and none is twice."""

import math
from dataclasses import replace

import numpy as np
import pytest

from mpq.solvers.quadratic import bound as quadratic_bound
from mpq.solvers.quadratic import branch_and_bound as module_under_test
from mpq.solvers.quadratic.bound import Scale
from mpq.solvers.quadratic.branch_and_bound import (
    BranchAndBound,
    _branches,
    _Found,
    _searched,
    _tried,
)
from mpq.solvers.quadratic.doubly_nonnegative import Tightened
from mpq.solvers.quadratic.moves import Quadratic
from mpq.solvers.quadratic.subproblem import Iterate, Subproblem
from tests.solvers.quadratic.cases import random_case
from tests.solvers.quadratic.subproblems import made

SIZES = (2, 3, 2)


def node(share: list[float], bound: float) -> Tightened:
    """Three groups, of which a relaxation takes the cells in these shares."""
    problem = made([], [], SIZES)
    lifted = np.diag([1.0, *share])
    problem = replace(problem, start=Iterate(lifted, np.zeros_like(lifted), 1.0))
    return Tightened(problem, bound, np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]))


@pytest.mark.parametrize(
    ("share", "cells"),
    [
        ([0.5, 0.5, 0.9, 0.1, 0.0, 0.6, 0.4], [0, 1]),
        ([0.1, 0.9, 0.4, 0.3, 0.3, 0.5, 0.5], [2, 3, 4]),
        ([0.9, 0.1, 0.8, 0.1, 0.1, 0.3, 0.7], [5, 6]),
    ],
)
def test_the_least_decided_group_is_split(share: list[float], cells: list[int]) -> None:
    """One branch for each of its cells, without the others of that group and nothing else."""
    tightened = node(share, 2.5)
    assert tightened.problem is not None

    branches = _branches(tightened.problem, tightened)

    assert len(branches) == len(cells)
    for branch, cell in zip(branches, cells, strict=True):
        assert np.flatnonzero(branch.without).tolist() == [c for c in cells if c != cell]
        # A part has no better assignment than the whole, nor than any with this cell.
        assert branch.bound == max(2.5, cell + 1.0)
        opened = branch.opened()
        assert opened.problem is not None
        assert opened.problem.decided == (3, 10 + cell)
        assert opened.bound == branch.bound


def test_branches_have_every_assignment_once() -> None:
    """Counted with their losses, against the whole."""
    tightened = node([0.1, 0.9, 0.4, 0.3, 0.3, 0.5, 0.5], 0.0)
    assert tightened.problem is not None
    whole = sorted(tightened.problem.enumerated()[0].tolist())

    parts: list[float] = []
    for branch in _branches(tightened.problem, tightened):
        part = branch.opened().problem
        assert part is not None
        parts += part.enumerated()[0].tolist()

    assert sorted(parts) == pytest.approx(whole)
    assert len(parts) == 12


def test_the_first_that_holds_is_the_best() -> None:
    """Of all assignments of a part; where the known one is better, it stays."""
    case = random_case(5, num_layers=4)
    problem, losses = case.problem(), case.losses()
    quadratic = Quadratic.of(problem)
    part = Subproblem.of(quadratic, 2.0)
    columns = np.array(np.unravel_index(int(losses.argmin()), (4,) * 4))
    worse = _Found(np.zeros(4, dtype=np.intp), math.inf, 0.25, is_finished=False)
    best = _Found(columns, problem.loss_of(columns), 0.25, is_finished=False)

    found = _tried(problem, quadratic, part, worse)

    assert found.layers.tolist() == columns.tolist()
    assert found.loss == problem.loss_of(columns)
    assert (found.bound, found.is_finished) == (0.25, False)
    assert _tried(problem, quadratic, part, best) is best


def test_what_breaks_a_budget_by_a_hair_is_passed_over() -> None:
    """A part may hold it: the next one by loss that the problem calls feasible is taken."""
    case = random_case(5, num_layers=4)
    costs = np.array(case.costs).sum(axis=0)  # one budget, at which the best is just met
    case = replace(case, costs=(costs,), limits=(1e9,))
    every = np.array([np.unravel_index(i, (4,) * 4) for i in range(256)])
    used = costs[np.arange(4), every].sum(axis=1)
    losses = case.losses()
    best = int(losses.argmin())
    case = replace(case, limits=(float(used[best]) * (1 - 1e-11),))
    problem = case.problem()
    quadratic = Quadratic.of(problem)
    nothing = _Found(every[0], math.inf, 0.0, is_finished=False)

    found = _tried(problem, quadratic, Subproblem.of(quadratic, 1.0), nothing)

    expected = int(case.losses().argmin())
    assert expected != best
    assert found.layers.tolist() == every[expected].tolist()


def test_a_bound_at_the_cutoff_finishes_before_anything_is_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is known is then the answer."""
    monkeypatch.setattr(module_under_test, "opened", None)
    problem = random_case(1, num_layers=4).problem()
    scale = Scale(2.0)
    found = _Found(np.zeros(4, dtype=np.intp), 8.0, scale.cutoff(8.0), is_finished=False)

    done = _searched(problem, Quadratic.of(problem), scale, found, math.inf)

    assert done.is_finished
    assert (done.loss, done.bound) == (8.0, found.bound)


@pytest.mark.parametrize("seed", range(4))
def test_without_time_the_bound_is_that_of_what_is_left(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is tried in full: no more than the optimum, and no less than without cells."""
    monkeypatch.setattr(module_under_test, "MAX_ENUMERATED", 4)
    case = random_case(seed, num_layers=5)
    problem, best = case.problem(), float(case.losses().min())

    found = BranchAndBound(num_restarts=0, time_limit_s=1e-9).solve(problem)

    assert found.bound is not None
    assert found.bound <= best + 1e-9
    assert found.loss >= best - 1e-9
    assert found.status.name in ("TIME_LIMIT", "OPTIMAL")


@pytest.mark.parametrize("gap", [0.0, 0.2])
def test_a_gap_is_what_the_bound_may_miss(gap: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the loss that is found; without one the optimum is proved."""
    monkeypatch.setattr(quadratic_bound, "MAX_ENUMERATED", 4)
    monkeypatch.setattr(module_under_test, "MAX_ENUMERATED", 4)
    case = random_case(3, num_layers=5)
    best = float(case.losses().min())

    found = BranchAndBound(gap=gap, num_restarts=0).solve(case.problem())

    assert found.bound is not None
    assert (found.status.name == "OPTIMAL") == (gap == 0)
    assert found.loss <= best / (1 - gap) + 1e-9
    assert (1 - gap) * found.loss - 1e-9 <= found.bound <= best + 1e-9


@pytest.mark.parametrize("option", ["num_restarts", "seed"])
def test_no_restart_and_seed_0_are_taken(option: str) -> None:
    """What is refused begins below 0."""
    assert getattr(BranchAndBound(num_restarts=0, seed=0), option) == 0
