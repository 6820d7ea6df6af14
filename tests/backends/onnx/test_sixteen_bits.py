"""Inputs in integers of 16 bits in standard ONNX: what its readers make of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import mpq
from mpq.backends.onnx.graph import InputCodes, Writer
from mpq.backends.onnx.instantiate import stamp
from mpq.backends.onnx.qdq import FILE, OnnxQdq
from mpq.backends.onnx.session import AS_WRITTEN, outputs_of, session_of
from mpq.backends.openvino import EXACT, OpenVino
from mpq.backends.shipping import ship
from mpq.errors import PrecisionError
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.formats import NUMBER_FORMATS
from mpq.quantization.grid import Grid
from mpq.quantization.precision import Precision
from tests.backends.onnx.networks import Images, Words, examples, in_turn, made

onnx = pytest.importorskip("onnx", reason="graphs are written with mpq[onnx]")
pytest.importorskip("onnxscript", reason="torch exports with mpq[onnx]")
pytest.importorskip("onnxruntime", reason="runs the graphs; mpq[onnx]")


@pytest.mark.parametrize(("symmetric", "point"), [(True, 0), (False, 0), (False, 40_001)])
def test_onnx_runtime_gives_the_codes_of_the_simulation(symmetric: bool, point: int) -> None:
    """Every code, what lies between two of them, and what saturates, at scales of any digits."""
    scale = torch.tensor([0.00037])
    grid = Grid(
        NUMBER_FORMATS["int16"], scale, torch.tensor([point], dtype=torch.int32), symmetric,
        OnnxQdq.numerics.input_rounding,
    )  # fmt: skip
    x = torch.linspace(-100_000, 100_000, 400_001)[None] * scale
    codes, writer = InputCodes.of(grid), Writer()
    stored = writer.quantize("x", codes, "codes")
    writer.dequantize(stored, codes, "numbers")
    kind = onnx.TensorProto.INT16 if symmetric else onnx.TensorProto.UINT16
    value = onnx.helper.make_tensor_value_info
    ends = [value("codes", kind, [1, 400_001]), value("numbers", 1, [1, 400_001])]
    graph = onnx.helper.make_graph(
        writer.nodes, "g", [value("x", 1, [1, 400_001])], ends, writer.constants
    )
    made_of = stamp(onnx.helper.make_model(graph), 21, 10)

    session = session_of(made_of.SerializeToString(), AS_WRITTEN)
    found, numbers = outputs_of(session, {"x": x.numpy()})

    assert found.dtype == (np.int16 if symmetric else np.uint16)
    np.testing.assert_array_equal(found.astype(np.float32), grid.codes(x).numpy())
    np.testing.assert_array_equal(numbers, grid.round(x).numpy())
    assert len(np.unique(found)) == 65536


def test_a_file_of_16_bit_inputs_equals_the_simulation(tmp_path: Path) -> None:
    """In a process of its own; its inputs are the standard's types, and its bytes as promised."""
    model = made(Images)
    found = in_turn(model, OnnxQdq(), ("w8aint16", "w4aint16s", "w2zaint16", "w8a8"))

    check = ship(OnnxQdq(), "onnx-qdq", found, tmp_path / "out", model, examples(model))

    assert check.max_weight_difference == 0.0
    assert check.max_difference < 1e-5 * check.spread
    model_proto = onnx.load(tmp_path / "out" / FILE)
    constants = {x.name: x for x in model_proto.graph.initializer}
    points = {
        onnx.TensorProto.DataType.Name(constants[node.input[2]].data_type)
        for node in model_proto.graph.node
        if node.op_type == "QuantizeLinear"
    }
    assert points == {"UINT16", "INT16", "UINT8"}
    assert model_proto.opset_import[0].version >= 21
    told = json.loads((tmp_path / "out" / "export.json").read_text())
    assert told["max_difference"] == check.max_difference


def test_bytes_of_an_input_are_a_scale_and_a_code() -> None:
    """6 of 16 bits, 5 of 8, none of a16, which is a cast."""
    layer = AssignedLayer("fc", "linear", (8, 32), Precision.parse("w8"))
    bits = {
        text: OnnxQdq().stored_bits(layer, Precision.parse(text))
        for text in ("w8aint16", "w8aint16s", "w8a8", "w8a16")
    }

    assert {text: b - bits["w8a16"] for text, b in bits.items()} == {
        "w8aint16": 48, "w8aint16s": 48, "w8a8": 40, "w8a16": 0,
    }  # fmt: skip


@pytest.mark.usefixtures("same_process")
def test_openvino_leaves_them_out_and_its_target_refuses_them(tmp_path: Path) -> None:
    """It loads the file that ONNX Runtime runs as simulated, and computes it without rounding."""
    openvino = pytest.importorskip("openvino")
    model = made(Words)
    found, unrounded = (in_turn(model, OnnxQdq(), (text,)) for text in ("w4aint16", "w4"))
    check = ship(OnnxQdq(), "onnx-qdq", found, tmp_path / "out", model, examples(model))
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(tmp_path / "out" / FILE), "CPU", EXACT)
    x = torch.cat(examples(model))

    read = torch.cat([torch.from_numpy(compiled([one[None].numpy()])[0].copy()) for one in x])

    with torch.no_grad():
        rounded, left = (mpq.quantize(model, y)(x) for y in (found, unrounded))
    assert float((read - left).abs().max()) < 1e-5 * check.spread
    assert check.max_difference < 1e-3 * check.spread
    # Some numbers lie outside of the range that was calibrated, and should saturate.
    assert float((read - rounded).abs().max()) > 1e-2 * check.spread
    with pytest.raises(PrecisionError, match=r"at w4aint16: .*rounds no inputs to int16"):
        OpenVino().check(found.layers)
