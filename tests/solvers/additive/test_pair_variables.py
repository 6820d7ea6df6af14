"""Budgets with costs of pairs of layers: every solver against exhaustive search."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mpq
from mpq.errors import InputError
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.solvers import (
    Auto,
    Bayesian,
    BranchAndBound,
    Evolutionary,
    IntegerLinearProgram,
    LocalSearch,
    OuterApproximation,
    Solver,
    Surrogate,
)
from mpq.solvers.additive.default import additive_solver
from tests.solvers.additive.cases import Case, Cost, Floats, cases, conversions, interacting

EXACT: list[Solver] = [IntegerLinearProgram("HiGHS"), IntegerLinearProgram("CBC"), Auto()]
INTERACTING: list[Solver] = [OuterApproximation(gap=0.0), BranchAndBound(), Auto()]
SEARCHES: list[Solver] = [
    LocalSearch(num_restarts=20),
    Evolutionary(num_trials=40, population_size=20),
    Bayesian(num_trials=30),
    Surrogate(num_trials=30),
]
EVERY: list[Solver] = [part() for part in mpq.SOLVERS]


def name_of(solver: Solver) -> str:
    """How pytest calls a solver."""
    return f"{solver.name}-{getattr(solver, 'backend', '')}".rstrip("-")


def check(case: Case, found: Solution, problem: Problem) -> None:
    """What holds of every answer: it is one of those that the reference calls feasible."""
    feasible = case.feasible()
    assert (found.status is Status.INFEASIBLE) == (not feasible)
    if found.columns is None:
        return
    assert tuple(found.columns.tolist()) in feasible
    assert found.loss == problem.loss_of(found.columns)
    assert found.bound is None or found.bound <= found.loss


@settings(max_examples=30)
@given(case=cases(has_loss_pairs=True))
def test_the_total_is_constant_cells_and_pairs(case: Case) -> None:
    """Against exact sums; budgets and losses count the same; groups lose nothing of it."""
    problem = case.problem()
    grouped, feasible = problem.grouped, case.feasible()

    for picked in case.allowed()[::11]:
        columns = np.array(picked)
        groups = columns[[rows[0] for rows in grouped.members]]
        joint = grouped.pairwise.cost(groups[None])[0]
        cells = np.arange(len(groups)), groups
        for row, cost in enumerate(case.costs):
            expected = float(cost.of(picked))
            used = problem.budgets[row].used(columns)
            size = np.nanmax(np.abs(cost.values)) * 20 + 1e-300
            assert used == expected
            assert grouped.costs[row][cells].sum() + joint[1 + row] == pytest.approx(
                expected, abs=1e-12 * size
            )
        assert problem.loss_of(columns) == float(case.loss.of(picked))
        assert problem.is_feasible(columns) == (picked in feasible)
    assert (grouped.pairwise.values >= 0).all()


@pytest.mark.parametrize("solver", EXACT, ids=name_of)
def test_an_exact_solver_equals_exhaustive_search(solver: Solver) -> None:
    """With pairs in the budgets and in the loss; it says that its answer is the best."""

    @settings(max_examples=40 if solver.name == "ilp" else 20)
    @given(case=cases(has_loss_pairs=True))
    def compare(case: Case) -> None:
        problem = case.problem()
        expected = min((float(case.loss.of(c)) for c in case.feasible()), default=None)

        found = solver.solve(problem)

        check(case, found, problem)
        if expected is not None:
            scale = float(np.abs(case.loss.values).max()) * 20
            assert found.status is Status.OPTIMAL
            assert found.loss == pytest.approx(expected, rel=1e-9, abs=1e-9 * scale)
            assert found.bound == pytest.approx(expected, rel=1e-9, abs=1e-9 * scale)

    compare()


@pytest.mark.parametrize("solver", INTERACTING, ids=name_of)
@pytest.mark.parametrize("shrinkage", [0.0, 0.7])
def test_interactions_beside_pairs_equal_exhaustive_search(
    solver: Solver, shrinkage: float
) -> None:
    """The quadratic loss within budgets that have pairs: best of all up to the solver's gap."""
    gap = 1e-3 if isinstance(solver, Auto) else 1e-6

    @settings(max_examples=8)
    @given(case=cases(), seed=st.integers(0, 99))
    def compare(case: Case, seed: int) -> None:
        case = replace(case, loss=Cost(np.ones_like(case.loss.values)))
        problem = interacting(seed, case, shrinkage)
        losses = [problem.loss_of(np.array(columns)) for columns in case.feasible()]

        found = solver.solve(problem)

        check(case, found, problem)
        if losses:
            best = min(losses)
            assert found.loss <= best + 1.1 * gap * abs(best) + 1e-9
            assert found.bound is not None
            assert best - 2 * gap * abs(best) - 1e-9 <= found.bound
            assert found.bound <= best + 1e-6 * abs(best) + 1e-9

    compare()


