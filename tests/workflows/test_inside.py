"""Searches whose layers are divided: bits for channels, or for blocks of them."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import mpq
from mpq.cli.__main__ import app
from mpq.errors import InputError
from mpq.hardware_profiles.part_costs import part_costs
from mpq.network.layer import Layer
from mpq.report.amount import amount
from mpq.sensitivity.output_sketch import OutputSketch
from mpq.workflows.page.known import known_costs
from mpq.workflows.setup import Prepared
from tests.workflows.divided import CANDIDATES, IN_GROUPS, network
from tests.workflows.networks import Net, batches


def task(split: str = "channels", rounding: str = "gptq", **others: object) -> mpq.Task:
    return mpq.Task(
        network(), batches(6), batches(8)[6:], candidates=CANDIDATES, rounding=rounding,
        split=split, **others,  # type: ignore[arg-type]
    )  # fmt: skip


@cache
def searched(split: str, rounding: str = "gptq") -> mpq.SearchResult:
    return mpq.search(task(split, rounding), ["weight_bytes=1x:w4"])


@pytest.mark.parametrize("rounding", ["gptq", "nearest"])
@pytest.mark.parametrize("split", ["channels", "channels:4", "blocks:3"])
def test_parts_within_the_same_bytes(split: str, rounding: str) -> None:
    """They lose less than whole layers, in bytes that are counted with what names their bits."""
    found = searched(split, rounding)

    precisions = found.assignment.precisions
    mixed = [p.weight for p in precisions.values() if p.weight.channels is not None]
    assert mixed
    assert found.safeguard is not None
    assert found.safeguard.inside is not None
    assert found.safeguard.inside.is_replaced
    whole = mpq.search(task("none", rounding), ["weight_bytes=1x:w4"])
    assert found.measured.divergence < whole.measured.divergence
    (budget,) = found.problem.budgets
    used = found.comparison("result").costs["weight_bytes"]
    assert used <= budget.used(found.columns) <= budget.limit
    layers = {layer.name: layer for layer in found.layers}
    bits = (
        precision.weight.stored_bits(layers[name].num_weights, layers[name].num_channels)
        for name, precision in precisions.items()
    )
    rounded_up = sum(-(-each // 8) for each in bits)
    assert used - found.cost_table("weight_bytes").constant == pytest.approx(
        rounded_up - _added(found)
    )


def _added(found: mpq.SearchResult) -> float:
    """What the constant has for codes of parts and bytes that are rounded up."""
    parts = found.problem.parts
    assert parts is not None
    return parts.code_bits / 8 + len(parts.divided)


def test_the_page_says_why_its_tables_differ() -> None:
    """Measured networks have their bytes, budgets and points room for parts, too."""
    found = searched("channels")
    (budget,) = found.problem.budgets
    more = budget.used(found.columns) - found.comparison("result").costs["weight_bytes"]

    said = [*known_costs(found, ()), *known_costs(replace(found, comparisons=()), ())]

    assert [line for line in said if "points count" in line] == [
        f"weight bytes: budgets and points count {amount(more, 'bytes')} more than the answer "
        "takes: room for what names the parts, and for the last byte, of every divided layer"
    ]


@pytest.mark.parametrize("rounding", ["gptq", "nearest"])
def test_prices_of_parts_are_those_of_layers(rounding: str) -> None:
    """To a millionth, the layer's table (nearest), or its prices by channels."""
    found, layers = searched("channels", rounding), searched("none", rounding)

    parts = found.problem.parts
    assert parts is not None
    for column in range(len(CANDIDATES)):
        sums = parts.by_layer(found.problem.loss.values[:, column])
        if rounding == "nearest":
            expected = layers.problem.loss.values[:, column]
            np.testing.assert_allclose(sums, expected, rtol=1e-6)
        assert (sums > 0).all()


def test_channels_of_codes_that_fit_data_add_up_to_the_price_by_channels() -> None:
    """To a millionth: inputs are not rounded here, so that nothing else is in it."""
    found = OutputSketch().estimate(Prepared.of(task("channels")).asked)

    assert found.by_channels is not None
    assert set(found.channels) == set(found.by_channels.layers)
    for row, name in enumerate(found.by_channels.layers):
        sums = found.channels[name].sum(axis=0)
        np.testing.assert_allclose(sums, found.by_channels.values[row], rtol=1e-6)


