"""The table of layers, where a network costs more than its layers: by hand."""

from io import StringIO

import numpy as np
import pytest
from rich.console import Console

import mpq
from mpq import demo
from mpq.cost_table import CostTable
from mpq.layer import Layer
from mpq.pair_cost import PairCost
from mpq.precision import Precision
from mpq.report import layer_table
from mpq.report.console import print_result

CHOICES = tuple(map(Precision.parse, ("w4a8", "fp32")))
LAYERS = tuple(Layer(n, "linear", (2, 2), 2, (2,), (2,), 2, 2, 4) for n in ("a", "b"))


def test_shares_are_of_the_whole_network() -> None:
    """3 and 4 seconds of layers, 1 besides, 2 between them: 10 in all."""
    loss = CostTable("loss", "nats", ("a", "b"), CHOICES, np.array([[1.0, 0.0], [3.0, 0.0]]))
    pair = PairCost("a", "b", np.array([[0.0, 2.0], [5.0, 0.0]]))
    values = np.array([[3.0, 9.0], [9.0, 4.0]])
    latency = CostTable("latency", "seconds", ("a", "b"), CHOICES, values, 1.0, (pair,))
    precisions = dict(zip(("a", "b"), CHOICES, strict=True))

    table = layer_table(LAYERS, precisions, [loss, latency], np.array([0, 1]))

    assert table["latency_seconds"].tolist() == [3.0, 4.0]
    assert table["latency_share"].tolist() == pytest.approx([0.3, 0.4])
    assert table["predicted_loss_share"].tolist() == [1.0, 0.0]


def test_a_network_that_costs_nothing_has_no_shares() -> None:
    """Zero of zero is shown as zero."""
    free = CostTable("loss", "nats", ("a", "b"), CHOICES, np.zeros((2, 2)))

    table = layer_table(LAYERS, dict.fromkeys("ab", CHOICES[0]), [free], np.array([0, 0]))

    assert table["predicted_loss_share"].tolist() == [0.0, 0.0]


def test_the_terminal_says_what_is_besides_the_layers() -> None:
    """Of a device's flash the code and the biases, and nothing of bytes of weights alone."""
    batches = [next(iter(demo.calibration()))[0][:32]]
    found = mpq.search(
        demo.make_net(), batches, device="cortex-m7", limits=["flash=90KiB"],
        sensitivity="weight-error",
    )  # fmt: skip
    console = Console(file=StringIO(), width=140)

    print_result(found, console)

    constant = found.cost_table("flash").constant
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert f"flash besides its layers: {constant / 1024:.4g} KiB" in lines
    assert constant == 22528 + 4 * found.testbed.network.num_unquantized
    assert not any("latency besides" in line or "between layers" in line for line in lines)
