"""Pairs of layers as pairs of groups: the sums of the tables, for every assignment."""

from itertools import product

import numpy as np
import pytest

from mpq._support.arrays import Mask
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable, PairwiseCost
from mpq.problem.pairwise_costs import PairwiseCosts
from mpq.problem.problem import Problem
from mpq.quantization.precision import Precision

LAYERS = ("a", "b", "c", "d", "e")
PRECISIONS = tuple(map(Precision.parse, ("w2a8", "w4a8", "w8a8")))
PAIRS = (("a", "b"), ("c", "a"), ("b", "a"), ("d", "e"), ("e", "b"))
TIES = (("d", "b"),)


def table(seed: int, name: str, unit: str, num_pairs: int) -> CostTable:
    """Whole numbers, so that all sums are exact; a constant, and pairs in either order."""
    draws = np.random.default_rng(seed)
    pairs = tuple(
        PairwiseCost(first, second, draws.integers(-9, 10, (3, 3)).astype(float))
        for first, second in PAIRS[:num_pairs]
    )
    values = draws.integers(0, 50, (5, 3)).astype(float)
    return CostTable(name, unit, LAYERS, PRECISIONS, values, float(draws.integers(5, 9)), pairs)


def problem(mask: Mask | None = None, num_pairs: int = 5) -> Problem:
    """A loss with pairs, and three budgets, one of them without: four tables of three columns."""
    loss = table(0, "loss", "nats", num_pairs)
    budgets = (
        Budget.of(table(1, "latency", "seconds", num_pairs - 1), 50.0),
        Budget.of(table(2, "energy", "joules", 0), 60.0),
        Budget.of(table(3, "memory", "bytes", min(num_pairs, 2)), 70.0),
    )
    return Problem(loss, Constraints(budgets, TIES), mask=mask)


def masks() -> list[Mask | None]:
    """Everything; all but some cells; layers with a single precision."""
    some = np.ones((5, 3), dtype=np.bool_)
    some[0, 0] = some[2, 1] = some[1, 2] = False
    single = some.copy()
    single[0] = [False, True, False]
    single[4] = [True, False, False]
    return [None, some, single]


@pytest.mark.parametrize("mask", masks(), ids=["all", "some", "single"])
@pytest.mark.parametrize("num_pairs", [1, 3, 4, 5])
def test_groups_cost_what_their_layers_cost(mask: Mask | None, num_pairs: int) -> None:
    """Cells and pairs of groups add up to the tables' own totals, whatever is allowed."""
    posed = problem(mask, num_pairs)
    grouped = posed.grouped
    tables = (posed.loss, *posed.constraints.tables)
    dense = grouped.pairwise.dense(len(grouped.members))

    compared = 0
    for choice in product(range(3), repeat=len(grouped.members)):
        columns = np.array(choice)
        if not grouped.allowed[np.arange(len(choice)), columns].all():
            continue
        compared += 1
        expected = [table.total(grouped.expand(columns)) for table in tables]
        rows = np.arange(len(choice))
        alone = [grouped.loss[rows, columns].sum(), *grouped.costs[:, rows, columns].sum(axis=1)]
        between = grouped.pairwise.cost(columns[None])[0]
        assert (np.array(alone) + between).tolist() == expected
        both_ways = dense[:, rows, columns][:, :, rows, columns].sum(axis=(1, 2))
        assert (both_ways / 2).tolist() == between.tolist()
    assert compared > 1


@pytest.mark.parametrize("mask", masks(), ids=["all", "some", "single"])
def test_what_is_left_of_a_pair_depends_on_both(mask: Mask | None) -> None:
    """Nothing below 0; among what is allowed a 0 in every row and column; nothing elsewhere."""
    grouped = problem(mask).grouped
    pairs = grouped.pairwise

    assert len(pairs) == len(pairs.ends) == (3 if mask is None or mask[0].sum() > 1 else 0)
    assert all(one < other for one, other in pairs.ends)
    assert len(set(pairs.ends)) == len(pairs.ends)
    for (one, other), values in zip(pairs.ends, pairs.values, strict=True):
        can = np.outer(grouped.allowed[one], grouped.allowed[other])
        assert (values >= 0).all()
        assert not values[:, ~can].any()
        kept = values[:, grouped.allowed[one]][:, :, grouped.allowed[other]]
        assert not kept.min(axis=1).any()
        assert not kept.min(axis=2).any()


def test_constants_and_pairs_of_tied_layers_belong_to_one_group() -> None:
    """The constant to the first; of two tied layers only the diagonal can be paid."""
    pair = PairwiseCost("b", "d", np.arange(9.0).reshape(3, 3))
    ends = PairwiseCost("e", "d", np.arange(9.0).reshape(3, 3))
    tables = [
        CostTable("one", "bytes", LAYERS, PRECISIONS, np.zeros((5, 3)), 7.0, (pair, pair)),
        CostTable("two", "bytes", LAYERS, PRECISIONS, np.zeros((5, 3)), 2.0, (ends,)),
        CostTable("three", "bytes", LAYERS, PRECISIONS, np.zeros((5, 3))),
    ]
    group_of = {"a": 0, "b": 1, "d": 1, "c": 2, "e": 3}

    alone, left = PairwiseCosts.of(tables, group_of)

    expected = np.zeros((3, 4, 3))
    expected[0, 0], expected[1, 0], expected[0, 1] = 7, 2, [0, 8, 16]
    assert alone.tolist() == expected.tolist()
    assert left.ends == [(1, 3)]
    assert left.values[0].tolist() == [
        np.zeros((3, 3)).tolist(), ends.values.T.tolist(), np.zeros((3, 3)).tolist()
    ]  # fmt: skip


@pytest.mark.parametrize("num_tables", [1, 2])
def test_without_pairs_nothing_is_between_groups(num_tables: int) -> None:
    """And every array has its axes all the same."""
    tables = [CostTable("one", "bytes", LAYERS, PRECISIONS, np.ones((5, 3)))] * num_tables

    alone, none = PairwiseCosts.of(tables, {name: row for row, name in enumerate(LAYERS)})

    assert alone.shape == (num_tables, 5, 3)
    assert none.values.shape == (0, num_tables, 3, 3)
    assert len(none) == 0
    assert none.cost(np.zeros((4, 5), dtype=np.intp)).tolist() == [[0] * num_tables] * 4
    assert none.dense(5).shape == (num_tables, 5, 3, 5, 3)


def test_what_adding_up_may_change_is_told() -> None:
    """Four units in the last digit of all numbers of a table; of one that is not added up none."""
    plain = CostTable("plain", "bytes", LAYERS, PRECISIONS, np.full((5, 3), -2.0))
    pair = PairwiseCost("a", "b", np.full((3, 3), -1.0))
    with_nan = np.full((5, 3), 2.0)
    with_nan[0, 0] = np.nan
    more = CostTable("more", "joules", LAYERS, PRECISIONS, with_nan, -7.0, (pair, pair))

    def rounding(ties: tuple[tuple[str, ...], ...]) -> list[float]:
        budgets = Budget.of(plain, 9.0), Budget.of(more, 9.0)
        loss = CostTable("loss", "nats", LAYERS, PRECISIONS, np.zeros((5, 3)))
        found = Problem(loss, Constraints(budgets, ties)).grouped.rounding
        return [float(x) for x in found]

    unit = 2.0**-50  # four times the last digit of 1
    assert more.magnitude == 7 + 28 + 18
    assert rounding(()) == [0.0, (7 + 28 + 18) * unit]
    assert rounding(TIES) == [30 * unit, (7 + 28 + 18) * unit]
