"""Searches whose layers read other bits at other steps of a diffusion."""

from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import mpq
from mpq.cli.__main__ import app
from mpq.errors import FileFormatError, InputError, PrecisionError
from mpq.problem.assignment import Assignment
from mpq.quantization.precision import Precision
from mpq.quantization.steps import Steps
from tests.denoisers import scaled, stepped_batches

DATA, FRESH = stepped_batches(96), stepped_batches(48, seed=1)
LIMIT = {"bit_operations": "0.8x:w8a8"}


def task(split: str = "steps", **given: Any) -> mpq.Task:
    """Of the network whose inputs, and errors, are larger at later steps."""
    asked = {"candidates": ["w8a8", "w8a4"], "metric": "squared-error:relative=false"}
    steps = Steps("t", 2, trial=False)
    return mpq.Task(
        scaled(),
        DATA,
        FRESH,
        **{**asked, "rounding": "nearest", "steps": steps, "split": split, **given},
    )


@cache
def searched(split: str = "steps") -> mpq.SearchResult:
    return mpq.search(task(split), LIMIT, sensitivity="sketch")


def test_rare_steps_that_lose_most_have_more_bits() -> None:
    """At the same mean bit operations less is lost than with the same bits at all steps."""
    found, alike = searched(), searched("none")

    reads = [p.activation for p in found.assignment.precisions.values()]
    mixed = [read.steps for read in reads if read.steps is not None]
    assert mixed
    assert all(x.by_cluster[0].bits < x.by_cluster[1].bits for x in mixed)
    assert found.measured.divergence < alike.measured.divergence
    (budget,) = found.problem.budgets
    used = found.comparison("result").costs["bit_operations_bitops"]
    assert used == pytest.approx(budget.used(found.columns))
    assert used <= budget.limit
    (examples,) = {x.examples for x in mixed}
    late, early = examples[1] / sum(examples), examples[0] / sum(examples)
    macs = np.array([48, 24])
    bits = [
        [x.number.bits] * 2 if x.steps is None else [n.bits for n in x.steps.by_cluster]
        for x in reads
    ]
    assert used == pytest.approx(8 * (macs @ np.array(bits) @ [early, late]))


def test_the_answer_is_the_least_of_all() -> None:
    """Of all bits of two layers at two clusters, by the same table and limit."""
    found = searched()
    problem, (budget,) = found.problem, found.problem.budgets

    every = [np.array(x) for x in product((0, 1), repeat=4)]
    rows = np.arange(4)
    losses = [problem.loss.values[rows, x].sum() for x in every if budget.used(x) <= budget.limit]
    assert problem.loss.values[rows, found.columns].sum() == pytest.approx(min(losses))


def test_prices_of_clusters_are_those_of_layers() -> None:
    """They add up to them."""
    found, alike = searched(), searched("none")

    parts = found.problem.parts
    assert parts is not None
    for column in range(2):
        sums = parts.by_layer(found.problem.loss.values[:, column])
        np.testing.assert_allclose(sums, alike.problem.loss.values[:, column], rtol=1e-6)


def test_what_is_saved_runs_as_the_network_of_each_cluster(tmp_path: Path) -> None:
    """Every example as by the assignment of its cluster alone, which is an ordinary one."""
    found = searched()
    found.save(tmp_path)

    assignment = mpq.Assignment.load(tmp_path)

    assert assignment == mpq.load(tmp_path).assignment == found.assignment
    assert assignment.steps is not None
    batch = FRESH[0]
    own = torch.tensor([assignment.steps.of(float(t)) for t in batch["t"]])
    outputs = mpq.quantize(scaled(), assignment)(batch["x"], batch["t"])
    for cluster in range(2):
        alone = assignment.of_cluster(cluster)
        assert all(p.activation.steps is None for p in alone.precisions.values())
        expected = mpq.quantize(scaled(), alone)(batch["x"], batch["t"])
        assert torch.equal(outputs[own == cluster], expected[own == cluster])
    lost = mpq.evaluate(scaled(), assignment, FRESH)["quantized"].divergence
    assert lost == pytest.approx(found.measured.divergence, rel=1e-9)


