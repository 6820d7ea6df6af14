"""What every recipe promises: values that parts can be built from, sources, and a run by name."""

import ast
import json
import re
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import mpq
from mpq import demo
from mpq.cli.__main__ import app
from mpq.cli.task_options import demo_goal
from mpq.errors import InputError, UnknownNameError
from mpq.problem.split import Split
from mpq.quantization.ranges import RANGE_METHODS
from mpq.recipes import NOT_STATED, RECIPES, Choice, Paper, Recipe, recipe_of
from tests.recipes.cases import DEMO, NETWORKS, REPLACED
from tests.recipes.reference import data, tiny

ROOT = Path(__file__).resolve().parents[2]
FEW_PROBES = "hessian-trace:num_probes=2,matrix=hessian,loss=cross-entropy,inputs=false"


def test_references_are_short() -> None:
    """What finds the same bits without mpq is of 30 lines at most, which a person can check."""
    long = [
        (file.name, each.name)
        for file in Path(__file__).parent.glob("*.py")
        for each in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(each, ast.FunctionDef)
        and not each.name.startswith("test_")
        and (each.end_lineno or 0) - each.lineno >= 30
    ]

    assert long == []


def call(*arguments: str | Path) -> Result:
    """One command, which must succeed."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def few_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch of 16 of the demo's examples."""
    for name in ("calibration", "held_out"):
        images, labels = next(getattr(demo, name)())
        monkeypatch.setattr(demo, name, partial(iter, [(images[:16], labels[:16])]))


def test_exceptions_of_the_contract_are_recipes() -> None:
    """All others run as they are, also those to come."""
    assert {*REPLACED, *NETWORKS} <= set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda x: x.name)
def test_its_parts_can_be_built(recipe: Recipe) -> None:
    """Estimator, solver, rounding, ranges, tuning, source and candidates are ours."""
    assert mpq.ESTIMATORS.build(recipe.sensitivity)
    assert mpq.SOLVERS.build(recipe.solver)
    assert mpq.ROUNDINGS.build(recipe.rounding)
    assert RANGE_METHODS.build(recipe.weight_range)
    assert RANGE_METHODS.build(recipe.activation_range)
    assert all(map(mpq.Precision.parse, recipe.candidates))
    assert not recipe.kv_cache or mpq.KVCache(1, recipe.kv_cache)
    assert all(mpq.Precision.parse(x) for _, some in recipe.allow for x in some)
    assert recipe.tune is None or mpq.TUNINGS.build(recipe.tune)
    assert f"--split {Split.parse(recipe.split) or 'none'}" in recipe.command
    assert not recipe.source or mpq.DATA_SOURCES.build(recipe.source)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda x: x.name)
def test_it_says_where_it_is_from(recipe: Recipe) -> None:
    """A paper with a number, and a source for every choice that is not ours."""
    chosen = [choice.of for choice in recipe.choices]

    assert re.fullmatch(r"\d{4}\.\d{5}", recipe.paper.arxiv)
    assert {"estimator", "candidates", "solver"} <= set(chosen)
    assert len(set(chosen)) == len(chosen)
    assert all(choice.taken and choice.source for choice in recipe.choices)
    assert all(text.endswith(".") for text in recipe.departures)


SOURCES = r"not stated|the (paper|paper of .+|abstract|published code)([',; ].+)?"
NOT_LAST = {"a", "an", "and", "but", "from", "or", "than", "that", "the", "with"}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda x: x.name)
def test_its_texts_are_whole(recipe: Recipe) -> None:
    """Sentences, sources that name what they are of, and no file that only a checkout has."""
    sentences = (*recipe.departures, *recipe.steps, *recipe.yours)
    sources = [choice.source for choice in recipe.choices]
    phrases = [recipe.summary, recipe.constraint, *sources, *(x.taken for x in recipe.choices)]
    texts = (*sentences, *phrases, recipe.formula)

    assert all(re.fullmatch(r"[A-Z-].*[^.]\.", text) for text in sentences)
    assert all(len(text.split()) >= 4 for text in sentences)
    assert [text for text in sources if not re.fullmatch(SOURCES, text)] == []
    assert "the paper" not in sources
    assert not {re.split(r"\W+", text.strip("()."))[-1] for text in texts} & NOT_LAST
    assert not any("..." in text or "  " in text for text in texts)
    assert not re.search(r"(benchmarks|tests|scripts|docs)/", " ".join(texts))


@pytest.mark.usefixtures("few_examples")
@pytest.mark.parametrize("name", list(RECIPES))
def test_it_runs_by_its_name(name: str, tmp_path: Path) -> None:
    """With its own parts but for those that are named with a reason, and both files say so."""
    _, replaced = REPLACED.get(name, ("", ()))
    words = (*NETWORKS.get(name, DEMO), *replaced)
    if name == "kvquant":
        pytest.importorskip("transformers")

    call("search", "--recipe", name, *words, "--output", tmp_path, "--points", "2", "--quiet")

    assignment, result = (
        json.loads((tmp_path / f"{part}.json").read_text()) for part in ("assignment", "result")
    )
    used = assignment["metadata"]["recipe"]
    assert (used["name"], used["version"]) == (name, RECIPES[name].version)
    assert bool(used["overrides"]) == (name in REPLACED)
    assert result["provenance"]["recipe"] == used
    assert result["safeguard"] is None
    loaded = mpq.load(tmp_path)
    assert loaded.provenance.recipe == loaded.assignment.metadata.recipe
    assert loaded.provenance.recipe is not None


