"""Whatever a recipe settles can be given otherwise, and as it is without a recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Any, Final

import pytest
from typer.testing import CliRunner

import mpq
from mpq.cli.__main__ import app
from mpq.cli.methods import MethodOptions
from mpq.quantization.kv_cache import DEFAULT_CANDIDATES
from mpq.recipes import RECIPES, Recipe
from mpq.recipes.recipe import NEVER
from mpq.workflows.follow import Way, follow
from tests.recipes.reference import data, tiny

TOLD: Final = {
    *("name", "version", "summary", "paper", "formula", "constraint", "choices", "departures"),
    *("steps", "orders_tuning"),
}
"""Fields that tell of the recipe, and settle nothing of a search."""


@dataclass(frozen=True)
class Case:
    """A field of recipes, which the command line unsets and overrides.

    Args:
        own: What the recipe has.
        at: Where a way of searching has it.
        unset: Words that leave it as it is without a recipe.
        without: What it then is.
        other: Words that give something else.
        given: What it then is.
        setting: What ``keep`` and overrides call it, where that is not the field's name.
    """

    own: Any
    at: str
    unset: str
    without: Any
    other: str
    given: Any
    setting: str = ""


CASES: Final[Mapping[str, Case]] = {
    "sensitivity": Case(
        "weight-error", "sensitivity", "--sensitivity auto", "auto", "--sensitivity sketch",
        "sketch",
    ),
    "solver": Case("ilp", "solver", "--solver auto", "auto", "--solver greedy", "greedy"),
    "candidates": Case(
        ("w4a4", "w8a8"), "task.candidates", "--precisions default", None, "--precisions w4a8",
        ("w4a8",),
    ),
    "weight_range": Case(
        "minmax", "task.ranges.weight", "--weight-range mse", "mse", "--weight-range percentile",
        "percentile",
    ),
    "activation_range": Case(
        "percentile", "task.ranges.activation", "--activation-range loss", "loss",
        "--activation-range mse", "mse",
    ),
    "rounding": Case(
        "gptq", "task.rounding", "--rounding auto", "auto", "--rounding nearest", "nearest"
    ),
    "source": Case(
        "noise:num_examples=4", "task.calibration", "--data mpq.demo:calibration",
        mpq.demo.calibration, "--data mpq.demo:held_out", mpq.demo.held_out, "calibration",
    ),
    "transforms": Case(
        ("smooth",), "task.transforms", "--transform none", (), "--transform rotate", ("rotate",)
    ),
    "ends": Case(
        "w8a8", "task.rules.ends", "--ends none", None, "--ends w4a4", "w4a4"
    ),
    "find_ties": Case(
        False, "task.rules.find_ties", "--find-ties", True, "--no-find-ties", False
    ),
    "tie": Case(("*",), "task.rules.tie", "--tie none", (), "--tie head", ("head",)),
    "tie_blocks": Case(
        True, "task.rules.tie_blocks", "--no-tie-blocks", False, "--tie-blocks", True
    ),
    "tie_inner": Case(True, "task.rules.tie_inner", "--no-tie-inner", False, "--tie-inner", True),
    "bias_correction": Case(
        True, "task.bias_correction", "--no-bias-correction", False, "--bias-correction", True
    ),
    "tune": Case("scales", "task.tune", "--tune none", None, "--tune all", "all"),
    "split": Case(
        "channels", "task.split", "--split none", "none", "--split channels:2", "channels:2"
    ),
    "allow": Case(
        (("*", ("w4a4",)),), "task.rules.allow", "--allow none", (), "--allow head=w3a3",
        (("head", ("w3a3",)),),
    ),
    "kv_cache": Case(
        ("a4d", "a2d"), "task.kv_cache.precisions", "--kv-cache default",
        tuple(f"w32{each}" for each in DEFAULT_CANDIDATES), "--kv-cache a3d", ("w32a3d",),
    ),
    "kv_first": Case(2, "task.kv_cache.first", "--kv-first 0", 0, "--kv-first 1", 1),
    "kv_before_rotation": Case(
        True, "task.kv_cache.before_rotation", "--no-kv-before-rotation", False,
        "--kv-before-rotation", True,
    ),
}  # fmt: skip


def test_no_field_is_forgotten() -> None:
    """A new one tells something, or there is a case of it here."""
    assert {field.name for field in fields(Recipe)} == TOLD | set(CASES)


def recipe_with(field: str) -> Recipe:
    """A recipe that has no field otherwise than by default but one, and those of a cache."""
    plain = {f.name: f.default for f in fields(Recipe) if f.name in CASES}
    plain |= {"sensitivity": "auto", "solver": "auto", "candidates": ("w8a8",)}
    of_cache = {"kv_cache": ("a4d",)} if "kv_cache" in CASES[field].at else {}
    own = {field: CASES[field].own}
    return replace(RECIPES["hawq"], **{**plain, **of_cache, **own})


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> list[Way]:
    """What the command line has made of its words; nothing is searched."""
    found, way = list[Way](), MethodOptions.way

    def noted(options: MethodOptions, task: mpq.Task, data: str | None) -> Way:
        found.append(way(options, task, data))
        raise mpq.errors.InputError("that is enough")

    monkeypatch.setattr(MethodOptions, "way", noted)
    return found


def found_at(case: Case, way: Way) -> Any:
    """What a way has, in tuples and as it is written."""

    def plain(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple(map(plain, value))
        return str(value) if isinstance(value, mpq.Precision) else value

    return plain(attrgetter(case.at)(way))


def words_of(field: str) -> list[str]:
    """Of a search by the recipe."""
    tokens = ["--kv-tokens", "8"] if "kv_cache" in CASES[field].at else []
    # Held-out ones say the shape where the recipe makes its own.
    return ["search", "--recipe", "hawq", "--eval-data", "mpq.demo:held_out", *tokens]


@pytest.mark.parametrize("field", CASES)
def test_the_command_line_unsets_and_overrides(
    field: str, followed: list[Way], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the option it is the recipe's; an override is named where it is another."""
    case, recipe = CASES[field], recipe_with(field)
    for module in ("mpq.recipes", "mpq.workflows.follow"):
        monkeypatch.setattr(f"{module}.recipe_of", {"hawq": recipe}.__getitem__)

    for words in ("", case.unset, case.other):
        CliRunner().invoke(app, [*words_of(field), *words.split()])

    assert len(followed) == 3
    assert [found_at(case, way) for way in followed[1:]] == [case.without, case.given]
    named = [[x.partition(":")[0] for x in way.overrides] for way in followed]
    setting = case.setting or field
    # Of a choice of two the other one may be the recipe's own.
    assert named == [[], [setting], [] if case.given == case.own else [setting]]


