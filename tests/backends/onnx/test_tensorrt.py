"""TensorRT's rules of explicit quantization, on files that break one each."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import mpq
from mpq.backends.onnx.tensorrt import lint
from mpq.cli.__main__ import app
from mpq.errors import FileFormatError
from tests.backends.negated import negated

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


def shortcut(folder: Path, between: tuple[str, ...], ends: str, beside: str = "x") -> Path:
    """``Q -> DQ -> Conv``, added to ``beside``, then ``between``, then a node that ``ends``."""
    node = onnx.helper.make_node
    pair = [
        node("QuantizeLinear", ["x", "s", "z"], ["xq"], "q"),
        node("DequantizeLinear", ["xq", "s", "z"], ["xd"], "dq"),
        node("DequantizeLinear", ["w", "s", "z"], ["wd"], "weight"),
        node("Conv", ["xd", "wd"], ["y"], "convolution"),
        node("Add", [beside, "y"], ["0"], "sum"),
    ]
    on = [node(kind, [str(i)], [str(i + 1)], kind) for i, kind in enumerate(between)]
    last = str(len(between))
    more = ["wd"] if ends == "Conv" else ["s", "z"] if ends == "QuantizeLinear" else []
    after = [node(ends, [last, *more], ["e"], "end")]
    if ends == "QuantizeLinear":
        after += [node("DequantizeLinear", ["e", "s", "z"], ["f"], "end decoded")]
    constants = [
        constant("s", "FLOAT", 0.5), constant("z", "INT8", 0),
        constant("w", "INT8", np.ones((4, 4, 1, 1))), constant("b", "FLOAT", np.ones((1, 4, 1, 1))),
    ]  # fmt: skip
    floats = onnx.TensorProto.FLOAT
    sides = [
        onnx.helper.make_tensor_value_info(n, floats, None)
        for n in ("x", "f" if ends == "QuantizeLinear" else "e")
    ]
    graph = onnx.helper.make_graph([*pair, *on, *after], "g", sides[:1], sides[1:], constants)
    onnx.save(onnx.helper.make_model(graph), folder / "net.onnx")
    return folder / "net.onnx"


@pytest.mark.parametrize(
    ("between", "ends", "beside", "breaks"),
    [
        ((), "QuantizeLinear", "x", True),
        (("Relu",), "QuantizeLinear", "x", True),
        (("Relu", "GlobalAveragePool", "Flatten"), "QuantizeLinear", "x", True),
        # The shortcut has Q/DQ; it is a bias; nothing is quantized again; another kernel is next.
        (("Relu",), "QuantizeLinear", "xd", False),
        (("Relu",), "QuantizeLinear", "b", False),
        (("Relu",), "Softmax", "x", False),
        (("Relu",), "Conv", "x", False),
    ],
)
def test_a_shortcut_in_floating_point_is_named(
    between: tuple[str, ...], ends: str, beside: str, breaks: bool, tmp_path: Path
) -> None:
    """Wherever the numbers are quantized next: the file is taken, and a fusion breaks."""
    found = [x for x in lint(shortcut(tmp_path, between, ends, beside)) if x.node == "sum"]

    assert [x.is_refused for x in found] == [False] * breaks
    assert all("Q/DQ belongs on the shortcut" in x.text for x in found)


class Residual(nn.Module):
    """A shortcut around a convolution, a ReLU, a mean and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.head((x + self.conv(x)).relu().mean((2, 3)))
        return found


@pytest.mark.usefixtures("same_process")
def test_a_residual_network_that_was_exported_has_its_shortcut_named(tmp_path: Path) -> None:
    """All of its layers read symmetric int8, and the sum is of floating-point numbers."""
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model, data = Residual().eval(), [torch.randn(8, 4, 6, 6)]
    # To nearest, as scales of either sign would be refused.
    task = mpq.Task(model, data, data, candidates=["w8a8s"], rounding="nearest")
    found = mpq.search(task, {"effective_bits": 33}, sensitivity="weight-error").assignment
    mpq.export(found, tmp_path / "out", "onnx-qdq", model, data)

    (file,) = (tmp_path / "out").glob("*.onnx")
    (told,) = lint(file)
    assert not told.is_refused
    assert "Q/DQ belongs on the shortcut" in told.text


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize(("spelling", "is_refused"), [("w7a8s", False), ("w8a8s", True)])
def test_scales_that_were_negative_are_positive_where_codes_fit(
    spelling: str, is_refused: bool, tmp_path: Path
) -> None:
    """In 8 bits those of 7 bits do; of 8 bits the lowest has no place with another sign."""
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(32, 8)).eval(), [torch.randn(16, 32)]
    task = mpq.Task(model, data, data, to="onnx-qdq", candidates=[spelling])
    found = mpq.search(task, {"effective_bits": 33}, sensitivity="weight-error").assignment
    found = negated(model, found)
    assert found.weights is not None
    assert (found.weights.by_layer["0"].scale < 0).any()

    mpq.export(found, tmp_path / "out", "onnx-qdq", model, data)

    told = [x.text for x in lint(tmp_path / "out" / "network.onnx") if x.is_refused]
    assert told == (["scales are positive"] if is_refused else [])


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
