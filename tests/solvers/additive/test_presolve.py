"""What presolve leaves of a problem."""

from collections.abc import Callable
from typing import TypeAlias

import pytest

from mpq.problem.problem import Problem
from mpq.problem.solution import Status
from mpq.solvers import SOLVERS
from mpq.solvers.additive.presolve import Reduced

Make: TypeAlias = Callable[..., Problem]
EXACT = ("ilp:backend=HiGHS", "ilp:backend=CBC", "lagrangian", "dynamic-programming")


def test_of_equal_cells_the_first_stays(make_problem: Make) -> None:
    """They better each other: one is as good as all, and none would be worse."""
    problem = make_problem([[5.0, 1.0, 1.0, 1.0]], [[[1.0, 2.0, 2.0, 3.0]]], [2.5])

    usable = Reduced.of(problem.grouped).usable

    assert usable.tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("solver", EXACT)
def test_two_equal_precisions_are_no_reason_to_take_another(
    make_problem: Make, solver: str
) -> None:
    """The best precision is there twice, beside one that is cheaper and loses more."""
    row = [[5.0, 1.0, 1.0]] * 2, [[1.0, 2.0, 2.0]] * 2
    problem = make_problem(row[0], [row[1]], [3.0])

    found = SOLVERS.build(solver).solve(problem)

    assert (found.status, found.loss) == (Status.OPTIMAL, 6.0)