@pytest.mark.parametrize("field", CASES)
def test_python_keeps_what_is_as_by_default(field: str) -> None:
    """By ``keep``; otherwise the recipe's is taken."""
    case, recipe = CASES[field], recipe_with(field)
    cache = mpq.KVCache(8) if "kv_cache" in case.at else None
    asked, setting = Way(mpq.Task(tiny(), data, data, kv_cache=cache)), case.setting or field

    kept, left = follow(recipe, asked, [setting]), follow(recipe, asked)

    assert found_at(case, kept) == found_at(case, asked)
    assert found_at(case, left) != found_at(case, asked)
    assert [x.partition(":")[0] for x in kept.overrides] == [setting]
    assert left.overrides == ()


@pytest.mark.parametrize(
    ("data", "overrides"),
    [
        ("noise:num_examples=4,shape=1x16x16", ()),
        ("noise:num_examples=8", ("calibration: noise:num_examples=8 instead of "
                                  "noise:num_examples=4",)),
    ],
)  # fmt: skip
def test_a_source_is_called_by_its_name(
    data: str, overrides: tuple[str, ...], followed: list[Way], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It made the examples, and not the user; the recipe's own with a shape is no other."""
    recipe = recipe_with("source")
    for module in ("mpq.recipes", "mpq.workflows.follow"):
        monkeypatch.setattr(f"{module}.recipe_of", {"hawq": recipe}.__getitem__)

    CliRunner().invoke(app, [*words_of("source"), "--data", data])

    assert followed[0].overrides == overrides


def test_what_no_recipe_does_is_named() -> None:
    """Asked for besides, it stands, and departs from the paper."""
    task = mpq.Task(
        tiny(), data, data, rounding="gptq", sequential_rounding=True, recalibrate=True,
        activations="all",
    )  # fmt: skip

    found = follow("hawq", Way(task, refine=2), ["rounding"])

    assert found.overrides[: len(NEVER)] == (
        "refine: 2 instead of 0",
        "sequential_rounding: True instead of False",
        "recalibrate: True instead of False",
        "activations: all instead of inputs",
    )
    assert found.refine == 2
    assert found.task.recalibrate


def test_predicates_are_called_by_name() -> None:
    """And not by where they lie in memory."""

    def of_the_head(name: str, _: object) -> bool:
        return name == "head"

    task = mpq.Task(tiny(), data, data, rules=mpq.Rules(tie=[of_the_head]))

    found = follow("squeezellm", Way(task))

    assert found.overrides[0].startswith("tie: test_predicates_are_called_by_name")
    assert "0x" not in found.overrides[0]


def test_none_goes_alone() -> None:
    """Beside a glob it could be either."""
    ran = CliRunner().invoke(app, ["search", "--tie", "none", "--tie", "head"])

    assert ran.exit_code == 2
    assert "--tie none says that there are none" in " ".join(ran.stderr.split())
