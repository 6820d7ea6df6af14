"""What the page says where units differ, and where no move is a trade."""

from dataclasses import replace

import numpy as np
import pytest

from mpq.problem.cost_table import CostTable
from mpq.report.page import render
from mpq.report.page.comparison import Comparison
from mpq.report.page.script_data import comparing_data
from mpq.workflows.page.accounts import Accounts
from mpq.workflows.page.facts import facts_of
from mpq.workflows.page.moves import best_moves, single_moves
from mpq.workflows.page.prices import budget_prices
from tests.report.made_up import blocks, curve, made_up
from tests.report.reading import tables


def test_losses_in_different_units_share_no_axis_in_silence() -> None:
    """The axis has both units and a note says so; of one unit there is neither."""
    found = made_up(blocks(6))
    nats = facts_of(found, curve(found))
    other = replace(nats, loss_unit="relative")

    mixed, alike = (Comparison({"a": nats, "b": each}, {}) for each in (other, nats))

    note = "Losses by the solvers are in nats and relative, which cannot be compared."
    assert note in mixed.notes
    assert comparing_data(mixed)["lossUnit"] == "nats or relative"
    assert note not in alike.notes
    assert comparing_data(alike)["lossUnit"] == "nats"


@pytest.mark.parametrize("bits_cost", [-1.0, 0.0])
def test_moves_that_lose_less_and_free_more_are_shown(bits_cost: float) -> None:
    """Where more bits are faster, or as fast, another budget holds the layers back."""
    found = made_up(blocks(6))
    loss = found.problem.loss
    bits = np.array([2.0, 3.0, 4.0, 6.0, 8.0])
    values = np.tile(10 + bits_cost * bits, (6, 1)) * 1e-6
    latency = CostTable("latency", "seconds", loss.layers, loss.precisions, values)
    costs = tuple(latency if x.name == "latency" else x for x in found.tables)
    drawn = replace(found, tables=costs)
    accounts = Accounts.of(drawn, "latency")

    moves = best_moves(accounts, single_moves(accounts, found.columns), "latency")

    at = accounts.shown.index("latency")
    assert moves
    assert all(move.loss < 0 >= move.costs[at] for move in moves)
    assert [move.loss for move in moves] == sorted(move.loss for move in moves)
    facts = replace(facts_of(drawn, curve(found, 3)), axis="latency", moves=moves)
    _, *rows = tables(render.page_of(facts))["Single moves from the answer"]
    assert [row[0] for row in rows] == [move.layer for move in moves]
    # What is freed has its sign, and what is for nothing none; neither has a price.
    assert {row[3][0] in "+-" for row in rows} == {bits_cost < 0}
    assert {row[4] for row in rows} == {"–"}


def test_every_budgets_price_is_that_of_the_best_move() -> None:
    """By a change of the whole assignment; with how much of the budget is used."""
    found = made_up(blocks(9))
    accounts, budget = Accounts.of(found, "weight_bytes"), found.problem.budgets[0]
    columns, problem = found.columns, found.problem

    (said,) = budget_prices(accounts, columns, single_moves(accounts, columns))

    best = 0.0
    for members in problem.grouped.members:
        for column in range(5):
            moved = columns.copy()
            moved[list(members)] = column
            more = budget.used(moved) - budget.used(columns)
            if problem.is_allowed(moved) and more > 0:
                best = max(best, 1024 * (problem.loss_of(columns) - problem.loss_of(moved)) / more)
    used = 100 * budget.used(columns) / budget.limit
    assert said.startswith(
        f"Weight bytes, {used:.1f} % used: one KiB more saves {best:.3g} nats at "
    )