@pytest.mark.usefixtures("few_examples")
def test_what_gradients_pick_is_planned_on_the_demo(tmp_path: Path) -> None:
    """With GWQ's own candidates, from the command line; nothing is written."""
    output = tmp_path / "run"

    told = call("search", "--recipe", "gwq", *DEMO, "--dry-run", "--json", "--output", output)

    phases = {phase["phase"] for phase in json.loads(told.stdout)["phases"]}
    assert {"codes of weights", "estimate", "measurements"} <= phases
    assert not output.exists()


@pytest.mark.usefixtures("few_examples")
def test_the_long_command_is_the_same(tmp_path: Path) -> None:
    """What ``--show`` prints finds the same bits without the recipe."""
    asked = (*DEMO, "--points", "2", "--sensitivity", FEW_PROBES)
    words = shlex.split(RECIPES["hawq-v3"].command)[1:]

    call("search", "--recipe", "hawq-v3", *asked, "--output", tmp_path / "a")
    # The estimator of the test's own is an override of the recipe's.
    del words[1:3]
    call(*words, *asked, "--output", tmp_path / "b")

    short, long = (mpq.Assignment.load(tmp_path / x) for x in "ab")
    assert short.precisions == long.precisions
    assert long.metadata.recipe is None
    assert '"recipe"' not in (tmp_path / "b" / "assignment.json").read_text()


@pytest.mark.usefixtures("few_examples")
def test_a_frontier_is_of_the_recipe(tmp_path: Path) -> None:
    """The answer behind it says so, and nothing takes the place of the recipe's."""
    asked = (*DEMO, "--points", "2", "--sensitivity", FEW_PROBES)

    call("frontier", "--recipe", "hawq-v3", *asked, "--output", tmp_path)

    behind = tmp_path / "frontier"
    used = json.loads((behind / "assignment.json").read_text())["metadata"]["recipe"]
    assert used["name"] == "hawq-v3"
    assert used["overrides"][0].startswith("sensitivity: hessian-trace:num_probes=2")
    assert json.loads((behind / "result.json").read_text())["safeguard"] is None


def test_what_a_frontier_cannot_have_is_left_out() -> None:
    """A setting of the recipe that is a yes has an option that says no."""
    words = ("frontier", "--recipe", "calibtip", *DEMO)

    refused = CliRunner().invoke(app, words)

    assert refused.exit_code == 2
    told = " ".join(refused.stderr.split())
    assert "recipe calibtip: a frontier has many answers" in told
    assert "--no-bias-correction" in told
    yes = {"bias_correction", "tie_blocks", "tie_inner", "kv_before_rotation"}
    help_text = CliRunner().invoke(app, ["search", "--help"]).stdout
    assert all(f"--no-{name.replace('_', '-')}" in help_text for name in yes)


NORMED = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *head).eval()

def data():
    yield torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
"""


def test_a_recipe_with_examples_of_its_own_needs_held_out_ones_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By ``--eval-data``, which says the shape; ``--data`` would take the place of its own."""
    quick = replace(recipe_of("zeroq"), source="batch-norm:steps=2,num_examples=4")
    for module in ("mpq.recipes", "mpq.workflows.follow"):
        monkeypatch.setattr(f"{module}.recipe_of", {"zeroq": quick}.__getitem__)
    file = tmp_path / "net.py"
    file.write_text(NORMED, encoding="utf-8")
    words = ("--model", f"{file}:model", "--eval-data", f"{file}:data", "--points", "2",
             "--limit", "weight_bytes=0.95x:w8a8", "--output", tmp_path)  # fmt: skip

    call("search", "--recipe", "zeroq", *words)

    used = json.loads((tmp_path / "assignment.json").read_text())["metadata"]["recipe"]
    assert used["overrides"] == []


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda x: x.name)
def test_it_is_shown(recipe: Recipe) -> None:
    """With every choice and its source, and as JSON."""
    printed = " ".join(call("recipes", "--show", recipe.name).stdout.split())
    shown = json.loads(call("recipes", "--show", recipe.name, "--json").stdout)

    assert recipe.command in printed
    assert all(departure in printed for departure in recipe.departures)
    assert [x["source"] for x in shown["choices"]] == [x.source for x in recipe.choices]
    assert recipe.name in call("recipes").stdout
    assert f"`{recipe.name}`" in (ROOT / "docs" / "recipes.md").read_text()


