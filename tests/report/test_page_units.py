"""What the page says where units differ, and where no move is a trade."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mpq._support.files import write_files
from mpq.network.metrics import METRICS
from mpq.problem.cost_table import CostTable
from mpq.report.page import render
from mpq.report.page.comparison import Comparison
from mpq.report.page.facts import Facts
from mpq.report.page.script_data import comparing_data
from mpq.report.pictures import draw_frontier
from mpq.report.save import save_result
from mpq.report.sections import frontier_files
from mpq.report.stored_frontier import frontier_from_json
from mpq.report.tables import frontier_table
from mpq.workflows.page.accounts import Accounts
from mpq.workflows.page.facts import facts_of
from mpq.workflows.page.folder import facts_of_folder
from mpq.workflows.page.moves import best_moves, single_moves
from mpq.workflows.page.prices import budget_prices
from mpq.workflows.page.trust import checks_of
from mpq.workflows.page.write import with_others
from mpq.workflows.result import SearchResult
from tests.report.made_up import blocks, curve, made_up
from tests.report.reading import tables


def test_losses_in_different_units_share_no_axis_in_silence() -> None:
    """The axis has both units and notes say so; of one unit there is neither."""
    found = made_up(blocks(6))
    nats = facts_of(found, curve(found))
    solved = replace(nats.solver_loss, unit="relative")
    other = replace(nats, loss_unit="relative", solver_loss=solved, points_unit="relative")

    mixed, alike = (Comparison({"a": nats, "b": each}, {}) for each in (other, nats))

    assert mixed.notes == (
        "Losses by the solvers are in nats and relative, which cannot be compared.",
        "Losses of points are in nats and relative, which cannot be compared.",
    )
    assert comparing_data(mixed)["pointsUnit"] == "nats or relative"
    assert {x["lossUnit"] for x in comparing_data(mixed)["points"]} == {"nats", "relative"}
    assert alike.notes == ()
    assert comparing_data(alike)["pointsUnit"] == "nats"


def by_trials(score: str = "") -> SearchResult:
    """A result of a solver that measured a squared error, and found its frontier on the way.

    The estimate is in ``relative``; what was measured is 7 times what is predicted, plus 1.
    """
    found = made_up(blocks(6), score=score)
    metric = METRICS.build("squared-error")
    rows = (replace(x, measured=replace(x.measured, metric=metric)) for x in found.comparisons)
    problem = replace(found.problem, loss=replace(found.problem.loss, unit="relative"))
    trials = tuple((np.full(6, k), 7 * problem.loss_of(np.full(6, k)) + 1) for k in range(5))
    return replace(
        found,
        problem=problem,
        solution=replace(found.solution, loss=7 * found.solution.loss + 1),
        comparisons=tuple(rows),
        provenance=replace(found.provenance, is_loss_measured=True),
        trials=trials,
    )


def loss_cells(facts: Facts) -> list[str]:
    """The loss column of the points on the page, its head first."""
    found = tables(render.page_of(facts))
    (points,) = (rows for caption, rows in found.items() if caption.startswith("Points"))
    return [row[1] for row in points]


@pytest.mark.parametrize(
    ("score", "unit", "name", "title"),
    [
        ("", "squared_output", "calibration_loss", "measured loss (calibration examples)"),
        ("psnr", "of the score", "calibration_loss", "measured loss (calibration examples)"),
        ("judges:judge", "of the score", "trial_loss", "measured loss"),
    ],
)
def test_trials_of_a_solver_that_measured_keep_their_unit_and_their_word(
    score: str, unit: str, name: str, title: str
) -> None:
    """In frontier.json, frontier.csv, the picture and the page; the rest of it is predicted."""
    found = by_trials(score)
    drawn = found.frontier()

    again, table = frontier_from_json(drawn.to_json()), frontier_table(drawn)
    facts = facts_of(found, with_others(found, again))

    key = f"{name}_{unit.replace(' ', '_')}"
    assert (again.loss_name, again.loss_unit) == (name, unit)
    assert table[key].tolist() == [point.loss for point in again.points]
    assert set(json.loads(drawn.to_json())["points"][0]) >= {key}
    head, *cells = loss_cells(facts)
    assert head == f"{title} [{unit}]"
    assert cells[-1] == f"{found.solution.loss:.4g}"
    assert draw_frontier(drawn).get_ylabel() == f"loss [{unit}]"
    assert facts.loss_unit == "relative"
    assert unit in repr(found)


def test_a_folder_of_an_earlier_mpq_is_read_in_the_unit_that_was_measured_in(
    tmp_path: Path,
) -> None:
    """Its frontier.json has the estimate's unit beside what was measured."""
    found = by_trials()
    frontier = replace(found.frontier(), loss_unit="relative")
    save_result(found, tmp_path, frontier, ())
    write_files(tmp_path, frontier_files(frontier, found.run_id))

    facts = facts_of_folder(tmp_path)

    assert facts.points_unit == "squared_output"
    assert facts.points[0].loss == frontier.points[0].loss


