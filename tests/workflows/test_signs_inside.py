"""Parts of layers in 1 bit: searched, counted, saved, evaluated, exported, refused."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import mpq
from mpq.backends.c.target import C
from mpq.errors import PrecisionError
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.problem.split import Split
from mpq.quantization.precision import Precision
from mpq.rounding.column_losses import column_losses
from mpq.workflows.coupled_rows import shares_of_inputs
from mpq.workflows.setup import Prepared
from mpq.workflows.shown_examples import Shown
from tests.workflows.divided import network
from tests.workflows.networks import batches

CHANNELS = ["wbinary", "w2", "w3", "w4", "w8"]
GROUPS = [f"{text}g4" for text in CHANNELS]


@cache
def searched(split: str, rounding: str) -> mpq.SearchResult:
    candidates = GROUPS if split == "groups" else CHANNELS
    task = mpq.Task(
        network(), batches(6), batches(8)[6:], candidates=candidates, rounding=rounding, split=split
    )
    limit = "0.8x:w3g4" if split == "groups" else "0.8x:w3"
    # Parts stand whatever held-out examples say: what is asked is how they are kept.
    return mpq.search(task, {"weight_bytes": limit}, safeguard=False)


CASES = [("channels", "gptq"), ("columns:4", "coordinate-descent"), ("groups", "gptq")]


@pytest.mark.parametrize(("split", "rounding"), CASES)
def test_what_is_saved_is_what_was_found(split: str, rounding: str, tmp_path: Path) -> None:
    """Within the bytes, read again, and evaluated to the same loss."""
    found = searched(split, rounding)

    found.save(tmp_path)

    mixed = [p.weight.channels for p in found.assignment.precisions.values() if p.weight.channels]
    assert any(number.name == "binary" for each in mixed for number in each.numbers)
    (budget,) = found.problem.budgets
    assert found.comparison("result").costs["weight_bytes"] <= budget.limit
    assignment = mpq.Assignment.load(tmp_path)
    assert assignment == found.assignment
    lost = mpq.evaluate(network(), assignment, batches(8)[6:])["quantized"].divergence
    assert lost == pytest.approx(found.measured.divergence, rel=1e-6)


def test_signs_are_priced_by_their_errors() -> None:
    """A column loses its squared errors to nearest, each times what an error of it counts."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4)).eval()
    data = [torch.randn(16, 6) * torch.tensor([0.5, 2.0, 1.0, 3.0, 0.1, 1.5]) for _ in range(2)]
    task = mpq.Task(net, data, data, candidates=["wbinary", "w4"], rounding="gptq")
    prepared = Prepared.of(task)
    (moments,) = Shown.all_of(prepared.asked, 0, None).moments()

    (found,) = shares_of_inputs(
        prepared, Split("columns", 2), {"0": np.ones((4, 2))}, {"0": 2}
    ).values()

    w = net.get_parameter("0.weight").detach().double().numpy()
    errors = (w - np.sign(w) * np.abs(w).mean(axis=1, keepdims=True)) ** 2
    lost = (errors * column_losses(moments.values["0"]).numpy()).reshape(4, 3, 2).sum(axis=2)
    expected = (lost / lost.sum(axis=1, keepdims=True)).sum(axis=0)
    column = list(map(str, prepared.asked.candidates)).index("wbinarya32")
    np.testing.assert_allclose(found[:, column], expected, rtol=1e-5)


def test_c_refuses_signs() -> None:
    """Its kernels read integers: named, with what to do."""
    layer, target = AssignedLayer("0", "linear", (2, 4), Precision.parse("w[1,8]:01a8")), C()

    with pytest.raises(PrecisionError, match="channels of 1 bit are signs.*--channels widen"):
        target.check([layer])


@pytest.mark.parametrize(("text", "expected"), [("w[1,4]:01a32", [1, 4])])
def test_readers_without_mpq_are_told(text: str, expected: list[int], tmp_path: Path) -> None:
    """Bits of every channel stand in the file."""
    layer = AssignedLayer("0", "linear", (2, 4), Precision.parse(text))
    Assignment((layer,)).save(tmp_path)

    assert f'"channel_bits": {expected}' in " ".join(
        (tmp_path / "assignment.json").read_text().split()
    ).replace("[ ", "[").replace(" ]", "]")
