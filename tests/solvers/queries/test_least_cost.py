"""Least cost by halving: how often, how near, and what is made of answers that miss the limit."""

from dataclasses import replace
from itertools import product
from typing import Any, ClassVar, final

import numpy as np
import pytest

from mpq.errors import InfeasibleError, SolverError
from mpq.problem.cost_table import CostTable
from mpq.problem.interactions import Interactions
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.solvers import Lagrangian, Solver
from mpq.solvers.queries import least_cost as module_under_test
from mpq.solvers.queries.least_cost import least_cost, least_cost_measured
from tests.conftest import MakeProblem


@final
class Trying(Solver):
    """Tries everything, and counts how often it is asked."""

    name: ClassVar[str] = "trying"
    summary: ClassVar[str] = "tries everything"

    def __init__(self, status: Status = Status.OPTIMAL, is_best: bool = True) -> None:
        self.status, self.is_best = status, is_best
        self.limits: list[float] = []

    def solve(self, problem: Problem) -> Solution:
        """See ``Solver.solve``."""
        self.limits += [budget.limit for budget in problem.budgets]
        shape = problem.loss.values.shape
        every = [np.array(c) for c in product(range(shape[1]), repeat=shape[0])]
        fitting = sorted(filter(problem.is_feasible, every), key=problem.loss_of)
        if not fitting:
            return Solution(Status.INFEASIBLE, None, float("nan"), None, self.name, 0.0)
        chosen = fitting[0 if self.is_best else -1]
        return Solution(self.status, chosen, problem.loss_of(chosen), None, self.name, 0.0)


def problem_of(
    make_problem: MakeProblem, seed: int, has_interactions: bool
) -> tuple[Problem, CostTable]:
    """Four layers at three precisions, and what they cost."""
    rng = np.random.default_rng(seed)
    loss, cost = -np.sort(-rng.random((4, 3)), axis=1), np.sort(rng.random((4, 3)), axis=1) + 0.5
    found = Interactions(rng.standard_normal((4, 4, 3)) / 4) if has_interactions else None
    problem = make_problem(loss, interactions=found)
    return problem, make_problem(loss, [cost], [9.0]).budgets[0].tables[0]


def expected(problem: Problem, table: CostTable, max_loss: float) -> float:
    """The least cost of all that lose so little."""
    every = [np.array(c) for c in product(range(3), repeat=4)]
    return min(table.total(c) for c in every if problem.loss_of(c) <= max_loss)


def losses(problem: Problem) -> list[float]:
    """Of all assignments, rising."""
    return sorted(problem.loss_of(np.array(c)) for c in product(range(3), repeat=4))


@pytest.mark.parametrize("seed", range(5))
def test_halving_finds_the_least_cost(make_problem: MakeProblem, seed: int) -> None:
    """With interactions, where costs are apart by more than a millionth; nothing is proved."""
    problem, table = problem_of(make_problem, seed, has_interactions=True)
    max_loss = losses(problem)[20]
    solver = Trying()

    found = least_cost(problem, table, solver, max_loss)

    assert found.cost == expected(problem, table, max_loss)
    assert found.solution.columns is not None
    assert table.total(found.solution.columns) == found.cost
    assert found.solution.loss <= max_loss
    assert (found.solution.status, found.bound) == (Status.FEASIBLE, None)
    assert found.problem.budgets[-1].limit == found.cost
    # The best, and one for each half: the first limit is the middle.
    assert found.num_tried == 21
    assert len(solver.limits) == 20
    every = [table.total(np.array(c)) for c in product(range(3), repeat=4)]
    best = min(product(range(3), repeat=4), key=lambda c: problem.loss_of(np.array(c)))
    middle = 0.5 * (min(every) + table.total(np.array(best)))
    assert solver.limits[0] == pytest.approx(middle)


def test_halving_ends_where_nothing_is_between(make_problem: MakeProblem) -> None:
    """The best assignment is the cheapest."""
    problem = make_problem([[0.0, 1.0]] * 2, interactions=Interactions(np.zeros((1, 2, 2))))
    table = make_problem([[0.0, 1.0]] * 2, [[[1.0, 2.0]] * 2], [9.0]).budgets[0].tables[0]

    found = least_cost(problem, table, Trying(), 0.5)

    assert (found.cost, found.num_tried) == (2.0, 1)


@pytest.mark.parametrize("seed", range(3))
def test_without_interactions_the_least_cost_is_proved(
    make_problem: MakeProblem, seed: int
) -> None:
    """And the loss is the least at that cost; a solver that misses the limit is not followed."""
    problem, table = problem_of(make_problem, seed, has_interactions=False)
    max_loss = losses(problem)[20]
    least = expected(problem, table, max_loss)

    found = least_cost(problem, table, Lagrangian(), max_loss)
    other = least_cost(problem, table, Trying(Status.FEASIBLE, is_best=False), max_loss)

    assert (found.cost, found.num_tried) == (least, 1)
    assert found.bound == pytest.approx(least)
    assert found.solution.status is Status.OPTIMAL
    assert other.cost == least
    assert other.solution.loss <= max_loss
    assert other.solution.status is Status.FEASIBLE