def test_points_that_nobody_tried_are_predicted_whatever_their_solver_measured() -> None:
    """So are the answer and the uniform precisions beside them; the solver's loss stands apart."""
    found = replace(by_trials(), trials=())
    frontier = with_others(found, found.frontier())

    facts = facts_of(found, frontier)

    problem = found.problem
    assert frontier.loss_key == "predicted_loss_relative"
    for point in frontier.all_points():
        assert point.loss == problem.loss_of(problem.columns_of(point.precisions))
    assert loss_cells(facts)[0] == "predicted loss [relative]"
    solved = facts.solver_loss
    assert (solved.name, solved.unit) == ("measured loss (calibration examples)", "squared_output")
    assert solved.value == found.solution.loss
    name = "loss [predicted: relative, measured: squared_output]"
    assert draw_frontier(frontier).get_ylabel() == name


def test_what_is_measured_again_is_compared_with_the_prediction() -> None:
    """A trial's own loss was measured as well: no prediction, and in another unit."""
    found = by_trials()
    drawn = found.frontier()
    tried = replace(drawn.points[0], measured=found.measured)

    checks = checks_of(found, replace(drawn, points=(tried,)))

    (check,) = (x for x in checks if x.what == "frontier point 1")
    problem = found.problem
    assert check.predicted == problem.loss_of(problem.columns_of(tried.precisions))
    assert check.predicted != tried.loss


def test_measured_and_predicted_runs_beside_each_other_say_which_is_which() -> None:
    """In every cell: its number, its unit, its word."""
    plain = made_up(blocks(6))
    runs = {"plain": plain, "measured": by_trials(), "scored": by_trials("mAP")}
    facts = {
        name: facts_of(found, with_others(found, found.frontier(num_points=3)))
        for name, found in runs.items()
    }

    compared = Comparison(facts, dict.fromkeys(facts, ""))
    found = tables(render.comparing_page(compared))

    _, *answers = next(rows for caption, rows in found.items() if "answer of every run" in caption)
    ends = "nats predicted loss", "squared_output measured loss", "of the score measured loss"
    for row, end in zip(answers, ends, strict=True):
        assert end in row[2]
    _, *points = found["Points of all frontiers, and the answers"]
    for row in points:
        assert ends[list(facts).index(row[0])] in row[2]
    kinds = "predicted loss, measured loss (calibration examples) and measured loss"
    for what in ("by the solvers", "of points"):
        assert f"Losses {what} are not of one kind: {kinds}." in compared.notes
    assert comparing_data(compared)["pointsName"] == "loss"
    assert comparing_data(compared)["metricUnit"] == "nats or squared_output"


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
        f"Weight bytes, {used:.1f} % used: one KiB more saves {best:.3g} nats in "
        "the single layer that makes most of it, "
    )
