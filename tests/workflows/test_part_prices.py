"""Prices of parts beside the errors of other layers: they sum to what pairs of layers say."""

import numpy as np
import pytest

from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.interactions import Interactions
from mpq.problem.layer_parts import OutputParts
from mpq.problem.parts import Parts
from mpq.problem.problem import Problem
from mpq.quantization.precision import Precision
from mpq.workflows.part_prices import LEAST_SHARE, crossed, in_company

COLUMNS = np.array([1, 0, 2])
PARTS = Parts(("a", "b", "c"), {"b": OutputParts(np.arange(4))})
"""Of three layers, of which the second has a row for each of its channels."""


def problem_of() -> Problem:
    """Three layers at three precisions, without a limit."""
    precisions = tuple(map(Precision.parse, ("w2", "w4", "w8")))
    values = np.array([[3.0, 1.0, 0.1], [5.0, 2.0, 0.5], [0.4, 0.2, 0.1]])
    return Problem(CostTable("loss", "nats", PARTS.layers, precisions, values), Constraints())


def interactions(shrinkage: float = 0.25) -> Interactions:
    """Of three layers and three precisions."""
    drawn = np.random.default_rng(0).normal(size=(7, 3, 3))
    return Interactions(drawn, shrinkage)


def test_what_changes_with_one_layer_is_what_the_pairs_say() -> None:
    """Another precision of one layer changes the excess by the difference of two prices."""
    pairs = interactions()
    found = crossed(pairs, COLUMNS)

    for row in range(3):
        for column in range(3):
            other = COLUMNS.copy()
            other[row] = column
            change = pairs.excess(other) - pairs.excess(COLUMNS)
            assert found[row, column] - found[row, COLUMNS[row]] == pytest.approx(change)


def test_parts_add_up_to_the_layer_in_company() -> None:
    """In the proportions of channels; of a layer whose errors are made good a twentieth is left."""
    problem = problem_of()
    channels = {"b": np.arange(1.0, 13.0).reshape(4, 3)}
    pairs = interactions()

    rows = in_company(PARTS, channels, problem, pairs, COLUMNS)

    own = problem.loss.values
    expected = np.maximum(own + crossed(pairs, COLUMNS), LEAST_SHARE * own)
    of_b = rows[PARTS.rows_of("b")]
    assert rows[[0, -1]] == pytest.approx(expected[[0, 2]])
    assert of_b.sum(axis=0) == pytest.approx(expected[1])
    assert of_b / of_b.sum(axis=0) == pytest.approx(channels["b"] / channels["b"].sum(axis=0))


def test_without_interactions_a_layer_keeps_its_price() -> None:
    """Errors of layers add up then."""
    problem = problem_of()
    channels = {"b": np.ones((4, 3))}

    rows = in_company(PARTS, channels, problem, None, COLUMNS)

    assert rows[PARTS.rows_of("b")].sum(axis=0) == pytest.approx(problem.loss.values[1])


def test_a_price_is_not_lost_where_no_channel_has_one() -> None:
    """Then parts share it."""
    problem = problem_of()

    rows = in_company(PARTS, {"b": np.zeros((4, 3))}, problem, None, COLUMNS)

    assert rows[PARTS.rows_of("b")] == pytest.approx(np.tile(problem.loss.values[1] / 4, (4, 1)))
