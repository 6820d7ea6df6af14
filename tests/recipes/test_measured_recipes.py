"""ZeroQ, CalibTIP, OHQ, PD-Quant: bits of a tiny network by single layers, measured."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

import mpq
from mpq.cli.__main__ import app
from mpq.recipes import recipe_of
from tests.recipes.reference import LAYERS, Floats, data, least, rounded, tiny, weights_of

Rounding = Callable[[Tensor, int], Tensor]
Score = Callable[[Tensor, Tensor, Tensor], Tensor]


def affine(w: Tensor, bits: int) -> Tensor:
    """To nearest with a zero point, a scale per output channel that covers all and 0."""
    low, high = w.amin(1, keepdim=True).clamp(max=0), w.amax(1, keepdim=True).clamp(min=0)
    scale: Tensor = (high - low) / (2**bits - 1)
    zero: Tensor = (-low / scale).round()
    return (((w / scale).round() + zero).clamp(0, 2**bits - 1) - zero) * scale


def single_layers(
    pairs: list[tuple[int, int]], round_weight: Rounding, score: Score, x: Tensor, labels: Tensor
) -> Floats:
    """``[L, B]`` of the tiny network with a single layer rounded, weight and input."""
    net, rows = tiny(), []
    with torch.no_grad():
        float_outputs = net(x)
        for i in range(0, 9, 2):
            read, row = net[:i](x), []
            for w, a in pairs:
                layer = deepcopy(net).get_submodule(str(i))
                weight = layer.get_parameter("weight")
                weight.copy_(round_weight(weight, w))
                flat = affine(read.reshape(1, -1), a).reshape(read.shape)
                row.append(float(score(float_outputs, net[i + 1 :](layer(flat)), labels)))
            rows.append(row)
    return np.array(rows)


def divergence(p: Tensor, q: Tensor, _: Tensor) -> Tensor:
    """Mean KL divergence."""
    return F.kl_div(q.log_softmax(1), p.log_softmax(1), log_target=True, reduction="batchmean")


def rise(p: Tensor, q: Tensor, labels: Tensor) -> Tensor:
    """Of the cross entropy; what falls counts as 0."""
    return (F.cross_entropy(q, labels) - F.cross_entropy(p, labels)).clamp(min=0)


RANGES = mpq.Ranges("minmax", "minmax")
CASES: dict[str, tuple[list[tuple[int, int]], Rounding, Score]] = {
    "zeroq": ([(2, 8), (4, 8), (8, 8)], affine, divergence),
    "ohq": ([(4, 8), (8, 8)], rounded, divergence),
    "calibtip": ([(4, 4), (8, 8)], rounded, rise),
    "pd-quant": ([(2, 2), (2, 4), (4, 2), (4, 4)], rounded, divergence),
}


@pytest.mark.parametrize("share", [0.3, 0.6])
@pytest.mark.parametrize("name", list(CASES))
def test_bits_of_a_tiny_network(name: str, share: float) -> None:
    """The least sum of what single layers lose, by trying everything, on the same examples.

    Those of ``zeroq`` and ``ohq`` are given here: the script starts after their distillation, and
    meets one limit, as does one point of the paper's frontier.
    """
    pairs, round_weight, score = CASES[name]
    x, labels = (torch.cat(parts) for parts in zip(*data(), strict=True))
    sizes = np.array([w.numel() for w in weights_of(tiny())])
    cost = sizes[:, None] * np.array([float(w * a) for w, a in pairs])
    limit = cost.min(1).sum() + share * (cost.max(1).sum() - cost.min(1).sum())
    task = mpq.Task(tiny(), data, data)

    # Without BatchNorm nothing can be distilled; and a script rounds to nearest.
    keeps = {"calibtip": ["rounding", "bias_correction"],
             "pd-quant": ["rounding", "activation_range", "ends"]}  # fmt: skip
    keep = keeps.get(name, ["calibration"])
    task = replace(task, rounding="nearest", ranges=RANGES) if name in keeps else task
    found = mpq.search(task, {"bit_operations": limit}, recipe=name, keep=keep)

    chosen = (found.assignment.precisions[layer] for layer in LAYERS)
    bits = [(p.weight.number.bits, p.activation.number.bits) for p in chosen]
    losses = single_layers(pairs, round_weight, score, x, labels)
    assert bits == [pairs[c] for c in least(losses, cost, limit)]


class Net(nn.Module):
    """A convolution with BatchNorm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.norm, self.head = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(16, 3)
        with torch.no_grad():
            self.norm.running_mean.copy_(torch.linspace(-1, 1, 4))  # type: ignore[union-attr]
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, 3]`` of ``[N, 2, 4, 4]``."""
        return self.head(self.norm(self.conv(x)).relu().flatten(1))  # type: ignore[no-any-return]


def test_examples_are_distilled_and_the_given_ones_measured_on() -> None:
    """Of the given ones' shape; no labels are needed."""
    recipe = replace(recipe_of("zeroq"), source="batch-norm:steps=3,num_examples=8")
    given = [torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(0))]
    task = mpq.Task(Net(), given)

    found = mpq.search(task, {"bit_operations": "0.7x:w8a8"}, recipe=recipe)
    kept = mpq.search(task, {"bit_operations": "0.7x:w8a8"}, recipe=recipe, keep=["calibration"])

    assert found.measured.num_examples == 6
    assert kept.measured.num_examples == 2
    assert found.provenance.recipe is not None
    assert found.provenance.recipe.overrides == ()
    assert kept.provenance.recipe is not None
    assert kept.provenance.recipe.overrides == (
        "calibration: the user's examples instead of batch-norm:steps=3,num_examples=8",
    )


NET = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), *head).eval()

def data():
    yield torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
"""


def test_ohq_on_what_this_machine_takes(tmp_path: Path) -> None:
    """Profiled and then searched, both from the command line."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="mpq[onnx] is not installed")
    file, device = tmp_path / "net.py", tmp_path / "this.json"
    file.write_text(NET, encoding="utf-8")
    own = ("--model", f"{file}:model", "--data", f"{file}:data")
    # Times of a test are nobody's: any interval will do.
    quick = ("--rounds", "10", "--num-networks", "3", "--max-interval", "1000000")
    limits = ("--limit", "latency=10x:w8a8", "--limit", "weight_bytes=0.9x:w8a8")
    words = ("--device", device, *limits, "--points", "2", "--output", tmp_path / "run")

    for each in (
        ("profile", *own, *quick, "--precisions", "w4a8,w8a8", "--output", device),
        ("search", "--recipe", "ohq", *own, "--eval-data", f"{file}:data", *words),
    ):
        done = CliRunner().invoke(app, list(map(str, each)))
        assert done.exit_code == 0, done.output

    found = mpq.load(tmp_path / "run")
    device_used, recipe_used = found.provenance.device, found.provenance.recipe
    assert device_used is not None
    assert (device_used.name, device_used.basis) == ("this", "measured")
    assert recipe_used is not None
    assert [x.partition(":")[0] for x in recipe_used.overrides] == ["calibration"]
    # Latencies leave room for both, and bytes for no more than one of 8 bits.
    chosen = {str(p) for p in found.assignment.precisions.values()}
    assert "w4a8" in chosen
    assert chosen <= {"w4a8", "w8a8"}