def test_what_is_saved_is_what_was_found(tmp_path: Path) -> None:
    """Read again in full, evaluated to the same loss; a frontier needs no network."""
    found = searched("channels")

    found.save(tmp_path)

    again, assignment = mpq.load(tmp_path), mpq.Assignment.load(tmp_path)
    assert assignment == again.assignment == found.assignment
    assert again.problem.precisions_of(again.columns) == found.assignment.precisions
    lost = mpq.evaluate(network(), assignment, batches(8)[6:])["quantized"].divergence
    assert lost == pytest.approx(found.measured.divergence, rel=1e-6)
    told = json.loads((tmp_path / "assignment.json").read_text())["layers"]
    bits = {x["name"]: np.mean(x["weight"].get("channel_bits", x["weight"]["bits"])) for x in told}
    assert bits == {n: p.weight.mean_bits for n, p in assignment.precisions.items()}
    with pytest.raises(InputError, match="whole layers"):
        again.alternatives(2)
    table = again.layer_table()
    assert table["weight_bytes"].sum() <= found.comparison("result").costs["weight_bytes"] + 1e-6
    points = again.frontier(num_points=3).points
    assert any(p.weight.channels is not None for x in points for p in x.precisions.values())


def test_codes_of_few_bits_may_be_to_nearest() -> None:
    """Channels of one weight, some rounded with regard to data: all are kept, and found again."""
    asked = task("channels")
    found = mpq.search(asked, ["weight_bytes=1x:w4"])
    name, mixed = next(
        (n, p.weight) for n, p in found.assignment.precisions.items() if p.weight.channels
    )
    session = mpq.Session.of(asked)
    quantizer = session.prepared.quantizer
    left = {k: v for k, v in quantizer.stored.items() if k != (name, mixed.by_channel[0])}
    object.__setattr__(session.prepared.quantizer, "stored", left)

    layer_module = session.network.layer_module(name)
    kept = quantizer.kept(name, layer_module, mixed)

    assert kept is not None
    rounded = quantizer.weight(name, layer_module, mixed)
    again = mpq.quantization.quantizer.Quantizer(quantizer.ranges, stored={(name, mixed): kept})
    assert torch.equal(again.weight(name, layer_module, mixed), rounded)


