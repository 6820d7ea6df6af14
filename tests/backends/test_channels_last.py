"""Weights and inputs in the memory format that convolutions are fastest in, exported alike."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mpq

pytest.importorskip("onnxscript", reason="torch exports with mpq[onnx]")
pytest.importorskip("onnxruntime", reason="runs the graphs; mpq[onnx]")
pytestmark = pytest.mark.filterwarnings("ignore")
LAST, PLAIN = torch.channels_last, torch.contiguous_format


class Convolutions(nn.Module):
    """Plain, depthwise and grouped ones, and a linear layer over the channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.grouped = nn.Conv2d(16, 24, 3, stride=2, padding=1, groups=4)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.norm(self.stem(x)))))
        found: Tensor = self.head(torch.relu(self.grouped(x)).permute(0, 2, 3, 1)).mean((1, 2))
        return found


@pytest.mark.parametrize(("weights", "inputs"), [(True, True), (True, False), (False, True)])
def test_channels_last_is_exported_as_it_is_simulated(
    same_process: None, tmp_path: Path, weights: bool, inputs: bool
) -> None:
    """At w8a8, whose rounding would show numbers in another order."""
    images = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    data = [images.to(memory_format=LAST) if inputs else images]
    model = Convolutions().eval()
    for parameter in model.parameters() if weights else ():
        parameter.data = parameter.data.to(memory_format=LAST if parameter.ndim == 4 else PLAIN)
    task = mpq.Task(model, data, data, candidates=["w8a8"])
    found = mpq.search(task, {"effective_bits": 33}, sensitivity="weight-error").assignment

    mpq.export(found, tmp_path / "out", "onnx-qdq", model, data)

    told = json.loads((tmp_path / "out" / "export.json").read_text())
    assert told["num_layers"] == 4
    assert told["median_difference"] < 1e-4 * told["spread"]