def test_what_is_asked_for_stands() -> None:
    """In Python what is not as by default; the result names it."""
    task = mpq.Task(tiny(), data, data, candidates=["w3", "w6"])

    found = mpq.search(
        task, {"weight_bytes": "0.9x:w6"}, recipe="hawq-v3", sensitivity="weight-error",
        keep=["find_ties", "ends"],
    )  # fmt: skip

    used = found.provenance.recipe
    assert used is not None
    assert found.provenance.estimator == "weight-error"
    assert [text.partition(":")[0] for text in used.overrides] == [
        "sensitivity", "candidates", "ends",
    ]  # fmt: skip
    assert used.overrides[1] == "candidates: w3a32,w6a32 instead of w4sdyadica4,w8sdyadica8"
    assert "recipe hawq-v3, version 1, but for sensitivity: weight-error instead" in used.sentence


@pytest.mark.usefixtures("few_examples")
def test_an_option_that_is_written_out_stands(tmp_path: Path) -> None:
    """Also where it says what would be done without a recipe."""
    asked = (*DEMO, "--points", "2", "--output", tmp_path)
    cheap = ("--sensitivity", "weight-error", "--weight-range", "mse")

    printed = call("search", "--recipe", "hawq-v3", *asked, *cheap).stdout

    found = mpq.load(tmp_path)
    assert found.assignment.weight_range == "mse"
    assert found.provenance.recipe is not None
    assert "weight_range: mse instead of minmax" in found.provenance.recipe.overrides
    assert "recipe hawq-v3, version 1, but for" in " ".join(printed.split())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"recipe": "hawq-v9"}, "hawq-v9"),
        ({"keep": ["rounding"]}, "give a recipe"),
        ({"recipe": "hawq-v3", "keep": ["colour"]}, "colour"),
    ],
)
def test_what_cannot_be_followed(how: dict[str, object], message: str) -> None:
    """Names that are none, and settings to keep without a recipe."""
    with pytest.raises(InputError, match=message):
        mpq.search(mpq.Task(tiny(), data), ["effective_bits=5"], **how)  # type: ignore[arg-type]


def test_what_does_not_fit_is_the_recipes() -> None:
    """A device without its candidates: the message says where these are from, and what to do."""
    task = mpq.Task(tiny(), data, device="cortex-m7")

    with pytest.raises(InputError, match=r"recipe hawq: cortex-m7 runs no layer at w3a4.*--precis"):
        mpq.search(task, ["bit_operations=4000"], recipe="hawq")


@pytest.mark.parametrize("split", ["none", "channels:2"])
def test_parts_of_layers_are_settled_too(split: str) -> None:
    """No held-out examples take the recipe's parts away; what is asked otherwise stands."""
    recipe = replace(
        recipe_of("layer-wise-quantization"), split="channels", tie_blocks=False,
        sensitivity="weight-error", solver="ilp", candidates=("w2a8", "w4a8"),
    )  # fmt: skip
    task = mpq.Task(tiny(), data, data, split=split)

    found = mpq.search(task, {"bit_operations": "0.8x:w4a8"}, recipe=recipe)

    mixed = [p.weight.channels for p in found.assignment.precisions.values()]
    blocks = {each.block for each in mixed if each is not None}
    assert blocks == ({1} if split == "none" else {2})
    assert found.safeguard is None
    used = found.provenance.recipe
    assert used is not None
    said = () if split == "none" else ("split: channels:2 instead of channels",)
    assert used.overrides == said


def test_time_does_not_go_with_a_recipe() -> None:
    """Which has settings of its own that would be given up."""
    ran = CliRunner().invoke(app, ["search", "--recipe", "hawq-v3", "--time", "1min"])

    assert ran.exit_code == 2
    assert "leave one of --time and --recipe out" in " ".join(ran.stderr.split())


def test_a_recipe_has_a_version_and_choices() -> None:
    """Without, nobody could tell two of a name apart, or what is ours."""
    paper = Paper("A", 2020, "B", "2001.00001")
    with pytest.raises(InputError, match="version from 1"):
        Recipe("x", 0, "", paper, "", "", "", ("w4",), "", (Choice("a", "b", NOT_STATED),))
    with pytest.raises(UnknownNameError, match="hawq-v3"):
        recipe_of("hawq-3")


def test_settings_leave_the_model_as_it_is() -> None:
    """A recipe changes the task, and not what it holds."""
    net = tiny()
    before = {name: x.clone() for name, x in net.state_dict().items()}

    mpq.search(mpq.Task(net, data, data), ["weight_bytes=1KiB"], recipe="hawq-v3")

    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())


@pytest.mark.usefixtures("few_examples")
def test_the_built_in_network_does_not_bring_its_device(tmp_path: Path) -> None:
    """It runs no 16 bits; the command of the docs has neither a device nor a limit."""
    quick = ("--sensitivity", "augmented-hessian:num_probes=1", "--precisions", "w4a16,w8a16")
    few = ("--include", "stem.conv", "--include", "head", "--points", "2", "--output", tmp_path)
    goal = ("--minimize", "weight_bytes", "--max-accuracy-drop", "0.5")

    call("search", "--recipe", "augmenting-hessians", *goal, *quick, *few)

    assert mpq.load(tmp_path).provenance.device is None
    assert demo_goal("hawq-v3") == (None, ["weight_bytes=60KiB"])
