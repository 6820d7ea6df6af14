"""Evolutionary search: the known optimum at full size, and frontiers against brute force."""

from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from mpq.errors import InputError, UnknownNameError
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.problem.solution import Status
from mpq.quantization.precision import Precision
from mpq.solvers.additive.ilp import IntegerLinearProgram
from mpq.solvers.black_box import seeds
from mpq.solvers.black_box.evolutionary import Evolutionary
from mpq.solvers.black_box.population import Space

PRECISIONS = tuple(map(Precision.parse, ("w2a8", "w4a8", "w6a8", "w8a8")))
Assignments = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float64]


def random_problem(seed: int, layers: int, precisions: int = 4, resources: int = 1) -> Problem:
    """Losses that fall and costs that rise with the bits, over several sizes of layers."""
    rng = np.random.default_rng(seed)
    names = tuple(f"layer{i}" for i in range(layers))
    chosen = PRECISIONS[:precisions]
    bits = np.array([2.0, 4.0, 6.0, 8.0])[:precisions]
    spread = rng.lognormal(0, 1.5, (layers, 1)) * rng.lognormal(0, 0.3, (layers, precisions))
    loss = -np.sort(-spread * 2.0**-bits, axis=1)
    budgets = []
    for row in range(resources):
        cost = np.sort(rng.lognormal(3, 1, (layers, 1)) * bits**0.9, axis=1)
        table = CostTable(f"r{row}", "bytes", names, chosen, cost)
        limit = 0.45 * cost.max(axis=1).sum() + 0.1 * row * cost.max(axis=1).sum()
        budgets.append(Budget.of(table, float(limit)))
    return Problem(CostTable("loss", "nats", names, chosen, loss), Constraints(tuple(budgets)))


def rugged(assignments: Assignments) -> Floats:
    """A loss that is neither a sum nor a quadratic form."""
    weights = np.arange(1, assignments.shape[1] + 1) ** 2
    return np.asarray(2 + np.sin(assignments @ weights) - 0.3 * assignments.mean(axis=1))


@pytest.mark.parametrize("seed", range(2))
def test_the_hull_leads_to_the_known_optimum(seed: int) -> None:
    """54 layers at 4 precisions: within 1 % of the exact answer after 2,000 evaluations."""
    problem = random_problem(seed, layers=54)
    space = Space.of(problem)
    hull = space.layers(space.repaired(seeds.hull(problem), np.random.default_rng(0)))
    starts = tuple(map(tuple, hull.tolist()))
    best = IntegerLinearProgram().solve(problem).loss

    solution = Evolutionary(num_trials=2000, is_seeded=False, starts=starts).solve(problem)

    assert min(problem.loss_of(columns) for columns in hull) > best * 1.01
    assert best * (1 - 1e-9) <= solution.loss <= best * 1.01


def test_random_starts_lead_to_the_known_optimum() -> None:
    """54 layers at 4 precisions: within 1 % of the exact answer after 20,000 evaluations."""
    problem = random_problem(0, layers=54)
    best = IntegerLinearProgram().solve(problem).loss

    solution = Evolutionary(num_trials=20000, is_seeded=False).solve(problem)

    assert best * (1 - 1e-9) <= solution.loss <= best * 1.01


def brute_force(problem: Problem) -> Floats:
    """``[F, K]`` the front of the measured loss and every cost, by rising loss."""
    layers, precisions = problem.loss.values.shape
    every = np.array(list(product(range(precisions), repeat=layers)), dtype=np.intp)
    feasible = np.array([columns for columns in every if problem.is_feasible(columns)])
    costs = [b.tables[0].values[np.arange(layers), feasible].sum(axis=1) for b in problem.budgets]
    values = np.column_stack([rugged(feasible), *costs])
    is_front = [
        not ((values <= value).all(axis=1) & (values < value).any(axis=1)).any() for value in values
    ]
    front = values[is_front]
    return np.asarray(front[np.argsort(front[:, 0])])


@pytest.mark.parametrize("resources", [0, 1, 2])
@pytest.mark.parametrize("seed", range(2))
def test_a_front_of_a_small_problem_is_complete(resources: int, seed: int) -> None:
    """Every assignment that no other betters in loss and costs, and no other."""
    problem = random_problem(seed, layers=4, precisions=3, resources=resources)
    solver = Evolutionary(num_trials=500, objectives="loss+costs", objective=rugged)

    front = solver.front(problem)

    found = np.array([values for _, values in front])
    np.testing.assert_allclose(found, brute_force(problem), rtol=1e-12)
    for columns, values in front:
        assert problem.is_feasible(columns)
        assert values[0] == rugged(columns[None])[0]
        np.testing.assert_allclose(values[1:], [b.used(columns) for b in problem.budgets])


