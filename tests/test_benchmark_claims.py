"""What the documentation says in words of committed benchmarks, held against their JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "benchmarks" / "recipes").glob("*.json"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_default_loses_least_of_all_recipes_with_its_formats(path: Path) -> None:
    """docs/recipes.md: on every network, at every number of bits; also among EvoPress's formats."""
    rows = [row for row in json.loads(path.read_text())["rows"] if "kl_nats" in row]
    ours = {(row["recipe"], row["bits"]): row["kl_nats"] for row in rows}
    others = [row for row in rows if row["recipe"] not in ("default", "default+groups")]

    assert sorted(bits for recipe, bits in ours if recipe == "default") == [3, 4, 5]
    for row in others:
        same = "default+groups" if row["recipe"] == "evopress" else "default"
        assert row["kl_nats"] > ours[same, row["bits"]], row


def test_formats_with_groups_lose_what_is_said() -> None:
    """docs/recipes.md: one answer of EvoPress loses less than the default, .91 of it."""
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    ratios = dict[tuple[str, str, int], float]()
    for path in RECIPES:
        rows = [row for row in json.loads(path.read_text())["rows"] if "kl_nats" in row]
        ours = {row["bits"]: row["kl_nats"] for row in rows if row["recipe"] == "default"}
        for row in rows:
            ratios[path.stem, row["recipe"], row["bits"]] = row["kl_nats"] / ours[row["bits"]]
    groups = [ratios["llama", "default+groups", bits] for bits in (3, 4, 5)]
    better = ratios["llama", "evopress", 5]

    assert sum(x < 1 for (_, recipe, _), x in ratios.items() if recipe == "evopress") == 1
    assert f"{better:.2f}" == "0.91"
    assert "loses .91 of it on the Llama at 5 bits" in page
    assert f"{groups[2] / better:.2f}" == "0.82"
    assert "loses .82 of that answer" in page
    assert [f"{min(groups):.2f}", f"{max(groups):.2f}"] == ["0.71", "0.76"]
    assert min(ratios["resnet20", "default+groups", bits] for bits in (3, 4)) > 1


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
    """benchmarks/README.md: 17 minutes a recipe and network; of whole networks in steps 45."""
    for path in RECIPES:
        taken = dict[str, float]()
        for row in json.loads(path.read_text())["rows"]:
            taken[row["recipe"]] = taken.get(row["recipe"], 0) + row.get("processor_seconds", 0)

        long = {recipe: taken.pop(recipe, 0) for recipe in ("evopress", "mptq-vit")}
        assert max(taken.values()) <= 17 * 60
        assert max(long.values()) <= 45 * 60


def _read(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / name).read_text(encoding="utf-8"))
