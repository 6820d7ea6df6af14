"""What one forward pass shows: which layers feed which, and which tensors are held when."""

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

import mpq
from mpq import demo
from mpq.cli.__main__ import app
from mpq.errors import InfeasibleError, InputError
from mpq.hardware_profiles.peak_ram import peak_ram_bytes, peak_ram_tables, undominated
from mpq.network.dataflow import Dataflow
from mpq.network.examples import Batch
from mpq.network.layer import Layer
from mpq.network.liveness import Lifetimes
from mpq.network.network import Network
from mpq.network.tracing import trace
from mpq.quantization.precision import Precision

INT8 = Precision.parse("w8a8")


class Wired(nn.Module):
    """Layers that a function wires."""

    def __init__(self, wiring: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.wiring = wiring
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        """What the function makes of its layers and the input."""
        return self.wiring(self, x)


def linear(inputs: int = 4, outputs: int = 4) -> nn.Linear:
    """A small layer."""
    return nn.Linear(inputs, outputs)


def flow(model: nn.Module, x: Tensor) -> Dataflow:
    """Traced on its own, with any output."""
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    shapes = dict.fromkeys(names, ((1,), 1, (1,), (1,), 1, 1, 1))
    layers = [Layer(name, "linear", *shape) for name, shape in shapes.items()]
    return Dataflow.of(model.eval(), Batch.of(x), layers)


def held(lifetimes: Lifetimes) -> dict[str, int]:
    """Elements that are held in every step."""
    steps = enumerate(lifetimes.steps)
    return {step: sum(b.elements for b in lifetimes.alive(i)) for i, step in steps}


def test_a_chain() -> None:
    """Input and output of a layer are there together; an activation function takes nothing."""
    model = nn.Sequential(linear(4, 10), nn.ReLU(), linear(10, 3))

    found = flow(model, torch.randn(5, 4))

    assert held(found.lifetimes) == {"0": 14, "relu after 0": 10, "2": 13}
    assert found.fed_by == {"0": (), "2": ("0",)}


@pytest.mark.parametrize("is_inplace", [False, True])
def test_a_residual_block(is_inplace: bool) -> None:
    """The shortcut is held all the while, and the sum overwrites one of its parts."""

    def block(self: Any, x: Tensor) -> Any:
        y = F.relu(self.first(x), inplace=is_inplace)
        return self.last(F.relu(self.second(y) + x, inplace=is_inplace))

    model = Wired(block, first=linear(), second=linear(), last=linear(4, 2))

    found = flow(model, torch.randn(5, 4))

    assert list(held(found.lifetimes).values()) == [8, 8, 12, 8, 4, 6]
    assert found.fed_by == {"first": (), "second": ("first",), "last": ("second",)}


def test_a_concatenation_and_views() -> None:
    """A view is the tensor itself and keeps all of it; a concatenation is a copy."""

    def wiring(self: Any, x: Tensor) -> Any:
        left, right = self.wide(x).chunk(2, dim=1)
        return self.last(torch.cat([left.reshape(-1, 3).flip(1), self.second(right)], dim=1))

    model = Wired(wiring, wide=linear(4, 6), second=linear(3, 5), last=linear(8, 2))

    found = flow(model, torch.randn(5, 4))

    assert held(found.lifetimes) == {
        "wide": 4 + 6,
        "flip after wide": 6 + 3,
        "second": 6 + 3 + 5,
        "cat after second": 3 + 5 + 8,
        "last": 8 + 2,
    }
    assert found.fed_by["last"] == ("wide", "second")


def test_a_branch_of_two_readers_and_two_outputs() -> None:
    """Outputs are held to the end; both readers of a tensor say in which format it is stored."""
    model = Wired(
        lambda self, x: {"left": self.left(x), "right": (self.right(x),)},
        left=linear(4, 7), right=linear(4, 2),
    )  # fmt: skip

    found = flow(model, torch.randn(5, 4)).lifetimes

    assert held(found) == {"left": 11, "right": 13}
    assert found.buffers[0].held_for == ("left", "right")


def test_what_depends_on_no_input_is_no_activation() -> None:
    """Parameters, buffers and masks made from nothing are constants; ids have 32 bits, flags 8."""

    def wiring(self: Any, x: Tensor) -> Any:
        mask = torch.ones(4, 4).triu()
        chosen = torch.where(x > 0, x @ mask, self.layer.weight[0] + torch.zeros_like(x))
        return self.layer(chosen)

    model = Wired(wiring, layer=linear(4, 2))

    found = flow(model, torch.randn(5, 4)).lifetimes

    assert found.steps == ("gt at the start", "mm at the start", "where at the start", "layer")
    flags = [buffer for buffer in found.buffers if not buffer.held_for]
    assert [(buffer.elements, buffer.bits) for buffer in flags] == [(4, 8)]


def test_a_tensor_that_is_written_piece_by_piece() -> None:
    """It is there as a whole from the first piece on, and is fed by all pieces."""

    def wiring(self: Any, x: Tensor) -> Any:
        whole = torch.empty(len(x), 6)
        whole[:, :4] = self.left(x)
        whole[:, 4:] = self.right(x)
        return self.last(whole)

    model = Wired(wiring, left=linear(), right=linear(4, 2), last=linear(6, 3))

    found = flow(model, torch.randn(2, 4))

    assert list(held(found.lifetimes).values()) == [8, 4 + 4 + 6, 4 + 6 + 2, 6 + 2, 6 + 3]
    assert found.fed_by["last"] == ("left", "right")


def test_a_layer_called_twice() -> None:
    """Every call is a step; a layer does not count as feeding itself."""
    model = Wired(lambda self, x: self.last(self.both(self.both(x))), both=linear(), last=linear())

    found = flow(model, torch.randn(5, 4))

    assert found.lifetimes.steps == ("both", "both (2)", "last")
    assert found.fed_by == {"both": (), "last": ("both",)}


def test_examples_beyond_the_first_two_may_reach_more_layers() -> None:
    """Where two examples do not call every layer, all of them are run."""

    def wiring(self: Any, x: Tensor) -> Any:
        return self.rare(x) if len(x) > 2 and bool(x[2].sum() > 0) else self.often(x)

    model = Wired(wiring, rare=linear())

    model.often = linear()
    x = torch.ones(4, 4)
    layers = trace(model.eval(), Batch.of(x)).layers

    found = Dataflow.of(model, Batch.of(x), layers)

    assert found.fed_by == {"rare": ()}
    assert held(found.lifetimes)["rare"] == 8


def test_every_example_counts_the_same() -> None:
    """The numbers are of one example, whatever the batch."""
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), linear(180, 2))

    one, many = (flow(model, torch.randn(n, 3, 8, 8)).lifetimes for n in (1, 7))

    assert one == many
    assert held(one) == {"0": 192 + 180, "native_batch_norm after 0": 180, "3": 182}