def test_a_shared_weight_has_the_same_parts() -> None:
    """An embedding whose weight is the classifier's: its rows are that one's channels."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(20, 12)
            self.mix = nn.Linear(12, 12)
            self.head = nn.Linear(12, 20, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.head(torch.tanh(self.mix(self.embed(x))))
            return found

    torch.manual_seed(1)
    data, net = [torch.randint(20, (8, 6)) for _ in range(4)], Tied().eval()
    with torch.no_grad():
        net.embed.weight.mul_(torch.logspace(-1, 0.5, 20)[:, None])
    asked = mpq.Task(net, data, candidates=CANDIDATES, rounding="nearest", split="channels")

    found = mpq.search(asked, ["effective_bits=7"])

    assert found.problem.parts is not None
    assert found.problem.parts.owners == {"head": "embed"}
    precisions = found.assignment.precisions
    assert precisions["head"] == precisions["embed"]
    assert found.assignment.ties == (("embed", "head"),)


@pytest.mark.parametrize(
    ("limit", "options", "sensitivity", "why"),
    [
        ("weight_bytes=1x:w4", {}, "measured", "take .*auto"),
        ("weight_bytes=1x:w4", {"sequential_rounding": True}, "auto", "sequential-rounding"),
        ("weight_bytes=1x:w4", {"to": "onnx-qdq"}, "auto", "to=onnx-qdq"),
        ("latency=1ms", {}, "auto", "no device has a kernel"),
        ("weight_bytes=1x:w4", {"rules": mpq.Rules(tie=["*"])}, "auto", "does not go with tie"),
        ("weight_bytes=1x:w4", {"rules": mpq.Rules(tie_blocks=True)}, "auto", "--tie-blocks"),
        ("weight_bytes=1x:w4", {"rules": mpq.Rules(tie_inner=True)}, "auto", "--tie-inner"),
    ],
)
def test_what_does_not_go_with_parts_is_refused(
    limit: str, options: dict[str, object], sensitivity: str, why: str
) -> None:
    """Before anything runs, by name."""
    asked = task("channels", "gptq", **options)

    with pytest.raises(InputError, match=why):
        mpq.search(asked, [limit], sensitivity=sensitivity)


def test_it_says_so_where_no_layer_can_be_divided() -> None:
    """Floats, of which channels have no bits of their own."""
    asked = mpq.Task(
        network(), batches(6), candidates=["wfp4", "wfp8"], rounding="nearest", split="channels"
    )

    with pytest.warns(UserWarning, match="no layer is divided"):
        found = mpq.search(asked, ["effective_bits=1x:wfp8"])

    assert found.problem.parts is None
    assert found.safeguard is not None
    assert found.safeguard.inside is None


def test_whole_layers_stay_where_no_part_pays() -> None:
    """The answer is that of the search by layers, however parts are priced."""
    asked = task("channels:64", "nearest")

    with pytest.warns(UserWarning, match="no layer is divided .--split channels:64."):
        found = mpq.search(asked, ["weight_bytes=1.1x:w4"])

    by_layers = mpq.search(task("none", "nearest"), ["weight_bytes=1.1x:w4"])
    assert found.assignment.precisions == by_layers.assignment.precisions
    assert found.safeguard is not None
    assert found.safeguard.inside is None


@pytest.mark.parametrize(
    "rules", [{"fix": {"head": "w[2,4]:01010a32"}}, {"allow": {"head": ["w[2,4]:01010a32"]}}]
)
def test_channels_of_one_weight_are_no_candidate(rules: dict[str, object]) -> None:
    """A search finds them."""
    with pytest.raises(InputError, match="finds with split"):
        task("none", rules=mpq.Rules(**rules))  # type: ignore[arg-type]


def test_the_command_line_divides_layers(tmp_path: Path) -> None:
    """And says what was found."""
    words = ["search", "--split", "blocks:2", "--precisions", "w2,w8", "--rounding", "nearest"]
    words += ["--limit", "effective_bits=5", "--output", str(tmp_path)]

    done = CliRunner().invoke(app, words)

    assert done.exit_code == 0, done.output
    assert "bits inside layers gave an answer" in done.output
    assert (tmp_path / "assignment.json").exists()


def test_alternatives_are_refused_before_the_search(tmp_path: Path) -> None:
    """They would be refused after it."""
    words = ["search", "--split", "channels", "--alternatives", "2", "--output", str(tmp_path)]

    done = CliRunner().invoke(app, words)

    assert done.exit_code != 0
    assert "--alternatives differ in whole layers" in done.output
    assert not list(tmp_path.iterdir())


def test_a_target_that_holds_channels_keeps_the_bytes(tmp_path: Path) -> None:
    """C, with a byte for the width of every channel: the file has what was promised."""
    net = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 5)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        net[0].weight.mul_(torch.logspace(-2, 0.5, 24)[:, None])  # type: ignore[operator]
    data = [torch.randn(32, 12) for _ in range(4)]
    candidates = ["w2a8", "w4a8", "w8a8"]
    asked = mpq.Task(net, data, candidates=candidates, rounding="nearest", to="c", split="channels")

    found = mpq.search(asked, ["file_bytes=1x:w4a8"])

    assert any(p.weight.channels is not None for p in found.assignment.precisions.values())
    mpq.export(found.assignment, tmp_path / "made", "c", net, data)
    told = json.loads((tmp_path / "made" / "export.json").read_text())
    assert told["file_bytes"] == found.comparison("result").costs["file_bytes"]


def test_costs_of_parts_name_what_they_add() -> None:
    """A byte for each layer's last one, and the codes."""
    found = searched("channels")
    parts = found.problem.parts
    assert parts is not None
    (table,) = (x for x in found.tables if x.name == "effective_bits")

    rows = part_costs(parts, table, found.layers)

    num_weights = sum(map(_num_weights, found.layers))
    assert rows.constant == pytest.approx(parts.code_bits / num_weights)
    np.testing.assert_allclose(parts.by_layer(rows.values[:, 0]), table.values[:, 0])


def _num_weights(layer: Layer) -> int:
    return layer.num_weights


def of_columns() -> nn.Module:
    """Inputs of very different size."""
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        for layer in (net.conv, net.hidden, net.head):
            scale = torch.logspace(-1.5, 0.5, layer.weight.shape[1])
            layer.weight.mul_(scale.view(1, -1, *[1] * (layer.weight.ndim - 2)))
    return net


def asked_of_columns(split: str, rounding: str) -> mpq.Task:
    return mpq.Task(
        of_columns(), batches(6), batches(8)[6:], candidates=IN_GROUPS, rounding=rounding,
        split=split,
    )  # fmt: skip


