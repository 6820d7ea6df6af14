"""Exports cut batches where searches do: along another axis, or not at all where rows mix."""

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


class Two(nn.Module):
    """Two layers with something between rows that each kind defines."""

    def __init__(self, inputs: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(inputs, 16)
        self.last = nn.Linear(16, 4)


class Statistics(Two):
    """Statistics of the batch in evaluation mode, too."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        found: Tensor = self.last(torch.relu((h - h.mean(0)) / (h.std(0) + 0.1)))
        return found


class Contrast(Two):
    """Similarities of all pairs of rows."""

    def forward(self, x: Tensor) -> Tensor:
        found = nn.functional.normalize(self.last(torch.relu(self.first(x))), dim=-1)
        return 5 * found @ found.t()


class Graph(Two):
    """Nodes and their neighbours."""

    def forward(self, x: Tensor, neighbours: Tensor) -> Tensor:
        found: Tensor = neighbours @ self.last(torch.relu(neighbours @ self.first(x)))
        return found


class Sequence(nn.Module):
    """``[T, N, C]`` to ``[T, N, 5]``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.encoder(x))
        return found


class LastStep(nn.Module):
    """``[T, N, C]`` to ``[N, 5]``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = nn.LSTM(8, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.cell(x)[0][-1])
        return found


def drawn(*shapes: tuple[int, ...]) -> list[Tensor]:
    """Random inputs."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(*shape, generator=generator) for shape in shapes]


def graphs(*sizes: int) -> list[Any]:
    """Graphs of so many nodes."""
    return [
        ((x, torch.softmax(y, -1)), None)
        for x, y in (drawn((size, 8), (size, size)) for size in sizes)
    ]


def assigned(model: nn.Module, data: list[Any], precision: str) -> mpq.Assignment:
    """Every layer at one precision."""
    task = mpq.Task(model, data, data, candidates=[precision])
    return mpq.search(task, {"effective_bits": 33}, sensitivity="weight-error").assignment


@pytest.mark.parametrize(
    ("model", "data", "count", "is_whole"),
    [
        (Statistics(), drawn((24, 8), (24, 8)), 2, True),
        (Contrast(), drawn((16, 8), (16, 8)), 2, True),
        (Graph(), graphs(16, 16), 2, True),
        # The file has the shapes of the first one.
        (Graph(), graphs(16, 12), 1, True),
        (Sequence(), drawn((7, 6, 16), (7, 6, 16)), 2, True),
        (LastStep(), drawn((7, 6, 8), (7, 6, 8)), 12, False),
        # As many steps as sequences: nobody can tell, and the batch is one example.
        (LastStep(), drawn((6, 6, 8),), 1, True),
    ],
)  # fmt: skip
def test_examples_are_those_of_the_search(
    same_process: None, tmp_path: Path, model: nn.Module, data: Any, count: int, is_whole: bool
) -> None:
    """All of a batch at once where its rows mix; else a row each, wherever they lie."""
    found = assigned(model.eval(), data, "w4")

    made = mpq.export(found, tmp_path / "out", "onnx-qdq", model, data)

    told = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (told["num_examples"], told["examples_are_batches"]) == (count, is_whole)
    assert told["max_difference"] < 1e-4 * told["spread"]
    assert ("their rows change each other's outputs" in made.verdict) == is_whole


def test_what_runs_one_row_at_a_time_refuses_rows_that_mix(tmp_path: Path) -> None:
    """Portable C has no batches: what to do is said, and nothing is written."""
    model, data = Statistics().eval(), drawn((16, 8))
    found = assigned(model, data, "w8a8")

    with pytest.raises(ModelError, match="c: rows of this network's batches change each other's"):
        mpq.export(found, tmp_path / "out", "c", model, data)

    assert not list(tmp_path.iterdir())


def test_another_process_is_given_whole_batches(tmp_path: Path) -> None:
    """The runtime's own process cuts them as little as the one that compares."""
    model, data = Graph().eval(), graphs(16, 16)
    found = assigned(model, data, "w4")

    mpq.export(found, tmp_path / "out", "onnx-qdq", model, data)

    assert json.loads((tmp_path / "out" / "export.json").read_text())["num_examples"] == 2