def test_attention_is_opened() -> None:
    """The projections of ``nn.MultiheadAttention`` feed its output projection."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False))

    layers = Network.of(model.eval(), [torch.randn(3, 5, 8)]).layers

    (_, _, _, out, first, second) = layers
    assert [name.rpartition(".")[2] for name in out.fed_by] == ["q_proj", "k_proj", "v_proj"]
    assert first.fed_by == (out.name,)
    assert second.fed_by == (first.name,)


def test_folding_and_excluding() -> None:
    """A folded BatchNorm is no step; a layer left out feeds nobody, its tensors keep 32 bits."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1), nn.Flatten(), linear(12, 2)
    ).eval()

    network = Network.of(model, [torch.randn(4, 1, 2, 2)], exclude=["2"])

    assert network.lifetimes is not None
    assert network.lifetimes.steps == ("0", "2", "4")
    assert [(layer.name, layer.fed_by) for layer in network.layers] == [("0", ()), ("4", ())]
    (table, *_) = undominated(peak_ram_tables(network.lifetimes, network.layers, [INT8]))
    assert table.constant == 8 * 4
    assert network.num_unquantized == 2 + (6 + 3) + 2  # biases, the folded one too; layer 2


def test_the_model_is_left_as_found() -> None:
    """Weights, gradients, mode, hooks and the random state."""
    model = demo.make_net()
    weight = model.get_parameter("head.weight")
    weight.grad = torch.ones_like(weight)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    layers = trace(model, Batch.of(torch.randn(3, 1, 8, 8))).layers
    torch.set_rng_state(state)

    Dataflow.of(model, Batch.of(torch.ones(3, 1, 8, 8)), layers)

    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(weight.grad, torch.ones_like(weight))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any(m.training for m in model.modules())


def test_a_model_that_fails_is_left_as_found() -> None:
    """Also where a layer raises half-way."""
    model = nn.Sequential(linear(), linear(3, 2))

    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        flow(model, torch.randn(5, 4))

    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", ["resnet20_cifar10", "vit_mnist", "llama_stories"])