@cache
def of_inputs(split: str, rounding: str) -> mpq.SearchResult:
    return mpq.search(asked_of_columns(split, rounding), ["weight_bytes=1x:w4g4"])


OF_INPUTS = [("columns:4", "gptq"), ("groups", "nearest")]
"""Codes that hang together along a row, and numbers each by itself."""


@pytest.mark.parametrize(("split", "rounding"), OF_INPUTS)
def test_parts_along_rows_within_the_same_bytes(split: str, rounding: str, tmp_path: Path) -> None:
    """They lose less than whole layers, are saved and read, evaluated, and drawn."""
    found = of_inputs(split, rounding)

    assert found.safeguard is not None
    assert found.safeguard.inside is not None
    assert found.safeguard.inside.is_replaced
    whole = of_inputs("none", rounding)
    assert found.measured.divergence < 0.8 * whole.measured.divergence
    (budget,) = found.problem.budgets
    used = found.comparison("result").costs["weight_bytes"]
    assert used <= budget.used(found.columns) <= budget.limit
    mixed = [p.weight for p in found.assignment.precisions.values() if p.weight.is_coupled]
    assert mixed
    found.save(tmp_path)
    again = mpq.load(tmp_path)
    assert again.assignment == found.assignment
    assert again.problem.precisions_of(again.columns) == found.assignment.precisions
    lost = mpq.evaluate(of_columns(), again.assignment, batches(8)[6:])["quantized"].divergence
    assert lost == pytest.approx(found.measured.divergence, rel=1e-6)
    told = json.loads((tmp_path / "assignment.json").read_text())["layers"]
    name = "input_bits" if split == "columns:4" else "group_bits"
    assert sum(name in layer["weight"] for layer in told) == len(mixed)


@pytest.mark.parametrize(("split", "rounding"), OF_INPUTS)
def test_prices_along_rows_are_those_of_layers(split: str, rounding: str) -> None:
    """To a millionth: of codes that fit data, of the prices by channels that are shared out."""
    found, task_of = of_inputs(split, rounding), asked_of_columns(split, rounding)

    parts, table = found.problem.parts, of_inputs("none", rounding).problem.loss
    if rounding == "gptq":
        by_channels = OutputSketch().estimate(Prepared.of(task_of).asked).by_channels
        assert by_channels is not None
        table = by_channels
    assert parts is not None
    for column in range(len(IN_GROUPS)):
        sums = parts.by_layer(found.problem.loss.values[:, column])
        np.testing.assert_allclose(sums, table.values[:, column], rtol=1e-6)


def test_points_of_a_frontier_are_rounded_each_for_itself() -> None:
    """Codes along a row hang together, so that every point has its own."""
    asked = asked_of_columns("columns:4", "gptq")

    found = mpq.frontier(asked, None, ["weight_bytes=1x:w4g4"], num_points=3, measure=True)

    mixed = [x for x in found.points if any(p.weight.is_coupled for p in x.precisions.values())]
    assert mixed
    assert all(point.measured is not None for point in found.points)


def test_columns_with_one_scale_for_a_channel() -> None:
    """Whose widths are that many times a step apart: their bytes are within the limit, too."""
    asked = mpq.Task(
        of_columns(), batches(6), batches(8)[6:], candidates=CANDIDATES, rounding="nearest",
        split="columns:4",
    )  # fmt: skip

    found = mpq.search(asked, ["weight_bytes=1.1x:w4"])

    mixed = [p.weight for p in found.assignment.precisions.values() if p.weight.has_tied_scales]
    assert mixed
    used = found.comparison("result").costs["weight_bytes"]
    (budget,) = found.problem.budgets
    assert used <= budget.used(found.columns) <= budget.limit


def test_what_cuts_through_groups_is_refused() -> None:
    """Before anything runs, with sizes that work."""
    asked = asked_of_columns("columns:3", "nearest")

    with pytest.raises(InputError, match="columns:4 or columns:8"):
        mpq.search(asked, ["weight_bytes=1x:w4g4"])


def test_many_groups_are_solved_to_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is said; they are better than whole layers all the same."""
    monkeypatch.setattr("mpq.workflows.inside.PROVED_PARTS", 3)

    found = mpq.search(asked_of_columns("groups", "nearest"), ["weight_bytes=1x:w4g4"])

    assert found.solution.gap is not None
    assert found.solution.gap <= 1e-4
    assert found.measured.divergence < of_inputs("none", "nearest").measured.divergence
