"""Searches whose answer's biases are corrected: where that helps, and only there."""

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
from mpq.network.metric import KL
from mpq.workflows.bias_correction import corrected
from mpq.workflows.method import Method
from tests.workflows.networks import Net, batches
from tests.workflows.shifted import Shifted, vectors


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Shifted().eval()


def task(model: nn.Module, data: Any = vectors, **options: Any) -> mpq.Task:
    given = {"candidates": ["w2"], "rounding": "nearest", **options}
    return mpq.Task(model, data, bias_correction=True, **given)


def search(asked: mpq.Task, **options: Any) -> mpq.SearchResult:
    return mpq.search(asked, {"effective_bits": 32}, sensitivity="weight-error", **options)


@pytest.mark.parametrize("options", [{}, {"rounding": "gptq", "sequential_rounding": True}])
def test_an_answer_is_corrected_where_that_helps(
    net: nn.Module, tmp_path: Path, options: dict[str, Any]
) -> None:
    """It is measured with its biases; what is saved says so, and gives the same network."""
    asked = task(net, **options)
    plain = search(replace(asked, bias_correction=False))

    found = search(asked)

    told = found.provenance.bias_correction
    assert plain.provenance.bias_correction is None
    assert told is not None
    if not options:  # codes that fit the examples leave less of a mean error
        assert told.is_kept
    if told.is_kept:
        assert told.loss is not None
        assert told.loss_before is not None
        assert told.loss < told.loss_before
        # A quarter of three quarters of 128; or all of these, where a quarter did not tell.
        assert told.num_examples in (24, 96)
        assert set(told.corrected) == {"hidden", "head"}
        assert found.measured.divergence < plain.measured.divergence
        assert found.assignment.metadata.measured_loss == found.measured.divergence
    assert found.assignment.precisions == plain.assignment.precisions
    held_out = mpq.Calibration.of(vectors).split(0.25)[1]
    again = mpq.evaluate(net, found.assignment, held_out)["quantized"]
    assert again.divergence == pytest.approx(found.measured.divergence, rel=1e-6)
    found.save(tmp_path)
    loaded = mpq.load(tmp_path)
    assert loaded.provenance == found.provenance
    assert loaded.assignment == found.assignment


def test_what_does_not_help_is_left(net: nn.Module) -> None:
    """Every quarter of the examples lies on the other side of 0 than one of the others."""
    one, other = 3 * torch.randn(2, 24, generator=torch.Generator().manual_seed(2))
    shifts = (one, -one, other, -other)
    batches = [x - 2 + shifts[i // 2] for i, x in enumerate(vectors())]
    result = search(replace(task(net, batches, held_out=vectors(2)), bias_correction=False))

    assignment, told = corrected(net, result.assignment, mpq.Calibration(batches), KL)

    assert not told.is_kept
    assert told.why == "unseen examples do not lose less by it, beyond chance"
    assert assignment is result.assignment
    assert told.loss is not None
    assert told.loss_before is not None
    (sentence,) = told.sentences("nats")
    assert sentence.startswith("bias correction: not kept: unseen examples do not lose less by it")


def test_an_objective_that_it_would_break_keeps_the_answer(
    net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit on the measured loss counts, whatever the trial says."""
    kept = search(task(net))
    monkeypatch.setattr(Method, "keeps", lambda *_: False)

    found = search(task(net))

    told, before = found.provenance.bias_correction, kept.provenance.bias_correction
    assert told is not None
    assert before is not None
    assert before.is_kept
    assert not told.is_kept
    assert "does not keep the objective's limit" in told.why
    assert found.assignment.tuned is None


def test_networks_without_biases_and_single_examples_say_so(net: nn.Module) -> None:
    """No trial is made."""
    bare = nn.Sequential(nn.Linear(24, 8, bias=False), nn.ReLU(), nn.Linear(8, 5, bias=False))

    found = search(task(bare.eval())).provenance.bias_correction
    result = search(replace(task(net), bias_correction=False))
    single = mpq.Calibration([vectors()[0][:1]])
    _, alone = corrected(net, result.assignment, single, KL)

    assert found is not None
    assert (found.is_kept, found.num_examples) == (False, 0)
    assert found.why == "no layer has a bias that can be corrected"
    assert set(found.left) == {"0", "2"}
    assert alone.why.startswith("there is a single calibration example")


def test_convolutions_with_folded_batch_norm(tmp_path: Path) -> None:
    """The BatchNorm's bias holds what the folded convolution's is to be; other files refuse it."""
    torch.manual_seed(0)
    model = Net().eval()
    asked = mpq.Task(
        model, lambda: batches(8), candidates=["w2"], rounding="nearest", bias_correction=True
    )

    found = mpq.search(asked, {"effective_bits": 32}, sensitivity="weight-error")

    told = found.provenance.bias_correction
    assert told is not None
    assert told.is_kept
    assert found.assignment.tuned is not None
    assert "norm.bias" in found.assignment.tuned.by_name
    found.save(tmp_path)
    with torch.no_grad():
        model.norm.bias.add_(1)
    with pytest.raises(InputError, match="belongs to another network"):
        mpq.quantize(model, mpq.Assignment.load(tmp_path / "assignment.json"))


@pytest.mark.parametrize("verb", ["compare", "frontier"])
def test_verbs_of_many_answers_refuse_it(net: nn.Module, verb: str) -> None:
    """Biases are corrected for one."""
    asked: dict[str, Callable[[], object]] = {
        "compare": lambda: mpq.compare(task(net), ["effective_bits=32"]),
        "frontier": lambda: mpq.frontier(task(net), "weight_bytes"),
    }

    with pytest.raises(InputError, match="leave out bias_correction"):
        asked[verb]()


def test_the_command_line(tmp_path: Path) -> None:
    """The flag reaches the run, whose end says what came of it."""
    options = ("--precisions", "w2,w3", "--limit", "effective_bits=2.5", "--points", "2")
    fast = ("--sensitivity", "weight-error", "--weight-range", "minmax", "--rounding", "nearest")
    run = ["search", *options, *fast, "--bias-correction", "--output", str(tmp_path)]

    done = CliRunner().invoke(app, run)

    assert done.exit_code == 0, done.output
    assert "bias correction: " in " ".join(done.output.split())
    made = json.loads((tmp_path / "result.json").read_text())["provenance"]
    assert made["bias_correction"]["num_examples"] > 0