@pytest.mark.parametrize("solver", SEARCHES, ids=name_of)
def test_a_search_stays_within_budgets_that_have_pairs(solver: Solver) -> None:
    """Its answer is feasible, and an infeasible problem is recognised."""

    @settings(max_examples=6)
    @given(case=cases(), seed=st.integers(0, 99))
    def compare(case: Case, seed: int) -> None:
        problem = interacting(seed, case)

        check(case, solver.solve(problem), problem)

    compare()


@pytest.mark.parametrize("seed", range(2))
def test_the_local_search_exchanges_neighbours_within_the_budget(seed: int) -> None:
    """Its moves count conversions: from the additive answer it comes within 2 % of the best."""
    case = conversions(seed, num_layers=7)
    problem = interacting(seed, case)
    best = min(problem.loss_of(np.array(columns)) for columns in case.feasible())

    found = LocalSearch(num_restarts=60).solve(problem)

    check(case, found, problem)
    assert found.loss <= 1.02 * best
    assert found.bound is not None
    assert found.bound <= best * (1 + 1e-9)


@pytest.mark.parametrize("solver", EVERY, ids=name_of)
def test_every_solver_takes_pairs_or_says_who_does(solver: Solver) -> None:
    """What it declares is what it does; the message names the solvers that take them."""
    case = conversions(1)
    problem = case.problem()

    if solver.takes_pairs:
        check(case, solver.solve(problem), problem)
        return
    with pytest.raises(InputError, match=r"r0 also has costs of pairs.* 'ilp'") as refusal:
        solver.solve(problem)
    named = [name for name in mpq.SOLVERS if f"'{name.name}'" in str(refusal.value)]
    assert len(named) >= 4
    assert all(part.takes_pairs for part in named)


def test_pairs_of_tied_or_fixed_layers_suit_every_solver() -> None:
    """They are sums over layers after all: with ties, with one side given."""
    case = conversions(1, num_layers=3)
    tied = replace(case, ties=((0, 1),), fixed={2: 0})
    expected = min(float(case.loss.of(columns)) for columns in tied.feasible())

    found = mpq.SOLVERS.build("lagrangian").solve(tied.problem())

    assert found.status is Status.OPTIMAL
    assert found.loss == pytest.approx(expected)


