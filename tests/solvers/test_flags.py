"""What solvers say of themselves, and which one ``auto`` takes: as their pages have it."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mpq.solvers import SOLVERS, Auto

SUMS_ALONE = {"bisection", "dynamic-programming", "greedy", "lagrangian", "water-filling"}
"""Refuse costs of pairs of layers, and interactions."""
MEASURING = {"bayesian", "evolutionary", "surrogate"}


@pytest.mark.parametrize("name", SOLVERS.names())
def test_a_solver_takes_what_it_can_solve(name: str) -> None:
    """All but those that add up single layers take pairs; `ilp` adds up pairs as well."""
    solver = SOLVERS.build(name)

    assert solver.takes_pairs == (name not in SUMS_ALONE)
    assert solver.takes_interactions == (name not in SUMS_ALONE | {"ilp"})
    assert solver.is_repeatable == (name not in MEASURING)


@pytest.mark.parametrize("name", sorted(MEASURING))
def test_a_search_by_measuring_begins_at_what_is_known(name: str) -> None:
    """Unless it is told otherwise."""
    assert vars(SOLVERS.build(name))["is_seeded"] is True
    assert vars(SOLVERS.build(f"{name}:is_seeded=false"))["is_seeded"] is False


def asked(num_moves: int, num_pairs: int = 0, shrinkage: float = 0.5) -> Any:
    """What ``auto`` looks at of a problem with interactions."""
    return SimpleNamespace(
        interactions=SimpleNamespace(shrinkage=shrinkage),
        grouped=SimpleNamespace(allowed=np.ones((num_moves, 1), bool), pairwise=range(num_pairs)),
    )


CHOICES = [
    (asked(160), "branch-and-bound", "160 choices"),
    (asked(161), "local-search", "161 choices, too many to prove"),
    (asked(5000, shrinkage=1.0), "branch-and-bound", "shrunk away"),
    (asked(160, 1), "branch-and-bound", "with costs of pairs of layers"),
    (asked(161, 1), "outer-approximation", "with costs of pairs of layers"),
    (asked(600, 1), "outer-approximation", "600 choices"),
    (asked(601, 1), "local-search", "too many to prove"),
]


@pytest.mark.parametrize(("problem", "name", "why"), CHOICES)
def test_auto_takes_by_the_number_of_choices(problem: Any, name: str, why: str) -> None:
    """At the numbers that its page gives, and one above each."""
    solver, told = Auto(seed=3)._picked(problem)

    assert solver.name == name
    assert why in told
    assert vars(solver).get("seed", 3) == 3


@pytest.mark.parametrize(("num_moves", "restarts"), [(300, 400), (301, 20)])
def test_auto_descends_less_often_where_each_descent_is_longer(
    num_moves: int, restarts: int
) -> None:
    """Up to 300 choices 400 times, above 20 times."""
    solver, _ = Auto()._picked(asked(num_moves))

    assert vars(solver)["num_restarts"] == restarts


def test_a_proof_of_auto_takes_twenty_seconds_at_most() -> None:
    """A frontier has many of them."""
    for problem in (asked(160), asked(200, 1)):
        assert vars(Auto()._picked(problem)[0])["time_limit_s"] == 20.0
