"""Recipes beside each other and beside the default."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import mpq
from mpq.cli.__main__ import app
from mpq.errors import InputError, UnknownNameError
from mpq.report.recipes import RecipeComparison
from mpq.workflows.compare_recipes import compare_recipes
from mpq.workflows.score import Score
from tests.recipes.reference import data, tiny

NAMES = ["default", "hawq-v3", "hawq"]


@pytest.fixture(scope="module")
def comparison() -> RecipeComparison:
    """Two recipes on the tiny network, one of them named twice."""
    task = mpq.Task(tiny(), data, data, candidates=["w4a4", "w8a8"], rounding="nearest")
    return compare_recipes(task, ["bit_operations=10500"], ["hawq-v3", "hawq", "hawq-v3"])


def test_a_row_for_every_search(comparison: RecipeComparison) -> None:
    """Measured, within the limit, with its time and what was asked otherwise."""
    assert [row.recipe for row in comparison.rows] == NAMES
    assert all(0 < row.divergence < 1 for row in comparison.rows)
    assert all(row.costs["bit_operations_bitops"] <= 10500 for row in comparison.rows)
    assert all(row.seconds > 0 and row.accuracy is not None for row in comparison.rows)
    assert comparison.rows[0].overrides == ()
    assert comparison.rows[2].overrides[0].startswith("candidates: w4a4,w8a8 instead of w2a4")
    assert (comparison.num_calibration, comparison.num_held_out) == (32, 32)


def test_a_row_is_the_search_by_that_name(comparison: RecipeComparison) -> None:
    """With the same loss on the same examples."""
    task = mpq.Task(tiny(), data, data, candidates=["w4a4", "w8a8"], rounding="nearest")

    found = mpq.search(task, ["bit_operations=10500"], recipe="hawq-v3")

    assert comparison.rows[1].divergence == found.measured.divergence
    shares = comparison.table()["of_default"]
    assert shares[0] == 1
    assert shares[1] == pytest.approx(found.measured.divergence / comparison.rows[0].divergence)


def test_the_users_score_stands_beside_what_answers_lose(tmp_path: Path) -> None:
    """In the table, in the file that is read again, and on the page."""
    limits, asked = ["bit_operations=12000"], Score.of(_largest_weight, higher_is_better=True)
    task = mpq.Task(
        tiny(), data, data, candidates=["w4a4", "w8a8"], rounding="nearest", score=asked
    )

    found = compare_recipes(task, limits, ["hawq-v3"])

    for row, recipe in zip(found.rows, (None, "hawq-v3"), strict=True):
        assert row.score == mpq.search(task, limits, recipe=recipe).measured.score
    assert found.table()["measured_score"].tolist() == [row.score for row in found.rows]
    page = next(file for file in found.save(tmp_path) if file.suffix == ".html").read_text()
    assert all(f'<td class="n">{row.score:.4g}</td>' in page for row in found.rows)
    assert RecipeComparison.from_json((tmp_path / "recipes.json").read_text()) == found


def _largest_weight(network: torch.nn.Module) -> float:
    return max(float(weight.detach().abs().max()) for weight in network.parameters())


def test_what_it_saves(comparison: RecipeComparison, tmp_path: Path) -> None:
    """A table, and JSON without tokens that are none."""
    files = comparison.save(tmp_path)

    assert [file.name for file in files] == [
        *("recipes.csv", "recipes.json", "made.json", "report.html"),
    ]
    assert pd.read_csv(files[0])["recipe"].tolist() == NAMES
    assert RecipeComparison.from_json(files[1].read_text()) == comparison
    assert [spent.name for spent in comparison.made.phases][:2] == [
        *("layers and costs", "ranges"),
    ]


def test_what_a_recipe_cannot_do_is_its_result() -> None:
    """HAWQ's loss needs labels; the default does without."""
    task = mpq.Task(tiny(), [x for x, _ in data()], candidates=["w4a4", "w8a8"])

    found = compare_recipes(task, ["bit_operations=12000"], ["hawq-v3"])

    assert found.rows[0].error is None
    assert found.rows[1].error is not None
    assert "targets" in found.rows[1].error
    assert '"divergence": null' in found.to_json()
    assert found.table()["error"][1] == found.rows[1].error


