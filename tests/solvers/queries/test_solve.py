"""What users ask of a problem without a network: an answer, or the sentence that says why not."""

from dataclasses import replace
from typing import ClassVar, final

import numpy as np
import pytest

from mpq.errors import InfeasibleError, InputError, SolverError, UnknownNameError
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.solvers import Lagrangian, Solver
from mpq.solvers.queries.solve import answers, cheapest, solve
from tests.conftest import MakeProblem

LOSS = [[4.0, 1.0, 0.0], [3.0, 1.0, 0.0]]
COST = [[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]]


def posed(make_problem: MakeProblem, limit: float = 6.0) -> tuple[Problem, dict[str, CostTable]]:
    """Two layers at three precisions, and the resource that may be minimised."""
    problem = make_problem(LOSS, [COST], [limit])
    table = problem.budgets[0].tables[0]
    return problem, {"bytes": table, "joules": replace(table, name="joules", unit="joules")}


@final
class Lost(Solver):
    """Ends without an answer."""

    name: ClassVar[str] = "lost"
    summary: ClassVar[str] = "is out of time"

    def solve(self, problem: Problem) -> Solution:
        """See ``Solver.solve``."""
        return Solution(Status.UNKNOWN, None, float("nan"), None, self.name, 0.0)


def test_an_answer_has_an_assignment(make_problem: MakeProblem) -> None:
    """Else it is an error: that there is none, or that none was found."""
    problem, _ = posed(make_problem)

    assert solve(Lagrangian(), problem).loss == 1.0
    with pytest.raises(InfeasibleError, match="r0"):
        solve(Lagrangian(), posed(make_problem, 1.5)[0])
    with pytest.raises(SolverError, match=f"^lost: {Status.UNKNOWN.value}"):
        solve(Lost(), problem)


def test_a_resource_that_is_not_there_is_named_with_those_that_are(
    make_problem: MakeProblem,
) -> None:
    """Nothing else is minimised in its place."""
    problem, resources = posed(make_problem)

    with pytest.raises(UnknownNameError, match="no resource 'seconds'.*bytes, joules"):
        answers(problem, resources, Lagrangian(), "seconds", 2.0, 1, 1)


@pytest.mark.parametrize(("minimize", "max_loss"), [("bytes", None), (None, 2.0)])
def test_what_is_small_and_what_may_be_lost_go_together(
    make_problem: MakeProblem, minimize: str | None, max_loss: float | None
) -> None:
    """One without the other is half a question."""
    problem, resources = posed(make_problem)

    with pytest.raises(InputError, match="minimize and max_loss go together"):
        answers(problem, resources, Lagrangian(), minimize, max_loss, 1, 1)


@pytest.mark.parametrize("max_loss", [0.0, 1.0, 2.0, 4.0])
def test_the_least_cost_says_what_is_proved_of_it(
    make_problem: MakeProblem, max_loss: float
) -> None:
    """In the resource's unit, and it is one more budget of the problem."""
    problem, resources = posed(make_problem, 8.0)
    every = [(i, j) for i in range(3) for j in range(3) if LOSS[0][i] + LOSS[1][j] <= max_loss]
    least = min(COST[0][i] + COST[1][j] for i, j in every)

    limited, found = cheapest(problem, resources["joules"], Lagrangian(), max_loss)

    assert found.columns is not None
    assert COST[0][found.columns[0]] + COST[1][found.columns[1]] == least
    assert limited.budgets[-1].limit == least
    assert len(limited.budgets) == 2
    assert found.why == f"least joules: {least:g} joules, proved at least {least:g}"


def test_alternatives_follow_the_answer(make_problem: MakeProblem) -> None:
    """As many as asked for, the best one included and once; each within the same budgets."""
    problem, resources = posed(make_problem)

    for count in (1, 2, 3):
        found = answers(problem, resources, Lagrangian(), None, None, count, 1)
        assert [solution.loss for _, solution in found] == [1.0, 1.0, 2.0][:count]
        taken = [tuple(solution.columns.tolist()) for _, solution in found]  # type: ignore[union-attr]
        assert len(set(taken)) == count
        assert all(one is problem for one, _ in found)
    with pytest.raises(InputError, match="at least 1"):
        answers(problem, resources, Lagrangian(), None, None, 0, 1)


def test_alternatives_to_the_least_cost_cost_no_more(make_problem: MakeProblem) -> None:
    """Its cost is a budget of theirs."""
    problem, resources = posed(make_problem)

    found = answers(problem, resources, Lagrangian(), "bytes", 5.0, 2, 1)

    costs = [resources["bytes"].total(np.asarray(solution.columns)) for _, solution in found]
    assert costs == [3.0, 3.0]
    assert found[0][1].why.startswith("least r0: 3 bytes")
    assert found[1][1].loss >= found[0][1].loss
