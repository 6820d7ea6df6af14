"""Answers whose ranges are chosen again, for what layers read in the network as it is quantized."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import mpq
from mpq.cli.__main__ import app
from mpq.errors import InputError
from mpq.workflows.defaults import ESTIMATOR, SOLVER
from mpq.workflows.finish import finished
from mpq.workflows.method import Method
from mpq.workflows.recalibration import NOTHING, SINGLE, Recalibration
from mpq.workflows.search import searched

X = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
X[:, 0] = 0
LIMIT = {"weight_bytes": 10_000}


def growing_net() -> nn.Module:
    """To 2 bits by ``minmax`` two weights nearly double: .55 becomes the 1 of another input.

    That input is 0, so that all that the third layer reads is 3.3 times as large, and nothing
    behind the normalization differs, unless it was cut off.
    """
    torch.manual_seed(0)
    growing = [nn.Linear(16, 16, bias=False) for _ in range(2)]
    for layer in growing:
        with torch.no_grad():
            layer.weight.copy_(0.55 * torch.eye(16))
            layer.weight[:, 0] = 1
    third, norm = nn.Linear(16, 16, bias=False), nn.LayerNorm(16)
    parts = (growing[0], nn.ReLU(), growing[1], nn.ReLU(), third, norm, nn.Linear(16, 4))
    return nn.Sequential(*parts).eval()


def task(**given: Any) -> mpq.Task:
    """The first layers in 2 bits, whose weights change what the next one reads."""
    given = {
        "candidates": ["w8a4"],
        "rules": mpq.Rules(fix={"0": "w2a8", "2": "w2"}),
        "rounding": "nearest",
        "ranges": mpq.Ranges("minmax", "mse"),
        "recalibrate": True,
        **given,
    }
    return mpq.Task(growing_net(), [X[:96], X[96:192]], [X[192:]], **given)


def test_ranges_follow_the_quantized_network(tmp_path: Path) -> None:
    """The loss on held-out examples falls; what was kept is saved, loaded and computed with."""
    plain, again = (mpq.search(task(recalibrate=r), LIMIT) for r in (False, True))
    again.save(tmp_path)

    record = again.provenance.recalibration
    assert record is not None
    assert record.is_kept
    assert record.num_examples == 48
    before, after = (r.assignment.metadata.measured_loss for r in (plain, again))
    assert before is not None
    assert after is not None
    assert after < before
    assert plain.provenance.recalibration is None
    ends = [[x.activation_range for x in r.assignment.layers] for r in (plain, again)]
    assert ends[0][0] == ends[1][0], "what the first layer reads is not quantized"
    assert ends[0][2] != ends[1][2]
    measured = mpq.evaluate(growing_net(), mpq.Assignment.load(tmp_path), [X[192:]])["quantized"]
    assert measured.divergence == pytest.approx(after, rel=1e-5)
    assert mpq.load(tmp_path).provenance == again.provenance


def test_new_ranges_are_those_of_what_is_read() -> None:
    """Against a network that is quantized by hand, whose inputs are observed by a plain hook."""
    ranges = mpq.Ranges("minmax", "minmax")
    result = mpq.search(task(ranges=ranges), LIMIT)
    record = result.provenance.recalibration
    assert record is not None
    if not record.is_kept:
        pytest.fail(record.why)
    plain = mpq.search(task(ranges=ranges, recalibrate=False), LIMIT)
    quantized = mpq.quantize(growing_net(), plain.assignment)
    # As it is without its input hooks at this layer: what arrives there before it is rounded.
    seen: list[torch.Tensor] = []
    third = quantized.get_submodule("4")
    third.register_forward_pre_hook(lambda _, args: seen.append(args[0]), prepend=True)

    with torch.no_grad():
        quantized(X[:192])

    found = result.assignment.layers[2].activation_range
    assert found is not None
    assert found.high == pytest.approx(float(torch.cat(seen).max()), rel=1e-6)


def test_where_it_does_not_help_nothing_changes() -> None:
    """Eight bits move nothing that a range could follow."""
    plain, asked = (
        mpq.search(task(candidates=["w8a8"], rules=mpq.Rules(), recalibrate=r), LIMIT)
        for r in (False, True)
    )

    record = asked.provenance.recalibration
    assert record is not None
    assert not record.is_kept
    assert "beyond chance" in record.why
    assert asked.assignment.layers == plain.assignment.layers


@pytest.mark.parametrize(
    ("given", "why"), [({"candidates": ["w8a8d"]}, NOTHING), ({"candidates": ["w8"]}, NOTHING)]
)
def test_without_static_ranges_there_is_nothing_to_choose(given: Any, why: str) -> None:
    record = mpq.search(task(rules=mpq.Rules(), **given), LIMIT).provenance.recalibration
    assert record == Recalibration(False, why)


def test_a_single_example_allows_no_trial() -> None:
    net = growing_net()
    asked = mpq.Task(net, [X[:1]], [X[1:]], candidates=["w2a3"], recalibrate=True)
    record = mpq.search(asked, LIMIT).provenance.recalibration
    assert record == Recalibration(False, SINGLE)


def test_ranges_that_break_an_objective_are_not_kept() -> None:
    """They are forgotten, and the answer is as it was."""
    result, session = searched(task(recalibrate=False), (), Method.of(ESTIMATOR, SOLVER, 0))
    prepared = replace(session.prepared, task=task())

    finish = finished(prepared, result.problem, result.solution, lambda _: False)

    assert finish.recalibration is not None
    assert "objective's limit" in finish.recalibration.why
    shared = prepared.quantizer
    assert prepared.own_codes.quantizer(result.assignment.precisions, shared) is shared


@pytest.mark.parametrize("verb", ["compare", "frontier"])
def test_other_verbs_refuse_it(verb: str) -> None:
    limits = ["effective_bits=4"]
    asked: dict[str, Callable[[], object]] = {
        "compare": lambda: mpq.compare(task(), limits),
        "frontier": lambda: mpq.frontier(task(), "weight_bytes", limits),
    }
    with pytest.raises(InputError, match="--recalibrate"):
        asked[verb]()


def test_the_command_line(tmp_path: Path) -> None:
    """The flag reaches the run, whose end says what came of it."""
    options = ("--precisions", "w3a4,w4a4", "--limit", "effective_bits=3.5", "--points", "2")
    fast = ("--sensitivity", "weight-error", "--weight-range", "minmax", "--rounding", "nearest")
    run = ["search", *options, *fast, "--recalibrate", "--output", str(tmp_path / "run")]

    done = CliRunner().invoke(app, run)

    assert done.exit_code == 0, done.output
    assert "recalibration: " in " ".join(done.output.split())
    made = json.loads((tmp_path / "run" / "result.json").read_text())["provenance"]
    assert made["recalibration"]["num_examples"] > 0


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            Recalibration(False, "no gain", 8, 0.2, 0.1),
            "recalibration: not kept: no gain; 8 calibration examples that a trial had not seen "
            "lose 0.2 nats by it, not 0.1",
        ),
        (
            Recalibration(True),
            "recalibration: ranges of inputs chosen again, for the network as it is quantized",
        ),
    ],
)
def test_sentences(record: Recalibration, expected: str) -> None:
    """What people are told."""
    assert record.sentence("nats") == expected
