"""Parts of layers in 0 bits: searched, counted, saved, evaluated, exported, refused."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq.backends.c.target import C
from mpq.backends.text import Text
from mpq.errors import InputError, MpqError, PrecisionError
from mpq.network.modules import weight_of
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.precision import Precision
from tests.workflows.divided import network
from tests.workflows.networks import batches

CHANNELS = ["w0", "w2", "w4", "w8"]
AFFINE = ["w0zg4", "w2zg4", "w4zg4"]


@cache
def searched(split: str, rounding: str, limit: str, *candidates: str) -> mpq.SearchResult:
    task = mpq.Task(
        network(), batches(6), batches(8)[6:], candidates=candidates, rounding=rounding, split=split
    )
    # Parts stand whatever held-out examples say: what is asked is how they are kept.
    return mpq.search(task, {"weight_bytes": limit}, safeguard=False)


CASES = [
    ("channels", "gptq", "0.7x:w2", *CHANNELS),
    ("columns:4", "coordinate-descent", "1x:w2", *CHANNELS),
    ("groups", "nearest", "0.7x:w2zg4", *AFFINE),
]


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_what_is_saved_is_what_was_found(case: tuple[str, ...], tmp_path: Path) -> None:
    """Within the bytes, read again, evaluated to the same loss; weights of 0 bits are 0."""
    found = searched(*case)

    found.save(tmp_path)

    mixed = {n: p.weight for n, p in found.assignment.precisions.items() if p.weight.channels}
    left_out = {n: w for n, w in mixed.items() if w.channels and not w.channels.numbers[0].bits}
    assert left_out
    (budget,) = found.problem.budgets
    assert found.comparison("result").costs["weight_bytes"] <= budget.limit
    assignment = mpq.Assignment.load(tmp_path)
    assert assignment == found.assignment
    quantized = mpq.quantize(network(), assignment)
    for name, weight in left_out.items():
        rows = weight_of(quantized.get_submodule(name)).flatten(1)
        assert weight.channels is not None
        is_zero = torch.from_numpy(weight.channels.cells == 0).expand_as(rows)
        assert not rows[is_zero].any()
        assert rows[~is_zero].any()
    lost = mpq.evaluate(network(), assignment, batches(8)[6:])["quantized"].divergence
    assert lost == pytest.approx(found.measured.divergence, rel=1e-6)


@pytest.mark.parametrize("case", CASES[:2], ids=" ".join)
def test_a_runtime_runs_it(case: tuple[str, ...], tmp_path: Path) -> None:
    """ONNX Runtime, with parts that are read by no layer, or stored as codes of 0."""
    pytest.importorskip("onnxruntime")
    asked = searched(*case).assignment

    made = mpq.export(asked, tmp_path, "onnx-qdq", network(), batches(1), channels="divide")

    assert made.deviation is not None
    assert made.deviation < 1e-4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # 4 x 6 weights: codes, scales, digits that say which part has which bits.
        ("w[0,4]:0110a16", 2 * 6 * 4 + 4 * 32 + 4 * 1),
        ("w[0,2,4]g3:0120a16", 6 * 2 + 6 * 4 + 2 * 2 * 16 + 4 * 2),
        ("w[0,4]:i010010a16", 4 * 2 * 4 + 4 * 32 + 6 * 1),
        ("w[0,2,4]:i010012a16", 4 * 2 * 2 + 4 * 4 + 4 * (32 + 4) + 32 + 6 * 2),
        ("w[0,4]g3:i6/3x01a16", 4 * 3 * 4 + 4 * 16 + 2 * 1),
        ("w[0,4]zg3:g6/3x01001000a16", 2 * 3 * 4 + 2 * (16 + 4) + 8 * 1),
        ("w0g3a16", 0),
        ("w0a16", 4 * 32),
    ],
)
def test_bits_by_hand(text: str, expected: int) -> None:
    """No codes; in groups no scales and zero points either, where a channel keeps its scale."""
    assert Precision.parse(text).weight.stored_bits(4 * 6, 4) == expected


def test_readers_without_mpq_are_told(tmp_path: Path) -> None:
    """Bits of every input stand in the file."""
    layer = AssignedLayer("0", "linear", (2, 4), Precision.parse("w[0,4]:i0110a32"))
    Assignment((layer,)).save(tmp_path)

    told = json.loads((tmp_path / "assignment.json").read_text())

    assert told["layers"][0]["weight"]["input_bits"] == [0, 4, 4, 0]
    assert Assignment.load(tmp_path) == Assignment((layer,))


class Two(nn.Module):
    """Layers of which one may be left out: what it reads comes back."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 4)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, 4]``."""
        found: Tensor = self.second(x + self.first(x).tanh())
        return found


