"""Options of the command line: their defaults are those of the library, their groups are opened."""

import inspect
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

import mpq
from mpq.cli import requests, task_options
from mpq.cli.__main__ import app
from mpq.cli.cache_options import KVCacheOptions
from mpq.cli.step_options import StepOptions
from mpq.cli.taking import gathered, taking
from mpq.errors import InputError
from mpq.quantization.kv_cache import KVCache
from mpq.quantization.steps import Steps

# what Python calls otherwise than the command line, which is older
RENAMED = {
    "num_points": "points",
    "num_random": "random",
    "num_networks": "whole",
    "weight": "weight_range",
    "activation": "activation_range",
    "held_out": "eval_data",
    "candidates": "precisions",
}
OWN_DEFAULTS = {"folder", "journal", "name", "resource", "model", "estimators"}
"""What the command line leaves to the call, or sets as it writes files."""


def options_of(command: str) -> dict[str, Any]:
    """Name to default, of every option that a command has."""
    found = get_command(app).commands[command]  # type: ignore[attr-defined]
    return {parameter.name: parameter.default for parameter in found.params}


def defaults_of(noun: Any) -> dict[str, Any]:
    """Name to default, of a dataclass's fields or a function's parameters."""
    if is_dataclass(noun):
        return {f.name: f.default for f in fields(noun) if f.default is not MISSING}
    parameters = inspect.signature(noun).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


@pytest.mark.parametrize(
    ("command", "noun"),
    [
        ("search", mpq.Task),
        ("search", mpq.Rules),
        ("search", mpq.Ranges),
        ("search", mpq.Workload),
        ("search", mpq.Objective),
        ("search", mpq.search),
        ("frontier", mpq.frontier),
        ("compare", mpq.Task),
        ("compare", mpq.compare),
        ("profile", mpq.Ranges),
        ("profile", mpq.profile),
    ],
)
def test_defaults_are_those_of_the_library(command: str, noun: Any) -> None:
    """Every option that Python has too does the same where it is left out."""
    options = options_of(command)
    expected = {
        RENAMED.get(name, name): default
        for name, default in defaults_of(noun).items()
        if name not in OWN_DEFAULTS and RENAMED.get(name, name) in options
    }

    found = {name: options[name] for name in expected}

    assert len(expected) >= 2
    # a list that may be left out is None for typer, and empty in Python
    assert {n: x or None for n, x in found.items()} == {n: x or None for n, x in expected.items()}


@pytest.mark.parametrize(
    "group",
    [
        kind
        for module in (requests, task_options)
        for kind in vars(module).values()
        if is_dataclass(kind) and kind.__module__ == module.__name__
    ],
    ids=lambda kind: kind.__name__,
)
def test_groups_of_options_are_small(group: Any) -> None:
    """No more than ten fields; a larger one is two."""
    assert len(fields(group)) <= 10
    assert all(f.default is not f.default_factory for f in fields(group)), "one is not MISSING"
    assert get_type_hints(group)


@dataclass(frozen=True)
class Inner:
    """A group in a group."""

    depth: Annotated[int, typer.Option(help="How deep.")] = 3


@dataclass(frozen=True)
class Outer:
    """A group."""

    name: Annotated[str, typer.Option(help="What.")] = "a"
    inner: Inner = Inner()


def test_groups_become_options_of_one_command() -> None:
    """Nested or not, in the order of declaration, with a command's own parameters around them."""
    seen: list[Any] = []
    small = typer.Typer(add_completion=False)

    @small.command()
    @taking
    def run(word: str, outer: Outer, last: bool = False) -> None:
        seen.append((word, outer, last))

    ran = CliRunner().invoke(small, ["w", "--depth", "5", "--last"])

    assert ran.exit_code == 0, ran.output
    assert seen == [("w", Outer("a", Inner(5)), True)]
    assert [p.name for p in get_command(small).params] == ["word", "name", "depth", "last"]


def test_values_are_gathered_into_groups() -> None:
    """Each goes to the group that declares it."""
    assert gathered(Outer, {"name": "b", "depth": 7}) == Outer("b", Inner(7))


def test_a_cache_is_said_with_its_tokens() -> None:
    """Formats go with a length, which has formats by default; nothing of either is no cache."""
    found = KVCacheOptions(kv_cache="a8d,a4d", kv_tokens=100, kv_window=3).cache()

    assert found == KVCache(100, ["a8d", "a4d"], window=3)
    assert KVCacheOptions(kv_tokens=100).cache() == KVCache(100)
    assert KVCacheOptions().cache() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (KVCacheOptions(kv_cache="a8d"), "give both"),
        (KVCacheOptions(kv_window=3), "go with --kv-cache and --kv-tokens"),
    ],
)
def test_a_part_of_a_cache_is_refused(options: KVCacheOptions, message: str) -> None:
    """An option without effect would not be noticed."""
    with pytest.raises(InputError, match=message):
        options.cache()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (StepOptions(), None),
        (StepOptions("timestep"), Steps("timestep")),
        (StepOptions("1", 2, "0,99", False), Steps(1, 2, (0.0, 99.0), False)),
    ],
)
def test_steps_are_said_by_name_or_by_place(options: StepOptions, expected: Steps | None) -> None:
    """Digits are a place."""
    assert options.steps() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (StepOptions(step_clusters=2), "go with --step"),
        (StepOptions(step_within="0,9"), "go with --step"),
        (StepOptions(step_trial=False), "go with --step"),
        (StepOptions("t", step_within="0-9"), "first and a last one"),
        (StepOptions("time step"), "its name, such as 'timestep'"),
    ],
)
def test_a_part_of_steps_is_refused(options: StepOptions, message: str) -> None:
    """An option without effect would not be noticed."""
    with pytest.raises(InputError, match=message):
        options.steps()
