"""Operands between layers in a file of standard operators."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq.network.layer import OPERANDS


class Net(nn.Module):
    """Attention over rows, and an addition."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project, self.head = nn.Linear(4, 8), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        query, key = self.project(x).chunk(2, dim=-1)
        x = x + nn.functional.scaled_dot_product_attention(query, key, x)
        found: Tensor = self.head(x.mean(1))
        return found


def test_the_file_rounds_what_operations_read(tmp_path: Path) -> None:
    """Each between its own two operators; ONNX Runtime computes what the simulation does."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    draws = torch.Generator().manual_seed(1)
    data = [torch.randn(8, 5, 4, generator=draws) for _ in range(2)]
    task = mpq.Task(
        Net().eval(), data, data, candidates=["w8a8"], rounding="nearest", activations="all",
        to="onnx-qdq",
    )  # fmt: skip
    result = mpq.search(task, {"weight_bytes": "1x:w8a8"}, sensitivity="sketch")

    # It refuses a file that is not the simulation.
    mpq.export(result.assignment, tmp_path / "file", "onnx-qdq", Net().eval(), data)

    names = [x.name for x in result.assignment.layers if x.kind in OPERANDS]
    assert names == [
        "qk.query", "qk.key", "pv.probabilities", "pv.values", "add.left", "add.right",
    ]  # fmt: skip
    nodes = onnx.load(tmp_path / "file" / "network.onnx").graph.node
    made = {node.output[0]: node for node in nodes}

    def is_rounded(tensor: str) -> bool:
        node = made.get(tensor)
        while node is not None and node.op_type in ("Identity", "Transpose", "Reshape"):
            node = made.get(node.input[0])
        return node is not None and node.op_type == "DequantizeLinear"

    products = [node for node in nodes if node.op_type == "MatMul"]
    assert sum(all(map(is_rounded, node.input)) for node in products) == len(products) == 4
    additions = [node for node in nodes if node.op_type == "Add"]
    assert sum(all(map(is_rounded, node.input)) for node in additions) == 1
