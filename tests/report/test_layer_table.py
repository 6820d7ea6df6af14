"""What is shown where a network costs more than its layers: by hand, and of whole searches."""

from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

import mpq
from mpq import demo
from mpq.cli.console import print_comparison, print_result
from mpq.hardware_profiles import Conversion, Entry, MeasuredTable, Shape
from mpq.network.layer import Layer
from mpq.problem.cost_table import CostTable, PairwiseCost
from mpq.quantization.precision import Precision
from mpq.report import layer_table
from mpq.report.amount import amount
from mpq.report.estimators import EstimatorComparison
from mpq.report.trials import Score, Trial
from mpq.workflows.session import Session

CHOICES = tuple(map(Precision.parse, ("w4a8", "fp32")))
LAYERS = tuple(Layer(n, "linear", (2, 2), 2, (2,), (2,), 2, 2, 4) for n in ("a", "b"))


def test_shares_are_of_the_whole_network() -> None:
    """3 and 4 seconds of layers, 1 besides, 2 between them: 10 in all."""
    loss = CostTable("loss", "nats", ("a", "b"), CHOICES, np.array([[1.0, 0.0], [3.0, 0.0]]))
    pair = PairwiseCost("a", "b", np.array([[0.0, 2.0], [5.0, 0.0]]))
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


def test_a_search_on_a_table_with_conversions() -> None:
    """Candidates are what was measured; the limit holds with conversions, which are shown."""
    batches = [next(iter(demo.calibration()))[0][:32]]
    layers = mpq.find_layers(demo.make_net(), batches)
    rules = mpq.Rules(fix={layers[1].name: "fp32"})
    task = mpq.Task(demo.make_net(), batches, device=measured(layers), rules=rules)
    found = mpq.search(task, {"latency": "0.7x:fp32"}, sensitivity="weight-error")
    console = Console(file=StringIO(), width=140)

    print_result(found, console)
    frontier = found.frontier(num_points=3)

    chosen = list(found.solution.precisions(found.problem).values())
    in_layers = sum(1e-3 if str(p) == "w8a8" else 2e-3 for p in chosen)
    (budget,) = found.assignment.metadata.budgets
    between = budget.used - in_layers
    assert set(map(str, found.problem.loss.precisions)) == {"fp32", "w8a8"}
    assert len(set(chosen)) == 2
    assert between / 1e-4 == pytest.approx(round(between / 1e-4), abs=1e-6)  # so many conversions
    assert between > 1e-5
    assert budget.used <= budget.limit == pytest.approx(0.7 * 2e-3 * len(layers))
    assert f"latency between layers: {amount(between, 'seconds')}" in text_of(console)
    assert found.layer_table()["latency_share"].sum() == pytest.approx(in_layers / budget.used)
    assert len(frontier.points) > 1
    table = found.layer_table()
    widths = table["latency_half_width_seconds"].to_numpy()
    assert widths == pytest.approx(0.1 * table["latency_seconds"].to_numpy())
    known = amount(float(np.sqrt((widths**2).sum())), "seconds")
    assert f"latency of its layers is known to {known}" in " ".join(text_of(console))


def measured(layers: tuple[Layer, ...]) -> MeasuredTable:
    """Every layer 2 ms in float and 1 ms in int8, known to 10 %; every conversion 0.1 ms."""
    seconds = {"fp32": 2e-3, "w8a8": 1e-3}
    shapes = {Shape.of(layer): layer for layer in layers}
    entries = [
        Entry(
            shape.kind, shape.weight_shape, shape.input_shape, shape.output_shape, shape.groups,
            1, Precision.parse(name), value / layer.calls,
            latency_low_seconds=0.9 * value / layer.calls,
            latency_high_seconds=1.1 * value / layer.calls,
        )
        for shape, layer in shapes.items()
        for name, value in seconds.items()
    ]  # fmt: skip
    ways = [("fp32", "int8"), ("int8", "fp32")]
    return MeasuredTable(
        "toy", "Toy", "", "chosen", {}, tuple(entries),
        tuple(Conversion(*way, 1e-4, 0.0, "chosen") for way in ways),
    )  # fmt: skip


def text_of(console: Console) -> list[str]:
    """Lines that were printed."""
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def test_the_terminal_says_what_is_besides_the_layers() -> None:
    """Of a device's flash the code and the biases, and nothing of bytes of weights alone."""
    batches = [next(iter(demo.calibration()))[0][:32]]
    task = mpq.Task(demo.make_net(), batches, device="cortex-m7")
    found = mpq.search(task, ["flash=90KiB"], sensitivity="weight-error")
    console = Console(file=StringIO(), width=140)

    print_result(found, console)

    constant = found.cost_table("flash").constant
    lines = text_of(console)
    assert f"flash besides its layers: {constant / 1024:.4g} KiB" in lines
    assert constant == 22528 + 4 * Session.of(task).network.num_unquantized
    assert not any("latency besides" in line or "between layers" in line for line in lines)


def test_a_limit_of_0_has_no_share() -> None:
    """It is shown with what is used of it, and nothing is divided by it."""
    batches = [next(iter(demo.calibration()))[0][:32]]
    task = mpq.Task(demo.make_net(), batches, candidates=["w4a8", "w8a8"])
    found = mpq.search(task, {"weight_bytes": "1x:w8a8"}, sensitivity="weight-error")
    free = CostTable(
        "latency", "seconds", found.problem.loss.layers, found.problem.loss.precisions,
        np.zeros_like(found.problem.loss.values),
    )  # fmt: skip
    console = Console(file=StringIO(), width=140)

    print_result(replace(found, problem=found.problem.limited(free, 0.0)), console)

    assert "latency: 0.000 s of 0.000 s" in text_of(console)
    (line,) = (line for line in text_of(console) if line.startswith("weight_bytes: "))
    assert line.endswith("(100.0%)")


def test_brackets_of_names_and_messages_are_shown() -> None:
    """An error that says what to install says all of it."""
    error = "not installed: pip install 'mpq[pyhessian]'"
    trials = (Trial("weight_bytes=1x:w8", (0,), 0.1, None),)
    found = EstimatorComparison(trials, (Score("a[b]", error=error),), "nats", 1.0, 1.0, 4, 4)
    console = Console(file=StringIO(), width=400)

    print_comparison(found, console)

    assert f"a[b]: {error}" in text_of(console)
    assert any(line.split()[:1] == ["a[b]"] for line in text_of(console))
