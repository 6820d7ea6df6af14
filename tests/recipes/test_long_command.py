"""What ``mpq recipes --show`` prints is the same search, word for word, for every recipe."""

import re
import shlex
from typing import Any, Final

import pytest
from typer.testing import CliRunner

import mpq
from mpq.cli.__main__ import app
from mpq.cli.methods import MethodOptions
from mpq.recipes import RECIPES, Recipe
from mpq.workflows.follow import Way

OF_A_RULE: Final = (
    *("include", "exclude", "fixed", "allowed", "tie", "find_ties", "fold", "fixed_ends"),
    *("tie_blocks", "tie_inner"),
)
OF_A_TASK: Final = (
    *("given_precisions", "precisions", "ranges", "rounding", "sequential_rounding", "recalibrate"),
    *("transforms", "bias_correction", "tune", "split", "activations", "seed", "metric", "to"),
)
OF_A_WAY: Final = ("sensitivity", "solver", "safeguard", "refine")
OF_A_CACHE: Final = ("tokens", "precisions", "batch_size", "first", "window", "before_rotation")


def told(way: Way) -> dict[str, Any]:
    """All that a search looks at, but the network and its data."""
    task, cache = way.task, way.task.kv_cache
    groups = ((way, OF_A_WAY), (task, OF_A_TASK), (task.rules, OF_A_RULE))
    found = {name: getattr(one, name) for one, names in groups for name in names}
    found |= {"tie": tuple(task.rules.tie), "transforms": tuple(task.transforms)}
    kept = {} if cache is None else {f"cache {name}": getattr(cache, name) for name in OF_A_CACHE}
    return {**found, **kept}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda x: x.name)
def test_the_long_command_says_the_same(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same estimator, solver and settings; of a search both make the same bits of the same.

    Nothing is searched: ``test_contract.py`` runs each recipe, and one of them both ways.
    """
    found, way = list[Way](), MethodOptions.way

    def noted(options: MethodOptions, task: mpq.Task, data: str | None) -> Way:
        found.append(way(options, task, data))
        raise mpq.errors.InputError("that is enough")

    monkeypatch.setattr(MethodOptions, "way", noted)
    words = shlex.split(recipe.command)[2:]
    # Examples of a source are made of the data's shape, which no recipe knows.
    own = ["--data", recipe.source] if recipe.source else []
    assert words[len(words) - len(own) :] == own
    words = words[: len(words) - len(own)]
    given = ["--data", "mpq.demo:calibration"]
    tokens = ["--kv-tokens", "64"] if recipe.kv_cache else []
    # The limit that is named as an example.
    limit = re.findall(r"such as (--limit) (\S+)\.$", recipe.yours[0])[0]

    for how in (["--recipe", recipe.name], words):
        ran = CliRunner().invoke(app, ["search", *given, *limit, *tokens, *how])
        assert "that is enough" in ran.stderr

    short, long = found
    assert told(short) == told(long)
    assert (short.recipe, long.recipe) == (recipe, None)