def test_auto_says_what_it_takes_for_conversions_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are no sum over layers: an integer program; with interactions a proof by its size."""
    case = conversions(0)

    found, quadratic = Auto().solve(case.problem()), Auto().solve(interacting(0, case))
    monkeypatch.setattr("mpq.solvers.auto._PROVED_MOVES", 11)
    large = Auto().solve(interacting(0, case))

    assert found.why == (
        "auto took ilp: the loss is a sum over layers, with costs of pairs of layers"
    )
    assert quadratic.solver.startswith("branch-and-bound")
    assert large.solver.startswith("outer-approximation")
    for solution in (quadratic, large):
        assert solution.why.endswith("interactions of 12 choices, with costs of pairs of layers")


def test_conversions_change_the_answer() -> None:
    """Ignored, they break the budget; counted, formats come in blocks."""
    case = conversions(5, num_layers=8)
    without = replace(case, costs=(replace(case.costs[0], pairs=()),))
    plain = IntegerLinearProgram().solve(without.problem())
    assert plain.columns is not None

    found = IntegerLinearProgram().solve(case.problem())

    assert found.columns is not None
    assert not case.meets(tuple(plain.columns.tolist()), 0)
    assert case.meets(tuple(found.columns.tolist()), 0)


def best_of_a_chain(loss: Floats, cost: npt.NDArray[np.int64], joint: Any, limit: int) -> float:
    """Dynamic programming over integer costs and the last precision of a chain of layers."""
    size = loss.shape[1]
    best = np.full((size, limit + 1), np.inf)
    for column in range(size):
        best[column, cost[0, column] :] = loss[0, column]
    for losses, costs in zip(loss[1:], cost[1:], strict=True):
        after = np.full_like(best, np.inf)
        for before, column in product(range(size), repeat=2):
            shift = int(costs[column] + joint[before, column])
            moved = best[before, : max(limit + 1 - shift, 0)] + losses[column]
            after[column, shift:] = np.minimum(after[column, shift:], moved)
        best = after
    return float(best[:, -1].min())


@pytest.mark.parametrize("seed", range(4))
def test_a_chain_of_thirty_layers_equals_dynamic_programming(seed: int) -> None:
    """Large enough for a relaxation to be off; conversions of a random cost each way."""
    rng = np.random.default_rng(seed)
    loss = -np.sort(-rng.lognormal(0, 1.5, (30, 4)), axis=1)
    units = np.sort(rng.integers(5, 60, (30, 4)), axis=1)
    joint = rng.integers(1, 30, (4, 4)) * (1 - np.eye(4, dtype=np.int64))
    limit = int(units.min(axis=1).sum() + 0.3 * np.ptp(units, axis=1).sum())
    seconds, converting = units.astype(np.float64) * 1e-6, joint.astype(np.float64) * 1e-6
    pairs = tuple((i, i + 1, converting) for i in range(29))
    case = Case(Cost(loss), (Cost(seconds, 2e-4, pairs),), (limit * 1e-6 + 2e-4,))

    found = IntegerLinearProgram().solve(case.problem())

    assert found.status is Status.OPTIMAL
    assert found.loss == pytest.approx(best_of_a_chain(loss, units, joint, limit), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_why_an_infeasible_problem_is(seed: int) -> None:
    """The least of a budget counts its pairs and constant, alone and beside the other budget."""
    case = conversions(seed)
    flipped = Cost(case.costs[0].values[:, ::-1].copy(), 0.1, case.costs[0].pairs[:2])
    both = replace(case, costs=(case.costs[0], flipped), limits=(0.0, 0.0))
    least = [min(float(cost.of(c)) for c in both.allowed()) for cost in both.costs]
    tight = replace(both, limits=(least[0] * 1.05, least[1] * 1.05))
    assert not tight.feasible()

    found = IntegerLinearProgram().solve(tight.problem())

    assert [s.smallest for s in found.shortfalls] == pytest.approx(least)
    for row, shortfall in enumerate(found.shortfalls):
        within = [tight.costs[row].of(c) for c in tight.allowed() if tight.meets(c, 1 - row)]
        assert shortfall.smallest_within_others == pytest.approx(float(min(within)))
    assert found.conflict == ("r0", "r1")


def test_the_same_problem_has_the_same_answer() -> None:
    """Twice, and whichever way round a pair is written, or in two parts."""
    case = conversions(8, num_layers=6)
    turned = tuple((j, i, v.T / 2) for i, j, v in case.costs[0].pairs) * 2
    other = replace(case, costs=(replace(case.costs[0], pairs=turned),))

    first, second, third = (
        IntegerLinearProgram().solve(c.problem()).columns for c in (case, case, other)
    )

    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, third)


def test_out_of_time_is_never_called_optimal() -> None:
    """A hundred layers, all precisions unlike: the answer keeps the budget, the bound is one."""
    rng = np.random.default_rng(0)
    pairs = tuple((i, i + 1, rng.random((4, 4))) for i in range(99))
    cost = Cost(np.sort(rng.random((100, 4)), axis=1), 1.0, pairs)
    loss = Cost(-np.sort(-rng.random((100, 4)), axis=1))
    problem = Case(loss, (cost,), (80.0,)).problem()

    found = IntegerLinearProgram(time_limit_s=0.5).solve(problem)

    assert found.status is not Status.INFEASIBLE
    if found.columns is not None:
        assert problem.is_feasible(found.columns)
        assert found.bound is None or found.bound <= found.loss
        assert found.status is not Status.OPTIMAL or found.bound == pytest.approx(found.loss)


def test_the_solver_of_sums_stops_after_a_minute_where_there_are_pairs() -> None:
    """Small ones at the proved optimum, large ones at a gap of 0.01 %."""
    small, large = conversions(0).problem(), conversions(0, num_layers=201).problem()

    assert additive_solver(small) == IntegerLinearProgram(time_limit_s=60.0)
    assert additive_solver(large) == IntegerLinearProgram(time_limit_s=60.0, gap=1e-4)
