"""What the documentation says in words of committed benchmarks, held against their JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "benchmarks" / "recipes").glob("*.json"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_default_loses_least_of_all_recipes_that_were_run(path: Path) -> None:
    """docs/recipes.md: on every network, at every number of bits."""
    rows = [row for row in json.loads(path.read_text())["rows"] if "kl_nats" in row]
    ours = {row["bits"]: row["kl_nats"] for row in rows if row["recipe"] == "default"}
    others = [row for row in rows if row["recipe"] != "default"]

    assert sorted(ours) == [3, 4, 5]
    assert [row["recipe"] for row in others if row["kl_nats"] <= ours[row["bits"]]] == []


def test_prices_for_unseen_examples_have_the_documented_figures() -> None:
    """docs/rounding.md: factors of layers, and what the answers lose of what they lost before."""
    rows = {row["network"]: row for row in _read("optimism.json")["rows"]}
    page = (ROOT / "docs" / "rounding.md").read_text(encoding="utf-8")
    last, *others = rows["efficientnet_lite0"]["optimism"].values()
    after = {one["bits"]: one["after"]["ratio"] for one in rows["efficientnet_lite0"]["budgets"]}
    most = {name: max(row["optimism"].values()) for name, row in rows.items()}

    assert f"the last layer's factor is {last:.0f}" in page
    assert sum(factor > 2 for factor in others) == 8
    assert "that of eight more beyond 2" in page
    assert [f"{after[bits]:.2f}" for bits in (4, 5, 3)] == ["0.51", "0.25", "1.00"]
    assert [f"{most[name]:.1f}" for name in ("vit", "resnet20", "llama")] == ["1.9", "1.1", "1.1"]


def test_no_search_of_a_recipe_took_longer_than_is_said() -> None:
    """benchmarks/README.md: up to twelve minutes a recipe and network."""
    for path in RECIPES:
        taken = dict[str, float]()
        for row in json.loads(path.read_text())["rows"]:
            taken[row["recipe"]] = taken.get(row["recipe"], 0) + row.get("processor_seconds", 0)

        assert max(taken.values()) <= 12 * 60


def _read(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / name).read_text(encoding="utf-8"))