def test_a_score_that_fails_in_the_middle_is_the_result_of_that_row(tmp_path: Path) -> None:
    """What was found before and is found after stays, in the file as well."""
    seen = []

    def judge(network: torch.nn.Module) -> float:
        if torch.equal(network.get_parameter("0.weight"), tiny().get_parameter("0.weight")):
            seen.append(network)  # the original, once for each search
        return float("nan") if len(seen) == 2 else 1.0

    task = mpq.Task(
        tiny(), data, data, candidates=["w4a4", "w8a8"], rounding="nearest",
        score=Score.of(judge, higher_is_better=True, name="mine"),
    )  # fmt: skip

    found = compare_recipes(task, ["bit_operations=12000"], ["hawq-v3", "hawq"])

    errors = [row.error for row in found.rows]
    assert errors[::2] == [None, None]
    assert errors[1] is not None
    assert errors[1].startswith("the score mine (--score) returns one finite number; got nan")
    found.save(tmp_path)
    assert [
        row.error
        for row in RecipeComparison.from_json((tmp_path / "recipes.json").read_text()).rows
    ] == errors


def test_it_takes_limits_and_names() -> None:
    """Refused before anything is searched."""
    task = mpq.Task(tiny(), data)

    with pytest.raises(InputError, match="at least one limit and one recipe"):
        compare_recipes(task, ["bit_operations=10500"], [])
    with pytest.raises(UnknownNameError, match="hawk"):
        compare_recipes(task, ["bit_operations=10500"], ["hawk"])


def test_options_of_estimators_do_not_go_with_recipes() -> None:
    """They would do nothing."""
    ran = CliRunner().invoke(app, ["compare", "--recipe", "hawq", "--estimator", "sketch"])

    assert ran.exit_code == 2
    assert "--recipe compares whole searches" in " ".join(ran.stderr.split())


def test_the_command(tmp_path: Path) -> None:
    """Prints the table, and whatever a recipe could not do."""
    file = tmp_path / "net.py"
    file.write_text("from tests.recipes.reference import data, tiny\n", encoding="utf-8")
    words = ["--model", f"{file}:tiny", "--data", f"{file}:data", "--precisions", "w4a4,w8a8"]

    ran = CliRunner().invoke(
        app, ["compare", *words, "--recipe", "hawq", "--limit", "bit_operations=12000",
              "--output", str(tmp_path)],
    )  # fmt: skip

    assert ran.exit_code == 0, ran.output
    assert "of default" in ran.stdout
    assert "hawq, bit_operations=12000: but for candidates" in " ".join(ran.stdout.split())
    page = (tmp_path / "report.html").read_bytes()
    assert b"mpq compare" in page
    again = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert again.exit_code == 0, again.output
    assert (tmp_path / "report.html").read_bytes() == page


def test_what_is_written_out_stands(tmp_path: Path) -> None:
    """An option as by default is not the recipe's, in a comparison as in a search."""
    file = tmp_path / "net.py"
    file.write_text("from tests.recipes.reference import data, tiny\n", encoding="utf-8")
    words = ["compare", "--recipe", "mixllm", "--limit", "weight_bytes=0.95x:w8a8", "--model",
             f"{file}:tiny", "--data", f"{file}:data", "--weight-range", "mse", "--rounding",
             "nearest", "--output", str(tmp_path / "out")]  # fmt: skip

    ran = CliRunner().invoke(app, words)

    assert ran.exit_code == 0, ran.output
    found = RecipeComparison.from_json((tmp_path / "out" / "recipes.json").read_text())
    assert found.rows[1].overrides == ("weight_range: mse instead of minmax",)