def test_a_front_of_a_large_problem_is_near_the_true_one() -> None:
    """By the exact answers at a dozen limits: a few percent above them, at full width."""
    problem = random_problem(1, layers=30)
    (budget,) = problem.budgets
    solver = Evolutionary(num_trials=4000, objectives="loss+costs", is_seeded=False)

    front = solver.front(problem)

    values = np.array([values for _, values in front])
    low = budget.tables[0].values.min(axis=1).sum()
    for share in np.linspace(0.3, 1, 12):
        limit = low + share * (budget.limit - low)
        exact = IntegerLinearProgram().solve(
            problem.with_budgets(Budget.of(budget.tables[0], limit))
        )
        assert values[values[:, 1] <= limit, 0].min() <= exact.loss * 1.35
    assert (np.diff(values[:, 0]) > 0).all()
    assert (np.diff(values[:, 1]) < 0).all()


def test_a_front_comes_from_the_trials_of_the_solution(tmp_path: Path) -> None:
    """With a storage, asking for the front after solving evaluates nothing."""
    problem = random_problem(0, layers=12, resources=2)
    storage = str(tmp_path / "run.log")
    solver = Evolutionary(
        num_trials=100, objectives="loss+costs", storage=storage, objective=rugged
    )
    solution = solver.solve(problem)

    def never(assignments: Assignments) -> Floats:
        raise AssertionError("evaluated again")

    front = solver.bind(never).front(problem)

    columns, values = front[0]
    assert values[0] == solution.loss
    assert rugged(columns[None])[0] == solution.loss


def test_an_infeasible_problem_has_no_front() -> None:
    """No assignment, no point."""
    problem = random_problem(0, layers=4)
    short = problem.with_budgets(Budget.of(problem.budgets[0].tables[0], 1e-3))

    assert Evolutionary(objectives="loss+costs").front(short) == []


def test_a_front_needs_objectives() -> None:
    """Of the loss alone there is none; and what is minimised has a name."""
    with pytest.raises(InputError, match=r"needs the costs as objectives: objectives=loss\+costs"):
        Evolutionary().front(random_problem(0, layers=4))
    with pytest.raises(UnknownNameError, match="no choice of objectives 'loss,latency'"):
        Evolutionary(objectives="loss,latency")


@pytest.mark.parametrize("options", [{"num_trials": 0}, {"population_size": 1}])
def test_a_population_that_cannot_evolve(options: dict[str, int]) -> None:
    """The message has both numbers."""
    with pytest.raises(InputError, match="needs num_trials >= 1 and population_size >= 2; got"):
        Evolutionary(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(4))
def test_equal_losses_are_told_apart_by_their_correctly_rounded_sum(seed: int) -> None:
    """Of two assignments that a batch sums to 0, the one that loses -1, tried first or last."""
    names = ("first", "second", "third")
    values = np.array([[0.0, -1.0], [0.0, 2.0**60], [0.0, -(2.0**60)]])
    loss = CostTable("loss", "nats", names, PRECISIONS[:2], values)
    problem = Problem(loss, Constraints(ties=(names,)))

    found = Evolutionary(num_trials=8, seed=seed, is_seeded=False).solve(problem)

    assert found.columns is not None
    assert (found.columns.tolist(), found.loss) == ([1, 1, 1], -1.0)
    assert found.status is Status.OPTIMAL


def test_a_mutation_goes_up_as_often_as_down() -> None:
    """Of children that differ in one layer, which may take the next column on either side."""
    problem = Problem(random_problem(0, layers=6).loss)
    parent = np.full((1, 6), 1)

    children = Space.of(problem).children(parent, 1000, np.random.default_rng(0))

    changed = children[(children != 1).sum(axis=1) == 1]
    down, up = (changed == 0).any(axis=1).mean(), (changed == 2).any(axis=1).mean()
    assert 0.4 < down < 0.6
    assert 0.4 < up < 0.6


def test_two_can_evolve() -> None:
    """The smallest population, one trial, one at once, and seed 0 are all taken."""
    problem = random_problem(0, layers=4)

    for options in ({"population_size": 2}, {"num_trials": 1}, {"batch_size": 1}, {"seed": 0}):
        solver = Evolutionary(**{"num_trials": 6, **options})  # type: ignore[arg-type]
        found = solver.solve(problem)
        assert found.columns is not None
        assert problem.is_feasible(found.columns)


def test_a_search_begins_at_solved_assignments_unless_told_otherwise() -> None:
    """The first that is asked is the exact additive answer; without seeds hardly ever."""
    problem = random_problem(3, layers=12)
    exact = IntegerLinearProgram().solve(problem).columns
    assert exact is not None
    asked: list[list[int]] = []

    def noted(assignments: Assignments) -> Floats:
        asked.append(assignments[0].tolist())
        return rugged(assignments)

    Evolutionary(num_trials=10, objective=noted).solve(problem)
    Evolutionary(num_trials=10, objective=noted, is_seeded=False).solve(problem)

    assert asked[0] == exact.tolist()
    assert asked[1] != exact.tolist()