@pytest.mark.parametrize("has_interactions", [False, True])
def test_a_loss_at_its_least_is_within(make_problem: MakeProblem, has_interactions: bool) -> None:
    """A hair below, nothing is: the message says by how much."""
    problem, table = problem_of(make_problem, 1, has_interactions)
    least = losses(problem)[0]

    assert least_cost(problem, table, Trying(), least).solution.loss == pytest.approx(least)
    with pytest.raises(InfeasibleError, match="the least that was found is .* too much") as raised:
        least_cost(problem, table, Trying(), least - 0.25)
    assert f"{least:.6g} nats, 0.25 nats too much" in str(raised.value)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("most", [1.0, 1.5, 2.0])
def test_a_measured_criterion_holds_at_the_first_point_that_meets_it(
    make_problem: MakeProblem, seed: int, most: float
) -> None:
    """Of a frontier: it is asked about as often as points can be halved, each once."""
    problem, table = problem_of(make_problem, seed, has_interactions=False)
    asked: list[tuple[int, ...]] = []

    def is_acceptable(columns: Any) -> bool:
        asked.append(tuple(columns))
        return problem.loss_of(columns) <= most

    found = least_cost_measured(problem, table, Lagrangian(), is_acceptable, 9)

    assert found.solution.columns is not None
    assert found.solution.loss <= most
    assert found.cost == table.total(found.solution.columns)
    assert found.num_tried == len(asked) == len(set(asked)) <= 1 + 4
    assert found.bound is None
    assert found.solution.status is Status.FEASIBLE
    assert found.solution.solver == "lagrangian, bisected"
    assert tuple(found.solution.columns) in asked
    # No point of the same frontier is cheaper and acceptable.
    cheaper = [c for c in asked if table.total(np.array(c)) < found.cost]
    assert not any(problem.loss_of(np.array(c)) <= most for c in cheaper)


def test_what_nothing_meets_is_asked_once(make_problem: MakeProblem) -> None:
    """Of the assignment that loses least."""
    problem, table = problem_of(make_problem, 0, has_interactions=False)
    asked = []

    def never(columns: Any) -> bool:
        asked.append(problem.loss_of(columns))
        return False

    with pytest.raises(InfeasibleError, match="not even the assignment of least predicted loss"):
        least_cost_measured(problem, table, Lagrangian(), never, 5)
    assert asked == [losses(problem)[0]]


def test_a_solver_that_finds_nothing_is_not_called_infeasible(make_problem: MakeProblem) -> None:
    """It says how it ended; budgets that cannot be met are another thing."""
    problem, table = problem_of(make_problem, 0, has_interactions=True)

    @final
    class Late(Solver):
        name: ClassVar[str] = "late"
        summary: ClassVar[str] = "is out of time"

        def solve(self, problem: Problem) -> Solution:
            return Solution(
                Status.UNKNOWN, None, float("nan"), None, f"late {len(problem.cuts)}", 0
            )

    with pytest.raises(SolverError, match="^late 0: "):
        least_cost(problem, table, Late(), 1.0)
    tight = problem.limited(replace(table, name="other"), 0.1)
    with pytest.raises(InfeasibleError, match="no assignment meets the budgets"):
        least_cost(tight, table, Trying(), 1.0)


def test_every_half_is_looked_at_once(make_problem: MakeProblem) -> None:
    """Of a frontier of many points: the middle of what is left, of two the cheaper one."""
    problem = make_problem([[float(7 - i) for i in range(8)]])
    table = make_problem([[0.0] * 8], [[[float(i) for i in range(8)]]], [9.0]).budgets[0].tables[0]

    for least in range(8):
        asked: list[int] = []

        def is_acceptable(columns: Any, asked: list[int] = asked, least: int = least) -> bool:
            asked.append(int(columns[0]))
            return asked[-1] >= least

        found = least_cost_measured(problem, table, Lagrangian(), is_acceptable, 8)

        low, high, expected = 0, 7, [7]
        while low < high:
            middle = (low + high) // 2
            expected.append(middle)
            low, high = (low, middle) if middle >= least else (middle + 1, high)
        assert (found.cost, asked) == (float(least), expected)


def test_an_answer_that_the_exact_solver_calls_impossible_is_an_error(
    make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the two is wrong, and nothing is made of either."""
    problem, table = problem_of(make_problem, 0, has_interactions=True)

    @final
    class Wrong(Solver):
        name: ClassVar[str] = "wrong"
        summary: ClassVar[str] = "calls everything impossible"

        def solve(self, problem: Problem) -> Solution:
            return Solution(Status.INFEASIBLE, None, float("nan"), None, self.name, 0.0)

    monkeypatch.setattr(module_under_test, "additive_solver", lambda _: Wrong())

    with pytest.raises(SolverError, match="trying found what the exact solver calls infeasible"):
        least_cost(problem, table, Trying(), losses(problem)[5])
