"""A file is refused by the layer that is written wrongly, however near its outputs are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq.backends.onnx.instantiate import fill as original
from mpq.errors import ModelError
from tests.backends.onnx.assigned import assigned

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript", reason="torch exports with mpq[onnx]")
pytest.importorskip("onnxruntime", reason="runs the graphs; mpq[onnx]")
pytestmark = pytest.mark.usefixtures("one_trace_per_network")


class Every(nn.Module):
    """A layer of each kernel, one of them called twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.ids, self.conv = nn.Embedding(9, 16), nn.Conv1d(16, 16, 3, padding=1)
        self.twice, self.packed = nn.Linear(16, 16), nn.Linear(16, 16)
        self.plain = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, 5]``."""
        x = self.conv(self.ids(x).mT).relu().mT
        x = self.packed(self.twice(self.twice(x).relu()).relu()).mean(1)
        found: Tensor = self.plain(x)
        return found


PRECISIONS = {"": "w7a8", "packed": "w4g16a8d", "plain": "fp32"}


def exported(path: Path) -> Any:
    """The network as a file."""
    data = [torch.randint(9, (4, 6), generator=torch.Generator().manual_seed(0))]
    model = Every().eval()
    return mpq.export(assigned(model, data, PRECISIONS), path, "onnx", model, data)


def constant_of(graph: Any, operator: str, layer: str, place: int) -> Any:
    """An input of the nearest node of a kind before a layer's output that reads constants."""
    (calls,) = (json.loads(x.value) for x in graph.metadata_props if x.key == "mpq_calls")
    makers = {name: node for node in graph.graph.node for name in node.output}
    constants = {x.name: x for x in graph.graph.initializer}
    waiting = [makers[calls[layer][0][1]]]
    while waiting:
        node = waiting.pop(0)
        is_stored = operator != "DequantizeLinear" or node.input[0] in constants
        if node.op_type == operator and is_stored and node.input[place] in constants:
            return constants[node.input[place]]
        waiting += [makers[name] for name in node.input if name in makers]
    raise AssertionError(operator)


def scaled(factor: float) -> Callable[[Any], Any]:
    """One number of an array times a factor."""

    def change(array: Any) -> Any:
        changed = array.copy()
        changed.reshape(-1)[0] = changed.reshape(-1)[0] * factor
        return changed

    return change


def test_a_file_is_told_to_be_as_simulated(tmp_path: Path) -> None:
    """Layer by layer, beside how far the outputs are by what kernels round."""
    made = exported(tmp_path / "net.onnx")

    assert "every layer by itself as simulated" in made.verdict
    assert not made.verdict.startswith("warning")


class Joined(nn.Module):
    """A table that is looked up twice by the same ids, and then by others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.ids, self.plain = nn.Embedding(9, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, 5]``."""
        found: Tensor = self.plain((self.ids(x) * self.ids(x) + self.ids(8 - x)).mean(1))
        return found


def test_calls_that_the_exporter_joins_are_no_difference(tmp_path: Path) -> None:
    """Two of three lookups are one in the file: none is taken for another."""
    data = [torch.randint(9, (4, 6), generator=torch.Generator().manual_seed(0))]
    model = Joined().eval()

    made = mpq.export(
        assigned(model, data, {"": "w8a8"}), tmp_path / "net.onnx", "onnx", model, data
    )

    assert "every layer by itself as simulated" in made.verdict


@pytest.mark.parametrize(
    ("layer", "operator", "place", "change"),
    [
        ("conv", "DequantizeLinear", 1, scaled(1.01)),
        ("twice", "DequantizeLinear", 1, scaled(-1.0)),
        ("packed", "MatMulNBits", 2, scaled(1.01)),
        ("packed", "Add", 1, scaled(1.01)),
        ("plain", "Add", 1, scaled(1.01)),
        ("ids", "Mul", 1, None),
    ],
)
def test_one_number_that_is_wrong_is_found(
    layer: str,
    operator: str,
    place: int,
    change: Callable[[Any], Any] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A scale, its sign, a bias: by the layer's name, and no file is there."""

    def fill(*given: Any) -> Any:
        graph = original(*given)
        if change is None:  # a table whose scales are looked up
            gathers = [x for x in graph.graph.node if x.op_type == "Gather"]
            names = {name for node in gathers for name in node.input}
            (found,) = (x for x in graph.graph.initializer if x.name in names and x.data_type == 1)
        else:
            found = constant_of(graph, operator, layer, place)
        array = onnx.numpy_helper.to_array(found)
        new = np.roll(array, 1) if change is None else change(array)
        found.CopyFrom(onnx.numpy_helper.from_array(new, found.name))
        return graph

    monkeypatch.setattr("mpq.backends.onnx.export.fill", fill)

    with pytest.raises(ModelError, match=f"onnx: layer '{layer}' computes in the file something"):
        exported(tmp_path / "net.onnx")

    assert not (tmp_path / "net.onnx").exists()