def test_the_example_networks(
    name: str, root: Path, monkeypatch: pytest.MonkeyPatch, data_dir: Path
) -> None:
    """Each layer but the first is fed by others; few steps can be the peak; int8 is a quarter."""
    monkeypatch.setenv("MPQ_DATA", str(data_dir))
    monkeypatch.syspath_prepend(str(root / "examples"))
    example = __import__(name)
    monkeypatch.delitem(sys.modules, name)
    batch = Batch.of(next(iter(example.calibration()))).slice(0, 2)

    network = Network.of(example.make_net().eval(), [batch])

    lifetimes, layers = network.lifetimes, network.layers
    assert lifetimes is not None
    assert [layer.name for layer in layers if not layer.fed_by] == [layers[0].name]
    candidates = [INT8, Precision.parse("w4a4")]
    tables = peak_ram_tables(lifetimes, layers, candidates, ties=network.ties)
    assert 1 <= len(undominated(tables, network.ties)) <= 10
    precisions = dict.fromkeys((layer.name for layer in layers), INT8)
    original, _ = peak_ram_bytes(lifetimes, {})
    assert peak_ram_bytes(lifetimes, precisions)[0] == pytest.approx(original / 4, rel=0.01)


def test_the_peak_of_resnet20(root: Path, monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> None:
    """Three tensors of 16 channels and 32x32 pixels in a block's second convolution, by hand."""
    monkeypatch.setenv("MPQ_DATA", str(data_dir))
    monkeypatch.syspath_prepend(str(root / "examples"))
    example = __import__("resnet20_cifar10")
    network = Network.of(example.make_net().eval(), [torch.rand(2, 3, 32, 32)])
    assert network.lifetimes is not None

    precisions = dict.fromkeys((layer.name for layer in network.layers), INT8)
    peak = peak_ram_bytes(network.lifetimes, precisions)

    assert peak == (3 * 16 * 32 * 32, "layer1.0.conv2")


def few_digits() -> list[Tensor]:
    """A part of the demo's data."""
    return [next(iter(demo.calibration()))[0][:32]]


def test_a_search_with_a_limit_on_peak_ram() -> None:
    """Met, reported as one resource, and used by the very network that is returned."""
    task = mpq.Task(demo.make_net(), few_digits())
    result = mpq.search(
        task, {"peak_ram": "3KiB", "weight_bytes": "44KiB"}, sensitivity="weight-error"
    )

    precisions = result.solution.precisions(result.problem)
    lifetimes = Network.of(demo.make_net(), mpq.Calibration.of(few_digits())).lifetimes
    assert lifetimes is not None
    peak, _ = peak_ram_bytes(lifetimes, precisions)
    assert peak <= 3 * 1024 < peak_ram_bytes(lifetimes, dict.fromkeys(precisions, INT8))[0]
    used = {b.resource: b.used for b in result.assignment.metadata.budgets}
    assert used["peak_ram"] == peak
    assert set(used) == {"peak_ram", "weight_bytes"}
    assert result.comparison("result").costs["peak_ram_bytes"] == peak
    assert "peak_ram_bytes" in result.comparison_table().columns
    assert result.frontier(num_points=3).resource == "weight_bytes"
    with pytest.raises(InputError, match="maximum over the steps of a forward pass"):
        result.frontier("peak_ram")


def test_a_peak_that_cannot_be_reached() -> None:
    """Says by how much, and in which step."""
    with pytest.raises(
        InfeasibleError,
        match=r"peak_ram \(at blocks.2.depthwise.conv\): limit 1433.6 bytes, smallest reachable "
        r"1792: 358.4 bytes too much",
    ):
        mpq.search(mpq.Task(demo.make_net(), few_digits()), ["peak_ram=0.4x:w8a8"])


def test_the_command_line(tmp_path: Path) -> None:
    """``mpq search --limit peak_ram=...`` writes an assignment that stays within it."""
    limits = ["--limit", "peak_ram=0.8x:w8a8", "--limit", "weight_bytes=49KiB"]

    options = [*limits, "--sensitivity", "weight-error", "--points", "2"]

    done = CliRunner().invoke(app, ["search", *options, "--output", str(tmp_path)])

    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "assignment.json").read_text())["metadata"]
    peak = next(b for b in record["budgets"] if b["resource"] == "peak_ram")
    assert peak["used"] <= peak["limit"] == pytest.approx(0.8 * 3584)
    assert "peak_ram: " in done.output
    assert "peak_ram@" not in done.output
    assert "peak_ram_bytes" in (tmp_path / "comparison.csv").read_text().splitlines()[0]
    again = CliRunner().invoke(
        app, ["solve", str(tmp_path / "problem.json"), "--limit", "peak_ram=3KiB"]
    )
    budgets = json.loads(again.output)[0]["budgets"]
    assert [budget["resource"] for budget in budgets] == ["peak_ram", "weight_bytes"]
    assert budgets[0]["used"] <= 3072


class Sixes(nn.Module):
    """Takes batches of six only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.first(x).view(6, 7))
        return out


def test_a_network_that_takes_whole_batches_only() -> None:
    """Two examples do not fit; the whole batch does."""
    network = Network.of(Sixes().eval(), [torch.randn(6, 5)])

    assert [layer.fed_by for layer in network.layers] == [(), ("first",)]
