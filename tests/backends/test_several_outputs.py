"""Networks with several outputs: all are in the file and compared, those not scored are named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq.errors import ModelError

pytest.importorskip("onnxscript", reason="torch exports with mpq[onnx]")
pytest.importorskip("onnxruntime", reason="runs the graphs; mpq[onnx]")
pytestmark = pytest.mark.filterwarnings("ignore")
DATA = [torch.randn(16, 8, generator=torch.Generator().manual_seed(1))]


class Heads(nn.Module):
    """A detector's two heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.classes, self.box = nn.Linear(8, 16), nn.Linear(16, 5), nn.Linear(16, 12)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Scores, and three boxes."""
        hidden = torch.relu(self.body(x))
        return {"logits": self.classes(hidden), "boxes": self.box(hidden).unflatten(1, (3, 4))}


class Images(Heads):
    """The same, with the second head in a list of dicts."""

    def forward(self, x: Tensor) -> Any:
        """An entry an image."""
        found = super().forward(x)
        return {"logits": found["logits"], "images": [{"boxes": b} for b in found["boxes"]]}


def exported(
    model: nn.Module, metric: str, folder: Path, to: str = "onnx-qdq", precision: str = "w4"
) -> tuple[mpq.backends.ExportedFile, Any]:
    """What is written with every layer at one precision, and its export.json."""
    task = mpq.Task(model.eval(), DATA, DATA, candidates=[precision], metric=metric)
    found = mpq.search(task, {"effective_bits": 33}, sensitivity="weight-error").assignment
    made = mpq.export(found, folder / "out", to, model, DATA)
    return made, json.loads((folder / "out" / "export.json").read_text())


@pytest.mark.parametrize("to", ["onnx-qdq", "openvino"])
@pytest.mark.parametrize(
    ("metric", "first", "other", "unscored"),
    [
        ("kl", "output", "boxes", ["boxes"]),
        ("outputs:terms=logits", "logits", "boxes", ["boxes"]),
        ("outputs:terms=boxes", "boxes", "logits", ["logits"]),
        ("outputs:terms=logits+boxes", "logits", "boxes", []),
    ],
)
def test_every_output_is_compared_and_what_was_not_scored_is_named(
    same_process: None,
    tmp_path: Path,
    to: str,
    metric: str,
    first: str,
    other: str,
    unscored: list[str],
) -> None:
    """Whatever the search looked at; the head that it did not look at is in the file."""
    if to == "openvino":
        pytest.importorskip("openvino")
    made, told = exported(Heads(), metric, tmp_path, to)

    assert told["num_layers"] == 3
    assert told["unscored"] == unscored
    assert list(told["max_differences_of_others"]) == [other]
    assert told["max_differences_of_others"][other] < 1e-5
    assert (f"{other} (not scored by the search)" in made.verdict) == bool(unscored)
    if to == "onnx-qdq":
        import onnx

        graph = onnx.load(tmp_path / "out" / "network.onnx").graph
        assert [value.name for value in graph.output] == [first, other]


def test_the_runtime_of_its_own_process_tells_all_outputs(tmp_path: Path) -> None:
    """Also those of a list of images, all of which lie under one path."""
    _, told = exported(Images(), "kl", tmp_path)

    assert list(told["max_differences_of_others"]) == ["images.*.boxes"]
    assert told["warnings"] == []


@pytest.mark.parametrize("precision", ["w4", "w4a8s"])
@pytest.mark.parametrize("at", [slice(None), (slice(None), 2, 3)], ids=["all", "one of twelve"])
def test_an_output_that_differs_is_named(
    same_process: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    at: Any,
) -> None:
    """Though nobody scored it, and though most of each example is right; nothing is written."""
    from mpq.backends.onnx.loaded import LoadedByOnnxRuntime

    right = LoadedByOnnxRuntime.run_all

    def wrong(self: LoadedByOnnxRuntime, batch: Any) -> Any:
        found = dict(right(self, batch))
        boxes = found["boxes"].clone()
        boxes[at] += 0.1
        return found | {"boxes": boxes}

    monkeypatch.setattr(LoadedByOnnxRuntime, "run_all", wrong)
    with pytest.raises(ModelError, match="output boxes differs from the simulation's by 0.1"):
        exported(Heads(), "kl", tmp_path, precision=precision)

    assert not list(tmp_path.iterdir())