def test_inputs_that_are_found_while_running() -> None:
    """A token has a scale of its own, and still the bits of its step."""
    found = mpq.search(
        task(candidates=["w8a8d", "w8a4d"]), {"bit_operations": "0.8x:w8a8d"}, sensitivity="sketch"
    )

    mixed = [p for p in found.assignment.precisions.values() if p.activation.steps]
    assert mixed
    assert Assignment.from_json(found.assignment.to_json()) == found.assignment
    assert found.assignment.steps is not None


def test_tools_hold_one_cluster(tmp_path: Path) -> None:
    """An assignment with several is refused."""
    with pytest.raises(PrecisionError, match="one network for each"):
        mpq.export(searched().assignment, tmp_path, "onnx-qdq", scaled(), DATA)


def test_a_file_with_another_number_of_clusters_is_refused() -> None:
    """Bits and borders belong together."""
    made = searched().assignment
    text = made.to_json()
    spelled = next(str(p) for p in made.precisions.values() if p.activation.steps)
    for part in ('"step_bits": [\n     4,\n     8\n    ]',):
        assert part in text
    wrong = text.replace(spelled, spelled.replace("x01", "/1x010"))
    wrong = wrong.replace("     4,\n     8\n    ]", "     4,\n     8,\n     4\n    ]")

    with pytest.raises(FileFormatError, match="3 clusters of steps, and there are 2"):
        Assignment.from_json(wrong)


@pytest.mark.parametrize("text", ["w4a[4,8]:t64/70x10", "w4g64a[3,4,8]sd:t1/2/3x201"])
def test_what_is_written_is_read(text: str) -> None:
    """Of static and dynamic formats."""
    assert str(Precision.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("w4a4:t1/2x01", "digits of steps go with bits"),
        ("w4a[4,8]:t1/2x011", "as many codes"),
        ("w4a[4,8]:t1/2x00", "each width occurs"),
        ("w4a[4,8]:t0/2x01", "an example each"),
        ("w4a[1,8]:t1/2x01", "have integers"),
    ],
)
def test_what_contradicts_itself_is_refused(text: str, match: str) -> None:
    """With what is missing."""
    with pytest.raises(PrecisionError, match=match):
        Precision.parse(text)


@pytest.mark.parametrize(
    ("changed", "limits", "match"),
    [
        ({"steps": None}, LIMIT, "needs clusters of steps"),
        ({"steps": Steps("t", 1)}, LIMIT, "needs clusters of steps"),
        ({"candidates": ["w4a8", "w8a8"]}, LIMIT, "such as w4a4 and w4a8"),
        ({"candidates": ["w8a[4,8]:t1/2x01"]}, LIMIT, "a search finds with split"),
        ({}, {"latency": "1ms"}, "no device has a kernel"),
    ],
)
def test_what_does_not_go_with_bits_by_step(
    changed: dict[str, Any], limits: dict[str, str], match: str
) -> None:
    """Refused before anything runs."""
    with pytest.raises(InputError, match=match):
        mpq.search(task(**changed), limits)


def test_an_estimator_that_knows_no_steps() -> None:
    """The answer is that of whole layers, which is told."""
    with pytest.warns(UserWarning, match="knows nothing of steps"):
        found = mpq.search(task(), LIMIT, sensitivity="fisher")

    assert found.problem.parts is None


def test_the_command_line(tmp_path: Path) -> None:
    """Its answer is the same."""
    file = tmp_path / "net.py"
    file.write_text(
        "from tests.denoisers import scaled as model\n"
        "from tests.workflows.test_bits_by_step import DATA, FRESH\n"
        "data, fresh = lambda: DATA, lambda: FRESH\n"
    )
    words = ["search", "--model", f"{file}:model", "--data", f"{file}:data", "--quiet"]
    words += ["--eval-data", f"{file}:fresh", "--precisions", "w8a8,w8a4", "--rounding", "nearest"]
    words += ["--metric", "squared-error:relative=false", "--step", "t", "--step-clusters", "2"]
    words += ["--no-step-trial", "--split", "steps", "--sensitivity", "sketch"]

    done = CliRunner().invoke(
        app, [*words, "--limit", "bit_operations=0.8x:w8a8", "--output", str(tmp_path / "run")]
    )

    assert done.exit_code == 0, done.output
    found = mpq.Assignment.load(tmp_path / "run")
    assert found.precisions == searched().assignment.precisions
