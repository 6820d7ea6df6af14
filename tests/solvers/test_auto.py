"""Where the default solver goes from a proof to a search: at exactly so many choices."""

import numpy as np
import pytest

from mpq.errors import InputError
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable, PairwiseCost
from mpq.problem.interactions import Interactions
from mpq.problem.problem import Problem
from mpq.solvers import Auto, BranchAndBound, Lagrangian, LocalSearch, OuterApproximation, Solver
from tests.conftest import PRECISIONS


def interacting(num_moves: int, has_pairs: bool, shrinkage: float = 0.0) -> Problem:
    """So many choices of layers at two precisions, the last layer maybe at one."""
    num_layers = -(-num_moves // 2)
    layers = tuple(f"l{i}" for i in range(num_layers))
    shape = (num_layers, 2)
    pairs = (PairwiseCost("l0", "l1", np.eye(2)),) if has_pairs else ()
    cost = CostTable("r", "bytes", layers, PRECISIONS[:2], np.ones(shape), 0.0, pairs)
    fixed = {layers[-1]: PRECISIONS[0]} if num_moves % 2 else {}
    return Problem(
        CostTable("loss", "nats", layers, PRECISIONS[:2], np.ones(shape)),
        Constraints((Budget.of(cost, 1e6),), fixed=fixed),
        Interactions(np.ones((1, *shape)), shrinkage),
    )


@pytest.mark.parametrize(
    ("num_moves", "has_pairs", "expected"),
    [
        (160, False, BranchAndBound(time_limit_s=20.0, seed=3)),
        (160, True, BranchAndBound(time_limit_s=20.0, seed=3)),
        (161, False, LocalSearch(400, 3)),
        (161, True, OuterApproximation(time_limit_s=20.0)),
        (300, False, LocalSearch(400, 3)),
        (301, False, LocalSearch(20, 3)),
        (600, True, OuterApproximation(time_limit_s=20.0)),
        (601, True, LocalSearch(20, 3)),
    ],
)
def test_the_number_of_choices_decides(num_moves: int, has_pairs: bool, expected: Solver) -> None:
    """The limits are those of the documentation, and what is said has the number."""
    solver, why = Auto(seed=3)._picked(interacting(num_moves, has_pairs))

    assert solver == expected
    assert f"interactions of {num_moves} choices" in why
    assert ("too many to prove" in why) == isinstance(solver, LocalSearch)


def test_interactions_without_weight_are_proved_however_many() -> None:
    """At a shrinkage of 1 the sum over layers is all there is; a hair below, it is not."""
    solver, why = Auto(seed=3)._picked(interacting(700, False, shrinkage=1.0))
    other, _ = Auto(seed=3)._picked(interacting(700, False, shrinkage=0.999))

    assert solver == BranchAndBound(seed=3)
    assert why == "the interactions are shrunk away"
    assert other == LocalSearch(20, 3)


@pytest.mark.parametrize("has_pairs", [False, True])
def test_a_sum_over_layers_is_solved_exactly(has_pairs: bool) -> None:
    """By an integer program where pairs of layers have costs."""
    solver, why = Auto()._picked(interacting(4, has_pairs).additive())

    assert isinstance(solver, Lagrangian) != has_pairs
    assert why.endswith("costs of pairs of layers" if has_pairs else "a sum over layers")


def test_a_seed_is_not_negative() -> None:
    """0 is one."""
    assert Auto(seed=0).seed == 0
    with pytest.raises(InputError, match="seed >= 0; got -1"):
        Auto(seed=-1)
