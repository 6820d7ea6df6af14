"""Constants that are equal are stored once, and the warning about smaller files says so."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mpq.backends.onnx.qdq import FILE, OnnxQdq, _share_equal
from mpq.backends.shipping import ship
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.precision import Precision

onnx = pytest.importorskip("onnx", reason="graphs are written with mpq[onnx]")
pytest.importorskip("onnxscript", reason="torch exports with mpq[onnx]")
pytest.importorskip("onnxruntime", reason="runs the graphs; mpq[onnx]")


@pytest.mark.usefixtures("same_process")
def test_equal_norms_are_stored_once(tmp_path: Path) -> None:
    """Three of four norms' numbers are missing in the file, and nothing is said to be unread."""
    size = 20000
    model = nn.Sequential(*(nn.LayerNorm(size) for _ in range(4)), nn.Linear(size, 8)).eval()
    layer = AssignedLayer("4", "linear", (8, size), Precision.parse("w4"))

    check = ship(
        OnnxQdq(), "onnx-qdq", Assignment((layer,)), tmp_path / "out", model, [torch.randn(2, size)]
    )

    stored = [list(x.dims) for x in onnx.load(tmp_path / "out" / FILE).graph.initializer]
    assert stored.count([size]) == 2  # ones and zeros
    missing = check.predicted_bytes - check.file_bytes
    assert 0 < missing < 6 * 4 * size
    assert check.warnings == (
        f"the files are {missing} bytes smaller than predicted: its writer drops what no output "
        "needs, or stores once what is equal",
    )


def test_only_what_is_equal_in_type_and_shape_is_shared() -> None:
    """And never an output of the graph, whose name is asked for."""
    numbers = np.arange(1, 5, dtype=np.float32)
    arrays = {
        "first": numbers,
        "same": numbers,
        "square": numbers.reshape(2, 2),
        "integers": numbers.view(np.int32),
        "other": numbers + 1,
        "end": numbers,
    }
    names = list(arrays)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Sum", names, ["sum"])],
        "graph",
        [],
        [onnx.helper.make_tensor_value_info("end", onnx.TensorProto.FLOAT, [4])],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )

    _share_equal(graph)

    assert list(graph.node[0].input) == ["first", "first", "square", "integers", "other", "end"]
    assert [x.name for x in graph.initializer] == names
