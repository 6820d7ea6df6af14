"""Searches whose layers read blocks of different bits."""

from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import mpq
from mpq.cli.__main__ import app
from mpq.errors import InputError, PrecisionError
from mpq.sensitivity.passes.block_prices import block_prices
from tests.workflows.divided import Shared, examples
from tests.workflows.networks import Net, batches

CANDIDATES = ["w8a4dg4", "w8a8dg4"]
LIMIT = {"bit_operations": "0.65x:w8a8dg4"}


def task(split: str = "activations:4", **others: object) -> mpq.Task:
    return mpq.Task(
        Shared(), examples(), examples(6)[4:], candidates=CANDIDATES, rounding="nearest",
        split=split, **others,  # type: ignore[arg-type]
    )  # fmt: skip


@cache
def searched(split: str = "activations:4") -> mpq.SearchResult:
    return mpq.search(task(split), LIMIT)


def test_blocks_within_the_same_bit_operations() -> None:
    """They lose less than whole layers; the answer is the least of all that there are."""
    found, whole = searched(), searched("none")

    reads = {name: p.activation for name, p in found.assignment.precisions.items()}
    assert reads["left"].channels is not None
    assert reads["left"] == reads["right"]
    assert found.measured.divergence < whole.measured.divergence
    (budget,) = found.problem.budgets
    used = found.comparison("result").costs["bit_operations_bitops"]
    assert used == pytest.approx(budget.used(found.columns))
    assert used <= budget.limit
    macs = {"left": 192, "right": 192, "head": 48}
    assert used == sum(8 * macs[name] * x.mean_bits for name, x in reads.items())


def test_the_answer_is_the_least_of_all() -> None:
    """Of every choice of bits for the seven blocks, two layers' being tied."""
    problem, columns = searched().problem, searched().columns

    (table,) = problem.budgets[0].tables
    rows = np.arange(len(columns))
    losses = []
    for shared in product((0, 1), repeat=4):
        for own in product((0, 1), repeat=3):
            tried = np.array([*shared, *shared, *own])
            if table.values[rows, tried].sum() <= problem.budgets[0].limit:
                losses.append(problem.loss.values[rows, tried].sum())
    assert problem.loss.values[rows, columns].sum() == pytest.approx(min(losses))


def test_what_is_saved_is_what_was_found(tmp_path: Path) -> None:
    """Read again in full, and evaluated to the same loss."""
    found = searched()

    found.save(tmp_path)

    again, assignment = mpq.load(tmp_path), mpq.Assignment.load(tmp_path)
    assert assignment == again.assignment == found.assignment
    assert ("left", "right") in assignment.ties
    assert again.problem.precisions_of(again.columns) == found.assignment.precisions
    lost = mpq.evaluate(Shared(), assignment, examples(6)[4:])["quantized"].divergence
    assert lost == pytest.approx(found.measured.divergence, rel=1e-6)
    points = again.frontier(num_points=3).points
    assert any(p.activation.channels is not None for x in points for p in x.precisions.values())


def test_no_target_has_such_kernels(tmp_path: Path) -> None:
    """Neither for bits of blocks nor for their scales."""
    whole = searched("none").assignment

    with pytest.raises(PrecisionError, match="inputs of different bits"):
        mpq.export(searched().assignment, tmp_path / "a", "onnx-qdq", Shared(), examples())
    with pytest.raises(PrecisionError, match="a scale for every token and block"):
        mpq.export(whole, tmp_path / "b", "onnx-qdq", Shared(), examples())


def test_convolutions_read_blocks() -> None:
    """A grouped one, too."""
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        net.conv.weight[4:] *= 8
    asked = mpq.Task(
        net, batches(2), candidates=CANDIDATES, rounding="nearest", split="activations:4"
    )

    found = mpq.search(asked, {"bit_operations": "0.55x:w8a8dg4"}, safeguard=False)

    blocks = [p.activation.channels for p in found.assignment.precisions.values()]
    assert any(x is not None and x.num_channels == 8 for x in blocks)


@pytest.mark.parametrize(
    ("changed", "limits", "match"),
    [
        ({"split": "activations"}, LIMIT, "activations:128"),
        ({"split": "activations:6"}, LIMIT, "activations:4"),
        ({"candidates": ["w4a8", "w8a8"]}, LIMIT, "such as w4a4dg4 and w4a8dg4"),
        ({"candidates": ["w8a[4,8]dg4:16/4x0010"]}, LIMIT, "a search finds with split"),
        ({"to": "onnx-qdq"}, {"weight_bytes": "1x:w8"}, "does not go with to=onnx-qdq"),
        ({"activations": "all"}, LIMIT, "every block of input channels"),
        ({}, {"latency": "1ms"}, "no device has a kernel"),
        ({}, {"peak_ram": "1KiB"}, "peak_ram is not known"),
    ],
)
def test_what_does_not_go_with_blocks(
    changed: dict[str, object], limits: dict[str, str], match: str
) -> None:
    """Refused before anything runs."""
    given = {"candidates": CANDIDATES, "split": "activations:4"} | changed
    with pytest.raises(InputError, match=match):
        mpq.search(mpq.Task(Shared(), examples(), **given), limits)  # type: ignore[arg-type]


def test_the_command_line(tmp_path: Path) -> None:
    """Its answer is the same, and evaluates."""
    file = tmp_path / "net.py"
    file.write_text("from tests.workflows.divided import Shared as model, examples as data\n")
    words = ["search", "--model", f"{file}:model", "--data", f"{file}:data", "--quiet"]
    words += ["--eval-data", "tests.workflows.test_activation_blocks:unseen"]
    words += ["--precisions", ",".join(CANDIDATES), "--split", "activations:4"]
    words += ["--rounding", "nearest", "--limit", "bit_operations=0.65x:w8a8dg4"]

    done = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "run")])

    assert done.exit_code == 0, done.output
    found = mpq.Assignment.load(tmp_path / "run")
    assert found.precisions == searched().assignment.precisions


def unseen() -> list[Tensor]:
    return examples(6)[4:]


def test_a_layer_whose_blocks_have_no_price_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equal prices the fewest bits would be free."""

    def without_head(*asked: Any) -> dict[str, Any]:
        return {name: found for name, found in block_prices(*asked).items() if name != "head"}

    monkeypatch.setattr("mpq.workflows.activation_blocks.block_prices", without_head)

    found = mpq.search(task(), {"bit_operations": "0.75x:w8a8dg4"})

    reads = {name: p.activation for name, p in found.assignment.precisions.items()}
    assert reads["left"].channels is not None
    assert reads["head"].channels is None