def test_a_whole_layer_loses_what_its_zeros_lose() -> None:
    """A measured loss is that of the network whose weight is 0, and its bias stays."""
    torch.manual_seed(1)
    data = [torch.randn(16, 6) for _ in range(2)]
    task = mpq.Task(Two(), data, data, candidates=["w0g3", "w8g3"], rounding="nearest")

    found = mpq.search(task, {"weight_bytes": 4 * 6 + 4 * 2 * 2}, sensitivity="measured")

    assert str(found.assignment.precisions["first"]) == "w0g3a32"
    zeroed = Two()
    nn.init.zeros_(zeroed.first.weight)
    rest = mpq.quantize(Two(), Assignment((found.assignment.layers[1],)))
    rest.first = zeroed.first
    torch.testing.assert_close(mpq.quantize(Two(), found.assignment)(data[0]), rest(data[0]))
    nets = (Two(), zeroed)
    original, without = (net(torch.cat(data)).detach().log_softmax(1).double() for net in nets)
    lost = float((original.exp() * (original - without)).sum(1).mean())
    assert found.problem.loss.values[0, 0] == pytest.approx(lost, rel=1e-4)


@pytest.mark.parametrize(
    "steps",
    [
        {"tune": "all:epochs=2,lr=0.02"}, {"bias_correction": True}, {"transforms": ["equalize"]},
        {"rounding": "gptq", "sequential_rounding": True, "recalibrate": True},
    ],
    ids=str,
)  # fmt: skip
def test_later_steps_leave_it_at_0(steps: dict[str, Any], tmp_path: Path) -> None:
    """A weight of 0 bits stays 0, and has neither codes nor scales to tune."""
    torch.manual_seed(1)
    data = [torch.randn(8, 6) for _ in range(8)]
    asked = {"rounding": "nearest", **steps}
    rules = mpq.Rules(fix={"first": "w0a8", "second": "w4a8"})
    task = mpq.Task(Two(), data[:6], data[6:], candidates=["w0a8", "w4a8"], rules=rules, **asked)

    found = mpq.search(task, {"weight_bytes": "1x:w4a8"}, sensitivity="weight-error")

    found.save(tmp_path)
    assignment = mpq.load(tmp_path).assignment
    assert not weight_of(mpq.quantize(Two(), assignment).get_submodule("first")).any()
    measured = mpq.evaluate(Two(), assignment, data[6:])["quantized"]
    assert measured.divergence == pytest.approx(found.measured.divergence, rel=1e-6)
    tuning = found.provenance.tuning
    assert (tuning.left if tuning else {}) == (
        {"first": "all its weights are 0"} if "tune" in steps else {}
    )


EXPORTS = [part.name for part in mpq.BACKENDS if part.writes_files and not issubclass(part, Text)]


@pytest.mark.parametrize("name", EXPORTS)
def test_no_export_holds_a_whole_weight_of_0_bits(name: str, tmp_path: Path) -> None:
    """By the layer's name."""
    net = nn.Sequential(nn.Linear(4, 2)).eval()
    layer = AssignedLayer("0", "linear", (2, 4), Precision.parse("w0"))

    with pytest.raises(MpqError, match=r"(?s)'0'.*(0 bits|zero)"):
        mpq.export(Assignment((layer,)), tmp_path / "made", name, net, [torch.randn(2, 4)])


def test_c_refuses_channels_of_0_bits() -> None:
    """Its kernels read integers: named, with what to do."""
    layer, target = AssignedLayer("0", "linear", (2, 4), Precision.parse("w[0,8]:01a8")), C()

    with pytest.raises(PrecisionError, match="0 bits none.*--channels widen"):
        target.check([layer])


@pytest.mark.parametrize("way", ["divide", "widen"])
def test_signs_alone_are_never_0(way: str, tmp_path: Path) -> None:
    """Neither are they written for tools: named, with what to do."""
    net = nn.Sequential(nn.Linear(4, 2)).eval()
    layer = AssignedLayer("0", "linear", (2, 4), Precision.parse("w[0,1]:01"))

    with pytest.raises(PrecisionError, match="'0'.*signs alone.*without w0"):
        mpq.export(
            Assignment((layer,)), tmp_path / "made", "onnx-qdq", net, [torch.randn(2, 4)],
            channels=way,
        )  # fmt: skip


def test_no_device_says_how_fast_it_is() -> None:
    """A latency of weights that are left out is no device's."""
    data = [torch.randn(4, 6)]

    with pytest.raises(InputError, match="cortex-m7 runs no layer at w0a8"):
        mpq.Task(Two(), data, data, candidates=["w0a8", "w8a8"], device="cortex-m7")
