"""TensorRT's rules of explicit quantization, on files that break one each."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from mpq.backends.onnx.tensorrt import lint
from mpq.cli.__main__ import app
from mpq.errors import FileFormatError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")


def constant(name: str, kind: str, values: Any) -> Any:
    """A constant of an element type."""
    array = np.asarray(values)
    number = getattr(onnx.TensorProto, kind)
    return onnx.helper.make_tensor(name, number, array.shape, array.ravel().tolist())


def product(folder: Path, **changed: Any) -> Path:
    """``x [4, 64] -> Q -> DQ -> MatMul`` with a weight behind a DQ; symmetric int8 by itself."""
    parts: dict[str, Any] = {
        "xs": constant("xs", "FLOAT", 0.5),
        "xz": constant("xz", "INT8", 0),
        "w": constant("w", "INT8", np.ones((64, 8))),
        "ws": constant("ws", "FLOAT", np.ones(8)),
    }
    attributes = changed.pop("attributes", {"axis": 1})
    reads, between = changed.pop("reads", "xd"), changed.pop("between", None)
    parts |= changed
    node = onnx.helper.make_node
    zero = ["wz"] if "wz" in parts else []
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["xq"], "q"),
        node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"], "dq"),
        node("DequantizeLinear", ["w", "ws", *zero], ["wd"], "weight", **attributes),
        *([node(between, ["wd"], ["we"], "between", perm=[0, 1])] if between else []),
        node("MatMul", [reads, "we" if between else "wd"], ["y"], "product"),
    ]
    floats = onnx.TensorProto.FLOAT
    ends = [onnx.helper.make_tensor_value_info(n, floats, None) for n in ("x", "y")]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], list(parts.values()))
    onnx.save(onnx.helper.make_model(graph), folder / "net.onnx")
    return folder / "net.onnx"


def test_symmetric_int8_keeps_the_rules(tmp_path: Path) -> None:
    """Nothing is found."""
    assert lint(product(tmp_path)) == ()


BLOCKS = {"axis": 0, "block_size": 32}


@pytest.mark.parametrize(
    ("changed", "node", "is_refused", "text"),
    [
        ({"xz": constant("xz", "UINT8", 0)}, "q", True, "these are UINT8"),
        ({"xz": constant("xz", "INT16", 0)}, "q", True, "these are INT16"),
        ({"xz": constant("xz", "INT8", 3)}, "q", True, "zero points are 0"),
        ({"xs": constant("xs", "FLOAT", -1.0)}, "q", True, "scales are positive"),
        ({"xs": constant("xs", "FLOAT", np.ones(64))}, "q", True, "one scale"),
        ({"w": constant("w", "UINT4", np.ones((64, 8)))}, "weight", True, "these are UINT4"),
        ({"wz": constant("wz", "INT8", np.ones(8))}, "weight", True, "zero points are 0"),
        (
            {
                "w": constant("w", "INT4", np.ones((64, 8))), "attributes": BLOCKS,
                "ws": constant("ws", "FLOAT", np.ones((2, 8))),
            },
            "weight", True, "blocks of 64 or 128; got blocks of 32",
        ),
        (
            {"w": constant("w", "INT4", np.ones((64, 8)))},
            "product", False, "INT8 and its weight INT4",
        ),
        ({"reads": "x"}, "product", False, "its weight is INT8 and its input is not"),
        ({"between": "Transpose"}, "product", False, "a Transpose stands between"),
    ],
)  # fmt: skip
def test_a_broken_rule_is_named(
    changed: dict[str, Any], node: str, is_refused: bool, text: str, tmp_path: Path
) -> None:
    """With the node, and whether the file is refused or a fusion breaks."""
    found = lint(product(tmp_path, **changed))

    assert any(x.node == node and x.is_refused == is_refused and text in x.text for x in found), (
        found
    )


def test_the_command_says_that_nothing_was_run(tmp_path: Path) -> None:
    """For people and for programs; what is no ONNX file is one sentence."""
    bad = product(tmp_path, xz=constant("xz", "UINT8", 0))

    told = CliRunner().invoke(app, ["targets", "--lint", str(bad)])
    as_json = CliRunner().invoke(app, ["targets", "--lint", str(bad), "--json"])

    assert "refused: q: quantized numbers are INT8" in told.stdout
    assert "not run here" in told.stdout
    assert {x["node"] for x in json.loads(as_json.stdout)} == {"q", "dq", "product"}
    (tmp_path / "no.onnx").write_text("no")
    with pytest.raises(FileFormatError, match="is no ONNX file"):
        lint(tmp_path / "no.onnx")
