"""What a user, and another package, can count on of every solver without solving anything."""

from dataclasses import fields, replace
from typing import Any, ClassVar, final

import numpy as np
import pytest

from mpq.errors import InputError
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.solvers import SOLVERS, Solver
from tests.conftest import MakeProblem

TAKES = {  # interactions, costs of pairs of layers, one problem after the other
    "auto": (True, True, True),
    "lagrangian": (False, False, True),
    "ilp": (False, True, True),
    "dynamic-programming": (False, False, True),
    "branch-and-bound": (True, True, True),
    "outer-approximation": (True, True, True),
    "local-search": (True, True, True),
    "evolutionary": (True, True, False),
    "bayesian": (True, True, False),
    "surrogate": (True, True, False),
    "greedy": (False, False, True),
    "water-filling": (False, False, True),
    "bisection": (False, False, True),
    "swept-budgets": (False, False, False),
    "threshold": (False, False, True),
    "measured-greedy": (True, True, False),
}
MEASURING = {
    "batch_size": 10, "seed": 0, "is_seeded": True,
    "storage": "", "study": "mpq", "starts": (), "time_limit_s": None, "objective": None,
}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {
    "auto": {"seed": 0, "time_limit_s": 20.0},
    "lagrangian": {"gap": 0.0, "time_limit_s": None, "backend": "auto"},
    "ilp": {"backend": "auto", "time_limit_s": None, "gap": 0.0},
    "dynamic-programming": {"grid": 10_000},
    "branch-and-bound": {"gap": 0.0, "time_limit_s": 60.0, "num_restarts": 200, "seed": 0},
    "outer-approximation": {"gap": 1e-3, "time_limit_s": 60.0, "backend": "auto"}
    | {"num_restarts": 50, "seed": 0},
    "local-search": {"num_restarts": 400, "seed": 0, "time_limit_s": 60.0},
    "evolutionary": MEASURING
    | {"num_trials": 1000, "population_size": 30, "objectives": "loss", "is_measured": False},
    "bayesian": MEASURING | {"num_trials": 200, "is_measured": False},
    "surrogate": MEASURING | {"num_trials": 100, "is_measured": False, "earlier": ""},
    "greedy": {"direction": "up"},
    "water-filling": {},
    "bisection": {"tensors": False},
    "swept-budgets": {"groups": "*", "low": 0.46, "high": 1.36, "num_ratios": 10, "keep": 0.0}
    | {"batch_size": 16, "is_measured": False, "time_limit_s": None, "objective": None},
    "threshold": {"max_loss": None},
    "measured-greedy": {"direction": "down", "num_trials": 10_000, "batch_size": 16}
    | {"is_measured": False, "time_limit_s": None, "objective": None},
}


@final
class Plain(Solver):
    """What another package writes at least."""

    name: ClassVar[str] = "plain"
    summary: ClassVar[str] = "takes the first precision"

    def solve(self, problem: Problem) -> Solution:
        """See ``Solver.solve``."""
        columns = np.zeros(len(problem.loss.values), dtype=np.intp)
        return Solution(Status.FEASIBLE, columns, problem.loss_of(columns), None, self.name, 0.0)


def test_every_solver_is_in_the_tables() -> None:
    """One that is added says here what it takes."""
    assert set(SOLVERS.names()) >= set(TAKES)
    assert TAKES.keys() == DEFAULTS.keys()


@pytest.mark.parametrize("name", TAKES)
def test_what_a_solver_takes(name: str) -> None:
    """By its own word, which the command line and ``mpq.search`` go by."""
    solver = SOLVERS.build(name)

    assert (solver.takes_interactions, solver.takes_pairs, solver.is_repeatable) == TAKES[name]
    assert solver.is_measuring == DEFAULTS[name].get("is_measured", False)


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_those_that_answers_were_published_with(name: str) -> None:
    """Another default is another answer of the same command."""
    solver = SOLVERS.build(name)

    found = {field.name: getattr(solver, field.name) for field in fields(solver)}  # type: ignore[arg-type]

    assert found == DEFAULTS[name]


def test_a_solver_that_says_nothing_takes_everything() -> None:
    """And measures nothing, has nothing to refuse, and has no frontier of its own."""
    solver = Plain()

    assert (solver.takes_interactions, solver.takes_pairs, solver.is_repeatable) == (True,) * 3
    assert not solver.is_measuring
    solver.check()


@pytest.mark.parametrize("name", ["evolutionary", "bayesian", "surrogate"])
def test_what_measurements_take_is_told_beforehand(name: str) -> None:
    """As many as there are trials, or the time limit; of others nothing is known."""
    whole = SOLVERS.build(f"{name}:num_trials=30,is_measured=true")
    limited = SOLVERS.build(f"{name}:num_trials=30,is_measured=true,time_limit_s=60")

    assert [whole.measuring_s(each_s) for each_s in (0.5, 100.0)] == [15.0, 3000.0]
    assert [limited.measuring_s(each_s) for each_s in (0.5, 100.0)] == [15.0, 60.0]
    assert Plain().measuring_s(0.5) == np.inf


def test_a_solver_that_measures_nothing_takes_no_objective() -> None:
    """The message names those that do."""
    with pytest.raises(InputError, match="plain minimises a predicted loss .*'evolutionary'"):
        Plain().bind(lambda assignments: np.zeros(len(assignments)))


def test_a_frontier_is_one_problem_for_each_limit(make_problem: MakeProblem) -> None:
    """Beside the budgets that there are; what one run would find is not looked for."""
    asked: list[tuple[float, ...]] = []

    @final
    class Noting(Solver):
        name: ClassVar[str] = "noting"
        summary: ClassVar[str] = "notes what it is asked"

        def solve(self, problem: Problem) -> Solution:
            asked.append(tuple(budget.limit for budget in problem.budgets))
            return Plain().solve(problem)

    problem = make_problem([[2.0, 1.0]], [[[1.0, 2.0]]], [7.0])
    other = make_problem([[2.0, 1.0]], [[[1.0, 3.0]]], [7.0]).budgets[0].tables[0]
    table = replace(other, name="other")

    found = Noting().frontier(problem, table, [1.0, 2.0, 3.0])

    assert asked == [(7.0, 1.0), (7.0, 2.0), (7.0, 3.0)]
    assert [solution.loss for solution in found] == [2.0] * 3
    assert Noting().found_frontier(problem) is None
