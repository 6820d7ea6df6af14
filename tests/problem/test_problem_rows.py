"""What fits into a problem, and what its other forms keep of it."""

from dataclasses import replace

import numpy as np
import pytest

from mpq.errors import InputError
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import PairwiseCost
from mpq.problem.cut import Cut
from mpq.problem.interactions import Interactions
from mpq.problem.problem import Problem
from tests.problem.tables import BYTES, LOSS, TIME, W2, W4, W8, table


def problem(interactions: Interactions | None = None, **rules: object) -> Problem:
    """Four layers, a budget of bytes and one of seconds; ``c`` lacks w4a8 and ``d`` w2a8."""
    budgets = (
        Budget.of(table("size", "bytes", BYTES), 30.0),
        Budget.of(table("latency", "seconds", TIME), 7.0),
    )
    held = replace(Constraints(budgets), **rules)  # type: ignore[arg-type]
    return Problem(table("sketch", "nats", LOSS), held, interactions)


W = [[0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (Cut(np.array([0, 0, 0]), 1), "a cut is of 3 layers, the loss of 4"),
        (Cut(np.array([0, 0, 0, 0, 0]), 1), "a cut is of 5 layers, the loss of 4"),
        (Cut(np.array([0, 3, 0, 1]), 1), "a cut has the column 3, the loss 3 precisions"),
    ],
)
def test_a_cut_fits_the_loss(cut: Cut, message: str) -> None:
    """As many layers, and no column beyond the last."""
    with pytest.raises(InputError) as caught:
        replace(problem(), cuts=(Cut(np.array([2, 2, 2, 2]), 1), cut))

    assert str(caught.value) == message


@pytest.mark.parametrize("shape", [(4, 2), (4, 4), (3, 3), (5, 3), (3, 4)])
def test_a_mask_and_a_factor_fit_the_loss(shape: tuple[int, int]) -> None:
    """Both are refused with both shapes."""
    with pytest.raises(InputError, match=rf"^the mask is \({shape[0]}, {shape[1]}\), the loss is"):
        replace(problem(), mask=np.ones(shape, dtype=np.bool_))
    with pytest.raises(
        InputError, match=rf"^interactions are \[{shape[0]}, {shape[1]}\], the loss"
    ):
        problem(interactions=Interactions(np.ones((2, *shape))))


def test_interactions_and_pairs_exclude_each_other() -> None:
    """In the loss; a budget may have pairs."""
    pair = PairwiseCost("a", "b", np.ones((3, 3)))
    factor = Interactions(np.ones((2, 4, 3)))
    loss = replace(table("sketch", "nats", LOSS), pairs=(pair,))
    budget = Budget.of(replace(table("size", "bytes", BYTES), pairs=(pair,)), 9.0)

    assert Problem(loss).loss.pairs
    assert Problem(table("sketch", "nats", LOSS), Constraints((budget,)), factor).interactions
    with pytest.raises(InputError) as caught:
        Problem(loss, interactions=factor)
    assert str(caught.value) == (
        "sketch: a loss with interactions has no costs of pairs beside them"
    )


def test_rows_of_solvers_are_budgets_then_cuts() -> None:
    """A maximum has a row a step, each with its limit; a cut counts layers, and nothing else."""
    steps = (table("one", "bytes", BYTES), table("two", "bytes", 2 * BYTES))
    budgets = (Budget("peak", steps, 30.0), Budget.of(table("latency", "seconds", W), 7.0))
    pair = PairwiseCost("a", "b", np.ones((3, 3)))
    loss = replace(table("sketch", "nats", LOSS), constant=5.0, pairs=(pair,))
    cuts = (Cut(np.array([0, 1, 2, 0]), 1), Cut(np.array([2, 2, 2, 2]), 3))

    grouped = Problem(loss, Constraints(budgets), cuts=cuts).grouped

    assert grouped.limits.tolist() == [30.0, 30.0, 7.0, 3.0, 1.0]
    assert grouped.costs[:3].tolist() == [BYTES.tolist(), (2 * BYTES).tolist(), W]
    assert grouped.costs[3].tolist() == np.eye(3)[[0, 1, 2, 0]].tolist()
    assert grouped.costs[4].tolist() == np.eye(3)[[2, 2, 2, 2]].tolist()
    assert grouped.rounding[3:].tolist() == [0.0, 0.0]


def test_ties_hold_in_what_is_allowed() -> None:
    """Of two tied layers; a layer by itself may differ from all."""
    posed = problem(ties=(("a", "c"),))

    assert posed.is_allowed(np.array([0, 1, 0, 1]))
    assert posed.is_allowed(np.array([2, 1, 2, 2]))
    assert not posed.is_allowed(np.array([0, 1, 2, 1]))
    assert not posed.is_allowed(np.array([1, 1, 1, 1]))  # c lacks w4a8


def test_a_layer_that_is_given_may_have_candidates() -> None:
    """The given precision goes before, also where it is none of them."""
    posed = problem(fixed={"a": W8}, candidates={"a": (W2,), "b": (W4, W2)})

    assert posed.allowed.tolist()[:2] == [[False, False, True], [True, True, False]]


def test_the_cheapest_runs_where_the_table_says() -> None:
    """What it calls unavailable stays out, though its loss is then 0; cuts and masks stay."""
    cut = Cut(np.array([2, 2, 2, 2]), 2)
    posed = replace(problem(interactions=Interactions(np.ones((2, 4, 3)))), cuts=(cut,))
    latency = table("latency", "seconds", TIME)

    for from_ in (posed, replace(posed, constraints=Constraints())):
        found = from_.cheapest(latency)
        assert found.interactions is None
        assert found.cuts == (cut,)
        assert found.loss.values.tolist() == np.nan_to_num(TIME).tolist()
        assert found.runnable.tolist() == (~np.isnan(TIME)).tolist()


def test_a_budget_that_is_dropped_leaves_what_it_cannot_run() -> None:
    """Without its limit, and with another one in its place."""
    dropped = problem().without("latency")
    limited = problem().limited(table("size", "bytes", BYTES), 12.0)

    assert [budget.resource for budget in dropped.budgets] == ["size"]
    assert dropped.runnable.tolist() == (~np.isnan(TIME)).tolist()
    assert [(b.resource, b.limit) for b in limited.budgets] == [("latency", 7.0), ("size", 12.0)]
    with pytest.raises(InputError, match="^a loss with interactions is no budget: use problem.add"):
        problem(interactions=Interactions(np.ones((2, 4, 3)))).least(
            table("size", "bytes", BYTES), 3.0
        )
