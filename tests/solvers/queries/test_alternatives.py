"""The best assignments that differ, and least cost for a loss, against exhaustive search."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import ClassVar, cast, final

import numpy as np
import numpy.typing as npt
import pytest

from mpq.errors import InfeasibleError, InputError, SolverError
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.interactions import Interactions
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.solvers import (
    Auto,
    Bisection,
    BranchAndBound,
    Greedy,
    IntegerLinearProgram,
    Lagrangian,
    LocalSearch,
    Solver,
    WaterFilling,
)
from mpq.solvers.queries.alternatives import alternatives
from mpq.solvers.queries.least_cost import least_cost, least_cost_measured
from mpq.solvers.queries.solve import solve

Make = Callable[..., Problem]
Columns = npt.NDArray[np.intp]


def random_problem(make_problem: Make, seed: int, **rules: object) -> Problem:
    """Six layers at three precisions, two budgets that bind."""
    rng = np.random.default_rng(seed)
    loss = -np.sort(-rng.random((6, 3)), axis=1)
    costs = np.sort(rng.random((2, 6, 3)), axis=2)
    return make_problem(loss, costs, costs.mean(axis=2).sum(axis=1), **rules)


def feasible(problem: Problem) -> list[Columns]:
    """Every assignment within the budgets, by rising loss."""
    found = filter(problem.is_feasible, map(np.array, product(range(3), repeat=6)))
    return sorted(found, key=problem.loss_of)


@pytest.mark.parametrize("solver", [Lagrangian(), IntegerLinearProgram()])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_assignments_are_found_in_order(
    make_problem: Make, solver: Solver, seed: int
) -> None:
    """The five best of all, each proved."""
    problem = random_problem(make_problem, seed)

    found = alternatives(problem, solver, 5)

    assert [s.status for s in found] == [Status.OPTIMAL] * 5
    expected = [problem.loss_of(columns) for columns in feasible(problem)[:5]]
    assert [s.loss for s in found] == pytest.approx(expected)


@pytest.mark.parametrize("distance", [2, 3])
def test_alternatives_differ_in_so_many_layers(make_problem: Make, distance: int) -> None:
    """Each is the best of those that are far enough from all before it."""
    problem = random_problem(make_problem, 1)

    found = alternatives(problem, Lagrangian(), 4, distance)

    kept: list[Columns] = []
    for solution in found:
        far = (
            c for c in feasible(problem) if all((c != other).sum() >= distance for other in kept)
        )
        assert solution.loss == pytest.approx(problem.loss_of(next(far)))
        assert solution.columns is not None
        kept.append(solution.columns)


def test_there_are_no_more_than_there_are(make_problem: Make) -> None:
    """Two layers with one choice each leave one assignment."""
    found = alternatives(make_problem([[1.0], [2.0]]), Lagrangian(), 3)

    assert [s.loss for s in found] == [3.0]


def test_the_first_may_be_infeasible(make_problem: Make) -> None:
    """Then it says why, and is the only one."""
    (only,) = alternatives(make_problem([[1.0, 2.0]], [[[3.0, 4.0]]], [1.0]), Lagrangian(), 3)

    assert only.status is Status.INFEASIBLE
    assert only.shortfalls[0].smallest == 3.0


@pytest.mark.parametrize(("count", "distance"), [(0, 1), (3, 0)])
def test_numbers_of_alternatives_are_positive(
    make_problem: Make, count: int, distance: int
) -> None:
    """The message has both."""
    with pytest.raises(InputError, match=f"at least 1; got {count} and {distance}"):
        alternatives(make_problem([[1.0, 2.0]]), Lagrangian(), count, distance)


def test_more_alternatives_than_anybody_has_memory_for_are_refused(make_problem: Make) -> None:
    """Before anything is solved."""
    with pytest.raises(InputError, match="alternatives"):
        alternatives(make_problem([[1.0, 2.0]]), Lagrangian(), 10**30)


def resource(problem: Problem, seed: int) -> CostTable:
    """A cost that no budget is on."""
    values = np.sort(np.random.default_rng(seed + 99).random((6, 3)), axis=1)
    return CostTable("energy", "joules", problem.loss.layers, problem.loss.precisions, values)


def used(table: CostTable, columns: Columns) -> float:
    """Sum of one cell per layer."""
    return float(table.values[range(6), columns].sum())


@pytest.mark.parametrize("seed", range(5))
def test_least_cost_is_the_least_of_all(make_problem: Make, seed: int) -> None:
    """Within the budgets and the loss; and of those that cost as little, what loses least."""
    problem = random_problem(make_problem, seed)
    table = resource(problem, seed)
    limit = problem.loss_of(feasible(problem)[0]) * 1.5
    good = [c for c in feasible(problem) if problem.loss_of(c) <= limit]

    found = least_cost(problem, table, Lagrangian(), limit)

    assert found.cost == pytest.approx(min(used(table, c) for c in good))
    assert found.bound == pytest.approx(found.cost)
    assert found.solution.status is Status.OPTIMAL
    assert found.solution.columns is not None
    assert found.problem.is_feasible(found.solution.columns)
    assert found.solution.loss <= limit
    assert found.problem.budgets[-1].limit == found.cost


@pytest.mark.parametrize("solver", [Bisection(), Greedy(), WaterFilling()])
def test_a_baseline_never_loses_more_than_was_allowed(make_problem: Make, solver: Solver) -> None:
    """What is known to be within the limit is kept where the rule finds something worse."""
    for seed in range(5):
        problem = Problem(random_problem(make_problem, seed).loss)
        limit = problem.loss_of(feasible(problem)[0]) * 1.7

        found = least_cost(problem, resource(problem, seed), solver, limit)

        assert found.solution.columns is not None
        assert found.solution.loss <= limit
        assert found.cost <= found.problem.budgets[-1].limit
        assert found.problem.is_feasible(found.solution.columns)


def test_auto_proves_alternatives_of_many_layers(make_problem: Make) -> None:
    """Distances are no budgets that a proof is given up for; the order is that of the losses."""
    rng = np.random.default_rng(0)
    loss = -np.sort(-rng.random((120, 8)), axis=1)
    cost = np.sort(rng.random((1, 120, 8)), axis=2)
    problem = make_problem(loss, cost, [50.0])

    found = alternatives(problem, Auto(), 3)

    assert [s.status for s in found] == [Status.OPTIMAL] * 3
    assert [s.loss for s in found] == sorted(s.loss for s in found)
    exact = alternatives(problem, IntegerLinearProgram(), 3)
    assert [s.loss for s in found] == pytest.approx([s.loss for s in exact], rel=1e-9)


@pytest.mark.parametrize(
    "solver", [LocalSearch(num_restarts=40), BranchAndBound(num_restarts=40)], ids=lambda s: s.name
)
@pytest.mark.parametrize("seed", range(3))
def test_least_cost_with_interactions_is_bisected(
    make_problem: Make, seed: int, solver: Solver
) -> None:
    """Nothing is proved, and what is found is at most a tenth more expensive than the best."""
    rng = np.random.default_rng(seed)
    factor = rng.standard_normal((20, 6, 3)) * [4, 2, 1]
    additive = random_problem(make_problem, seed)
    loss = CostTable(
        "loss",
        "nats",
        additive.loss.layers,
        additive.loss.precisions,
        0.5 * (factor**2).mean(axis=0),
    )
    problem = Problem(loss, Constraints(additive.budgets), interactions=Interactions(factor))
    table = resource(problem, seed)
    limit = problem.loss_of(feasible(problem)[0]) * 1.5
    good = [c for c in feasible(problem) if problem.loss_of(c) <= limit]

    found = least_cost(problem, table, solver, limit)

    assert found.bound is None
    assert (found.solution.status, found.solution.gap) == (Status.FEASIBLE, None)
    assert found.solution.loss <= limit
    assert found.cost <= 1.1 * min(used(table, c) for c in good)


@pytest.mark.parametrize("constant", [0.0, -100.0])
def test_a_proof_is_kept_whatever_the_sign_of_the_loss(make_problem: Make, constant: float) -> None:
    """The limit is what the best assignment loses: below 0 as well, it is no more than that."""
    problem = random_problem(make_problem, 0)
    problem = replace(problem, loss=replace(problem.loss, constant=constant))
    best = feasible(problem)[0]

    found = least_cost(problem, resource(problem, 0), Lagrangian(), problem.loss_of(best))

    assert found.solution.status is Status.OPTIMAL
    assert found.solution.columns is not None
    assert (found.solution.columns == best).all()


def test_a_limit_that_rounding_puts_below_the_loss_is_met(make_problem: Make) -> None:
    """With interactions as without: a last digit is no loss."""
    rng = np.random.default_rng(0)
    interactions = Interactions(rng.standard_normal((20, 6, 3)))
    problem = replace(random_problem(make_problem, 0), interactions=interactions)
    best = feasible(problem)[0]
    limit = float(np.nextafter(problem.loss_of(best), -np.inf))

    found = least_cost(problem, resource(problem, 0), BranchAndBound(num_restarts=40), limit)

    assert found.solution.columns is not None
    assert (found.solution.columns == best).all()


def test_a_loss_out_of_reach_says_how_far(make_problem: Make) -> None:
    """With the least loss there is."""
    problem = random_problem(make_problem, 0)

    with pytest.raises(InfeasibleError, match=r"loses at most 1e-06 nats: the least .* too much"):
        least_cost(problem, resource(problem, 0), Lagrangian(), 1e-6)


def test_budgets_out_of_reach_are_named(make_problem: Make) -> None:
    """As everywhere else."""
    problem = make_problem(np.ones((6, 3)), [np.ones((6, 3))], [5.0])

    with pytest.raises(InfeasibleError, match="r0: limit 5 bytes, smallest reachable 6"):
        least_cost(problem, resource(problem, 0), Lagrangian(), 1.0)


@pytest.mark.parametrize("factor", [1.05, 1.3, 2.0])
def test_a_measured_criterion_is_bisected(make_problem: Make, factor: float) -> None:
    """The cheapest point of the frontier that is acceptable, with few measurements."""
    problem = Problem(random_problem(make_problem, 2).loss)
    table = resource(problem, 2)
    limit = factor * problem.loss_of(feasible(problem)[0])
    measured: list[float] = []

    def is_acceptable(columns: Columns) -> bool:
        measured.append(used(table, columns))
        return problem.loss_of(columns) * 1.01 <= limit

    found = least_cost_measured(problem, table, Lagrangian(), is_acceptable, 200)

    best = [c for c in feasible(problem) if problem.loss_of(c) * 1.01 <= limit]
    assert found.solution.columns is not None
    assert found.cost == pytest.approx(min(used(table, c) for c in best), rel=0.02)
    assert found.num_tried == len(measured) <= 9
    assert (found.solution.status, found.solution.gap) == (Status.FEASIBLE, None)
    assert problem.loss_of(found.solution.columns) * 1.01 <= limit


def test_a_criterion_that_nothing_meets_is_an_error(make_problem: Make) -> None:
    """Said of the assignment that loses least."""
    problem = random_problem(make_problem, 0)

    with pytest.raises(InfeasibleError, match="not even the assignment of least predicted loss"):
        least_cost_measured(problem, resource(problem, 0), Lagrangian(), lambda columns: False, 8)


@final
@dataclass(frozen=True)
class Silent(Solver):
    """What somebody may write: it solves, and forgets to return."""

    name: ClassVar[str] = "silent"
    summary: ClassVar[str] = "says nothing"

    def solve(self, problem: Problem) -> Solution:
        """See ``Solver.solve``."""
        return cast(Solution, None)


def test_a_solver_that_answers_nothing_is_named(make_problem: Make) -> None:
    """With its package, whatever it was asked."""
    problem = random_problem(make_problem, 0)
    table = resource(problem, 0)
    message = "the solver 'silent' of the package tests returned a NoneType; .* mpq.Solution"

    for ask in (
        lambda: solve(Silent(), problem),
        lambda: alternatives(problem, Silent(), 2),
        lambda: least_cost(problem, table, Silent(), 10.0),
    ):
        with pytest.raises(SolverError, match=message):
            ask()
