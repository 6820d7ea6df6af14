"""What was searched with several outputs or with fixed generators, exported and evaluated."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import mpq
from mpq.backends.onnx.export import _verdict
from mpq.cli.__main__ import app
from mpq.errors import ModelError
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.precision import Precision

onnx = pytest.importorskip("onnx", reason="graphs are written with mpq[onnx]")
pytest.importorskip("onnxscript", reason="torch exports with mpq[onnx]")
pytest.importorskip("onnxruntime", reason="runs the graphs; mpq[onnx]")


class Detector(nn.Module):
    """Classes and six boxes for every image, in a list of dicts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.cls, self.box = nn.Linear(16, 32), nn.Linear(32, 5), nn.Linear(32, 24)

    def forward(self, x: Tensor) -> Any:
        """One dict an image."""
        hidden = torch.relu(self.body(x))
        boxes = self.box(hidden).view(-1, 6, 4)
        return [{"logits": c, "boxes": b} for c, b in zip(self.cls(hidden), boxes, strict=True)]


class Masked(Detector):
    """Hides inputs at random."""

    def forward(self, x: Tensor) -> Any:
        """Logits."""
        return self.cls(torch.relu(self.body(x * (torch.rand(16) > 0.3))))


class Routed(nn.Module):
    """Every row by the expert that a gate chooses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate = nn.Linear(16, 3)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Rows of a mask."""
        best, y = self.gate(x).argmax(-1), torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            chosen = best == index
            if chosen.any():
                y[chosen] = expert(x[chosen])
        return y


class Network(nn.Module):
    """Experts, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.moe, self.head = Routed(), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.head(self.moe(x))
        return found


def data() -> list[Tensor]:
    """Four batches of 8."""
    return [torch.randn(8, 16, generator=torch.Generator().manual_seed(i)) for i in range(4)]


def detector() -> nn.Module:
    """In evaluation mode."""
    return Detector().eval()


def masked() -> nn.Module:
    """In evaluation mode."""
    return Masked().eval()


def command(name: str, path: Path, net: Callable[[], nn.Module], *more: str) -> Any:
    """Runs one on a network of this file."""
    given = [*([] if name == "search" else [str(path)]), "--model", f"{__file__}:{net.__name__}"]
    return CliRunner().invoke(app, [name, *given, "--data", f"{__file__}:data", *more])


def searched(folder: Path, net: Callable[[], nn.Module], *more: str) -> Path:
    """The assignment of a search on the command line."""
    asked = ("--precisions", "w4a8,w7a8", "--limit", "effective_bits=6", "--output", str(folder))
    ran = command("search", folder, net, *asked, *more)
    assert ran.exit_code == 0, ran.output
    return folder / "assignment.json"


def test_a_detectors_search_is_exported_and_evaluated_without_repetition(tmp_path: Path) -> None:
    """The file has an output for each path; what is measured is what the search measured."""
    outputs = ("--outputs", "*.logits=kl,*.boxes*5")
    path, file = searched(tmp_path / "run", detector, *outputs), tmp_path / "net.onnx"

    to = ("--to", "onnx:batch_size=4", "--output", str(file))
    exported, evaluated = (
        command("export", path, detector, *to),
        command("evaluate", path, detector),
    )

    assert exported.exit_code == 0, exported.output
    assert [x.name for x in onnx.load(file).graph.output] == ["*.logits", "*.boxes"]
    assert "outputs_weighted" in json.loads(evaluated.stdout)["quantized"]
    other = command("evaluate", path, detector, "--outputs", "*.boxes=cosine")
    given = json.loads(other.stdout)["quantized"]["outputs_weighted"]
    assert given != json.loads(evaluated.stdout)["quantized"]["outputs_weighted"]


def test_a_file_without_a_metric_takes_the_option(tmp_path: Path) -> None:
    """As those of earlier versions; without it the refusal lists the outputs."""
    path = searched(tmp_path / "run", detector, "--outputs", "*.logits")
    written = json.loads(path.read_text())
    del written["metadata"]["metric"], written["run_id"]
    old = tmp_path / "old.json"
    old.write_text(json.dumps(written))
    to = ("--to", "onnx", "--output", str(tmp_path / "net.onnx"))

    refused = command("export", old, detector, *to)
    made = command("export", old, detector, *to, "--outputs", "*.logits")

    assert refused.exit_code == 2
    assert "it has the outputs *.logits, *.boxes" in refused.stderr
    assert "--outputs '*.logits,*.boxes'" in refused.stderr
    assert made.exit_code == 0, made.output


def test_a_network_that_draws_is_evaluated_and_its_graph_refused(tmp_path: Path) -> None:
    """The seed is the search's; a runtime would draw other numbers, and that is said."""
    path = searched(tmp_path / "run", masked, "--allow-randomness", "3")

    evaluated = command("evaluate", path, masked)
    to = ("--to", "onnx", "--output", str(tmp_path / "net.onnx"))
    exported = command("export", path, masked, *to)

    assert evaluated.exit_code == 0, evaluated.output
    assert exported.exit_code == 2
    assert "the network draws numbers, and a runtime draws others" in exported.stderr
    assert not (tmp_path / "net.onnx").exists()


def test_experts_chosen_by_numbers_are_refused_by_the_modules_name() -> None:
    """With what can be done, and none of torch's own words."""
    net = Network().eval()
    task = mpq.Task(net, data(), data(), candidates=["w7a8"])
    found = mpq.search(task, {"effective_bits": 20}, sensitivity="weight-error").assignment

    with pytest.raises(ModelError, match="in the module 'moe' depends on") as told:
        mpq.export(found, "net.onnx", "onnx", net, data())

    assert "Eq(" not in str(told.value)


@pytest.mark.parametrize(
    ("precision", "is_told"), [("w8a8", True), ("w7a8", False), ("w8g16", False), ("fp32", False)]
)
def test_saturation_is_told_where_it_can_be(precision: str, is_told: bool) -> None:
    """Of a large deviation, only products of 8-bit weights and int8 activations."""
    layer = AssignedLayer("fc", "linear", (4, 16), Precision.parse(precision))

    verdict = _verdict(2.0, Assignment((layer,)))

    assert ("take" in verdict) == is_told
    assert verdict.startswith("warning: ONNX Runtime here: outputs at most 2 standard deviations")
    assert not _verdict(0.4, Assignment((layer,))).startswith("warning")
