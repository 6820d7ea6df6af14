"""What does not fit a network is told with the recipe's name, and with what of it does not fit."""

from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import mpq
from mpq.cli.__main__ import app
from mpq.errors import (
    DataError,
    InfeasibleError,
    InputError,
    ModelError,
    MpqError,
    PrecisionError,
    UnknownNameError,
)
from mpq.workflows.first_batch import FirstBatch
from mpq.workflows.follow import Way, follow
from mpq.workflows.plan import plan
from mpq.workflows.setup import Prepared
from tests.recipes.reference import data, tiny

UNLABELLED = [x for x, _ in data()]
LIMIT = {"weight_bytes": "0.7x:w8"}


@pytest.mark.parametrize(
    ("recipe", "given", "kind", "told"),
    [
        ("hawq-v2", {}, DataError, r"targets.*has --sensitivity hessian-trace"),
        ("zeroq", {}, ModelError, r"BatchNorm.*has --data batch-norm"),
        ("mixdq", {}, InputError, r"no layer of this network.*has --sensitivity 'decoupled"),
        ("comet", {"candidates": ["w4a4"]}, InputError, r"has --split activations:128: what you"),
        ("lq-lora", {}, PrecisionError, r"a rank of 64.*has --precisions wnf3g16sdq"),
        ("squeezellm", {}, InfeasibleError, r"too much.*has --precisions .* --tie '\*': what you"),
        (
            "hawq-v3", {"candidates": ["w2a8"]}, InfeasibleError,
            r"too much.*; the recipe has --ends w8sdyadica8: what you give yourself goes first",
        ),
        ("kvquant", {}, InputError, r"say for how many tokens"),
        (
            "kvquant", {"kv_cache": mpq.KVCache(8)}, ModelError,
            r"no attention.*has --kv-cache .*: what you",
        ),
        ("hawq", {"device": "cortex-m7"}, InputError, r"runs no layer at w3a4.*has --precisions"),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)  # fmt: skip
def test_it_says_what_of_the_recipe_does_not_fit(
    recipe: str, given: dict[str, Any], kind: type[MpqError], told: str
) -> None:
    """By the option that goes before it; the class of the error stays."""
    task = mpq.Task(tiny(), UNLABELLED, UNLABELLED, **given)

    with pytest.raises(kind, match=rf"recipe {recipe}(:| is).*{told}"):
        mpq.search(task, LIMIT, recipe=recipe)


@pytest.mark.parametrize(
    ("given", "kind", "told"),
    [
        ({"model": tiny().train()}, ModelError, r"call model.eval\(\) first"),
        ({"rules": mpq.Rules(fix={"nine": "w4"})}, UnknownNameError, r"no layer for fix"),
    ],
)
def test_what_is_the_users_is_not_said_of_the_recipe(
    given: dict[str, Any], kind: type[MpqError], told: str
) -> None:
    """The recipe is named, and none of its settings is blamed."""
    task = mpq.Task(**{"model": tiny(), "calibration": data, **given})

    with pytest.raises(kind, match=rf"recipe hawq-v2: .*{told}") as raised:
        mpq.search(task, LIMIT, recipe="hawq-v2")

    assert "the recipe has" not in str(raised.value)


def test_without_a_recipe_errors_are_as_they_were() -> None:
    """Nobody is told of recipes who asked for none."""
    with pytest.raises(InfeasibleError) as raised:
        mpq.search(mpq.Task(tiny(), data), {"weight_bytes": 1})

    assert str(raised.value).startswith("infeasible: ")


@pytest.mark.parametrize("command", ["search", "frontier", "search --dry-run"])
def test_commands_name_it(command: str) -> None:
    """All that take a recipe."""
    words = (*command.split(), "--recipe", "squeezellm", "--limit", "weight_bytes=1B")

    ran = CliRunner().invoke(app, words)

    assert ran.exit_code != 0
    told = " ".join(ran.stderr.split())
    assert "recipe squeezellm: infeasible" in told
    assert "the recipe has --precisions" in told


def test_python_has_a_frontier_of_a_recipe() -> None:
    """The same points as by its settings, without the safeguard of a search."""
    task = mpq.Task(tiny(), data, data, candidates=["w4a8", "w8a8"])

    found = mpq.frontier(
        task, num_points=3, recipe="hawq-v2", sensitivity="weight-error", keep=["rounding"]
    )

    plain = mpq.Task(
        tiny(), data, data, candidates=["w4a8", "w8a8"], ranges=mpq.Ranges("minmax", "minmax")
    )
    expected = mpq.frontier(plain, num_points=3, sensitivity="weight-error", solver="ilp")
    assert [x.precisions for x in found.points] == [x.precisions for x in expected.points]
    with pytest.raises(InfeasibleError, match=r"recipe hawq-v2: infeasible"):
        mpq.frontier(task, limits={"weight_bytes": 1}, recipe="hawq-v2")


@pytest.mark.parametrize("name", ["gwq", "squeezellm"])
def test_what_gradients_pick_is_planned_without_them(name: str) -> None:
    """No gradient is known when a search is planned: of a large network, or on being asked."""
    task = mpq.Task(tiny(), data, data)

    told = plan(task, {"effective_bits": 30}, recipe=name)
    prepared = Prepared.of(follow(name, Way(task)).task)
    seconds = FirstBatch(prepared).held_out_s

    assert {"codes of weights", "measurements"} <= {phase.name for phase in told.phases}
    assert seconds > 0
    layer = prepared.network.module.get_submodule("0")
    with pytest.raises(InputError, match="a sparse branch by gradients"):
        prepared.nearest.weight("0", layer, prepared.candidates[0].weight)


def test_a_measured_frontier_is_the_recipes_too() -> None:
    """Uniform precisions stand beside its points, and take the place of none that loses more."""
    task = mpq.Task(tiny(), data, data)

    predicted = mpq.frontier(task, num_points=6, recipe="hawq-v2")
    measured = mpq.frontier(task, num_points=6, recipe="hawq-v2", measure=True)

    assert [x.precisions for x in measured.points] == [x.precisions for x in predicted.points]
    assert {x.label for x in measured.points} == {"frontier"}
    plain = mpq.frontier(task, num_points=6, sensitivity="weight-error", measure=True)
    assert any(x.label.startswith("frontier (uniform") for x in plain.points)


def test_the_model_is_left_as_it_was() -> None:
    """Also after an error in the middle."""
    net = tiny()
    before = {name: x.clone() for name, x in net.state_dict().items()}

    with pytest.raises(DataError):
        mpq.search(mpq.Task(net, UNLABELLED), LIMIT, recipe="hawq-v2")

    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())
