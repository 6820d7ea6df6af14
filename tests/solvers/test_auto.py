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


def interacting(
    num_moves: int, has_pairs: bool, shrinkage: float = 0.0, num_rows: int = 1
) -> Problem:
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
        Interactions(np.ones((num_rows, *shape)), shrinkage),
    )


def proof(num_restarts: int) -> BranchAndBound:
    """Of many moves."""
    return BranchAndBound(1e-3, 20.0, num_restarts, seed=3)


def cuts(num_restarts: int) -> OuterApproximation:
    """Of many moves."""
    return OuterApproximation(1e-3, 20.0, "auto", num_restarts, seed=3)


@pytest.mark.parametrize(
    ("num_moves", "num_rows", "has_pairs", "expected"),
    [
        (160, 100, False, BranchAndBound(time_limit_s=20.0, seed=3)),
        (160, 100, True, BranchAndBound(time_limit_s=20.0, seed=3)),
        # Of 81 layers.
        (161, 80, False, cuts(400)),
        (161, 81, False, proof(400)),
        (161, 81, True, cuts(400)),
        (300, 1, False, cuts(400)),
        (301, 1, False, cuts(20)),
        (300, 150, False, proof(400)),
        (301, 151, False, proof(20)),
        (1500, 750, False, proof(20)),
        (1501, 751, False, LocalSearch(20, 3)),
        (3100, 1, False, cuts(20)),
        (3100, 1, True, cuts(20)),
        (3101, 1, False, LocalSearch(20, 3)),
        (3101, 1, True, LocalSearch(20, 3)),
    ],
)
def test_choices_and_rows_decide(
    num_moves: int, num_rows: int, has_pairs: bool, expected: Solver
) -> None:
    """The limits are those of the documentation, and what is said has the numbers."""
    problem = interacting(num_moves, has_pairs, num_rows=num_rows)

    solver, why = Auto(seed=3)._picked(problem)

    assert solver == expected
    assert f"interactions of {num_moves} choices" in why
    assert (f"and {num_rows} rows" in why) == (num_moves > 160 and not has_pairs)
    assert ("too many to prove" in why) == isinstance(solver, LocalSearch)


def test_interactions_without_weight_are_proved_however_many() -> None:
    """At a shrinkage of 1 the sum over layers is all there is; a hair below, it is not."""
    solver, why = Auto(seed=3)._picked(interacting(700, False, shrinkage=1.0))
    other, _ = Auto(seed=3)._picked(interacting(700, False, shrinkage=0.999))

    assert solver == BranchAndBound(seed=3)
    assert why == "the interactions are shrunk away"
    assert other == cuts(20)


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
