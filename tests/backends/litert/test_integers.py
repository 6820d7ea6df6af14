"""What becomes of operators, one by one: no network is converted here."""

from typing import Any

import numpy as np
import pytest
import torch

from mpq.backends.litert.barriers import BOUND, remove_barriers
from mpq.backends.litert.graph import Form, Graph, kernels_of
from mpq.backends.litert.integers import (
    StaticLayer,
    StaticPass,
    activation_of,
    check_bias,
    following_form,
    largest_bias,
    with_room_for,
)
from mpq.backends.litert.requantizing import Rounding
from mpq.backends.litert.rounded import Output, form_of, measured_forms
from mpq.errors import ModelError
from mpq.network.examples import Batch
from mpq.quantization.codes import Codes
from mpq.quantization.precision import Precision
from mpq.quantization.range_method import ActivationRange
from mpq.quantization.rounding import static_grid

HALF, QUARTER = Form(0.5, 0), Form(0.25, -128)
WIDE, WIDER = Form(0.5, 0, 16), Form(0.25, 0, 16)


def layer(operators: list[Any], reads: Form = HALF, **changed: Any) -> StaticLayer:
    """A static layer of two channels."""
    given: dict[str, Any] = {
        "scales": torch.tensor([0.5, 0.25]), "bias": torch.tensor([1.0, -2.0]), "bits": 8,
    }  # fmt: skip
    given |= changed
    return StaticLayer(
        "fc", operators, reads, **given, largest_bias=largest_bias("linear", given["bits"], reads)
    )


def graph_of(*operators: tuple[str, list[int], int], num_tensors: int = 8) -> Graph:
    """A graph of operators: kind, what is read, what is made. Tensor 0 is given, the last read."""
    pytest.importorskip("ai_edge_litert")
    from ai_edge_litert import schema_py_generated as schema

    model, graph = schema.ModelT(), schema.SubGraphT()
    model.subgraphs, model.operatorCodes, model.buffers = [graph], [], []
    graph.tensors, graph.operators = [], []
    graph.inputs, graph.outputs = [0], [operators[-1][2]]
    for index in range(num_tensors):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = f"t{index}".encode(), np.array([1, 2]), index
        tensor.type = schema.TensorType.FLOAT32
        model.buffers.append(schema.BufferT())
        graph.tensors.append(tensor)
    for kind, read, made in operators:
        code, operator = schema.OperatorCodeT(), schema.OperatorT()
        code.builtinCode, code.version = getattr(schema.BuiltinOperator, kind), 1
        model.operatorCodes.append(code)
        operator.opcodeIndex = len(model.operatorCodes) - 1
        operator.inputs, operator.outputs = np.array(read, np.int32), np.array([made], np.int32)
        operator.builtinOptions = schema.FullyConnectedOptionsT()
        graph.operators.append(operator)
    return Graph(model)


def told(graph: Graph) -> list[str]:
    """Kinds of the operators in order."""
    return [graph.kind(x) for x in graph.subgraph.operators]


def apply(graph: Graph, *layers: StaticLayer) -> list[str]:
    """The operators after the layers became static."""
    for one in layers:
        one.makes = one.makes or QUARTER
    StaticPass(graph, {id(x): one for one in layers for x in one.operators}).run()
    return told(graph)


def test_codes_pass_between_layers_and_moves() -> None:
    """From one layer through a shape to the next, without numbers between them."""
    graph = graph_of(
        ("FULLY_CONNECTED", [0, 6, 7], 1), ("RESHAPE", [1, 5], 2), ("FULLY_CONNECTED", [2, 6, 7], 3)
    )
    first, _, second = graph.subgraph.operators

    found = apply(graph, layer([first]), layer([second], QUARTER))

    assert found == ["QUANTIZE", "FULLY_CONNECTED", "RESHAPE", "FULLY_CONNECTED", "DEQUANTIZE"]


def test_another_form_is_made_of_numbers() -> None:
    """Read once as it is stored, once in another form, once in floating point."""
    graph = graph_of(
        ("FULLY_CONNECTED", [0, 6, 7], 1), ("FULLY_CONNECTED", [1, 6, 7], 2),
        ("FULLY_CONNECTED", [1, 6, 7], 3), ("GELU", [1], 4), ("ADD", [2, 3], 5),
    )  # fmt: skip
    first, second, third, *_ = graph.subgraph.operators

    found = apply(graph, layer([first]), layer([second], QUARTER), layer([third], HALF))

    assert found == [
        "QUANTIZE", "FULLY_CONNECTED", "FULLY_CONNECTED", "DEQUANTIZE", "QUANTIZE",
        "FULLY_CONNECTED", "GELU", "DEQUANTIZE", "DEQUANTIZE", "ADD",
    ]  # fmt: skip


def test_an_output_is_stored_as_the_next_layer_reads_it() -> None:
    """Also where numbers are read besides; behind a maximum only where nothing else reads."""
    graph = graph_of(
        ("FULLY_CONNECTED", [0, 6, 7], 1), ("MAX_POOL_2D", [1], 2), ("FULLY_CONNECTED", [2, 6], 3),
        ("GELU", [3], 4), ("FULLY_CONNECTED", [3, 6], 5),
    )  # fmt: skip
    first, _, second, _, third = graph.subgraph.operators
    readers = {id(second): HALF, id(third): QUARTER}

    assert following_form(graph, layer([first]), readers) == HALF
    assert following_form(graph, layer([second]), readers) == QUARTER
    assert following_form(graph, layer([third]), readers) is None
    assert following_form(graph, layer([first, second]), readers) is None
    graph.subgraph.outputs = [1]
    assert following_form(graph, layer([first]), readers) is None


def test_codes_of_16_bits_have_types_and_versions_of_their_own() -> None:
    """Through a shape, a transposition and a maximum; biases of 64 bits, also where there is none.

    What a layer of 8 bits reads of one of 16 bits is made of numbers.
    """
    graph = graph_of(
        ("CONV_2D", [0, 6, 7], 1), ("TRANSPOSE", [1, 5], 2), ("MAX_POOL_2D", [2], 3),
        ("RESHAPE", [3, 5], 4), ("FULLY_CONNECTED", [4, 6], 8), ("FULLY_CONNECTED", [8, 6, 7], 9),
        num_tensors=10,
    )  # fmt: skip
    from ai_edge_litert import schema_py_generated as schema

    first, *_, second, third = graph.subgraph.operators
    layers = layer([first], WIDE), layer([second], WIDER, bias=None), layer([third], HALF)
    layers[0].makes, layers[1].makes = WIDER, WIDE
    (bias,) = [layers[0].bias_codes()]

    found = apply(graph, *layers)

    assert found == [
        "QUANTIZE", "CONV_2D", "TRANSPOSE", "MAX_POOL_2D", "RESHAPE", "FULLY_CONNECTED",
        "DEQUANTIZE", "QUANTIZE", "FULLY_CONNECTED", "DEQUANTIZE",
    ]  # fmt: skip
    codes = graph.model.operatorCodes
    versions = [codes[x.opcodeIndex].version for x in graph.subgraph.operators]
    assert versions == [2, 4, 5, 3, 1, 7, 3, 1, 5, 2]
    tensors = graph.subgraph.tensors
    made = [tensors[x.outputs[0]].type for x in graph.subgraph.operators]
    types = schema.TensorType
    numbers = types.FLOAT32
    assert made == [types.INT16] * 6 + [numbers, types.INT8, types.INT8, numbers]
    assert [tensors[x.inputs[2]].type for x in (first, second, third)] == [
        types.INT64, types.INT64, types.INT32,
    ]  # fmt: skip
    assert bias is not None
    assert bias.dtype == torch.int64
    data = [bytes(graph.model.buffers[tensors[x.inputs[2]].buffer].data) for x in (first, second)]
    assert [np.frombuffer(x, np.int64).tolist() for x in data] == [bias.tolist(), [0, 0]]


def test_a_layer_of_16_bits_makes_no_codes_of_8() -> None:
    """And the other way round: the next layer's form is taken where its bits are the same."""
    graph = graph_of(("FULLY_CONNECTED", [0, 6, 7], 1), ("FULLY_CONNECTED", [1, 6, 7], 2))
    first, second = graph.subgraph.operators

    for reads in (HALF, WIDE):
        for other in (QUARTER, WIDER):
            expected = other if reads.bits == other.bits else None
            found = following_form(graph, layer([first], reads), {id(second): other})
            assert found == expected


def test_an_operator_without_integers_is_refused() -> None:
    """With the layer's name and the operator's."""
    graph = graph_of(("BATCH_MATMUL", [0, 6], 1))

    with pytest.raises(ModelError, match="layer 'fc' is computed by BATCH_MATMUL"):
        kernels_of(graph, 6, "fc")


def test_a_weight_that_is_no_weight_is_refused() -> None:
    """A layer whose weight is what its operator takes for the input."""
    graph = graph_of(("FULLY_CONNECTED", [6, 0], 1))

    with pytest.raises(ModelError, match="layer 'fc' is computed by FULLY_CONNECTED"):
        kernels_of(graph, 6, "fc")


def test_a_function_that_integer_kernels_lack_is_refused() -> None:
    """Within an operator."""
    graph = graph_of(("FULLY_CONNECTED", [0, 6, 7], 1))
    from ai_edge_litert import schema_py_generated as schema

    (operator,) = graph.subgraph.operators
    operator.builtinOptions.fusedActivationFunction = schema.ActivationFunctionType.TANH

    with pytest.raises(ModelError, match="output of layer 'fc' becomes TANH"):
        _ = layer([operator]).activation


def test_another_bias_is_refused() -> None:
    """The file's has to be the module's, and zeros where that has none."""
    graph = graph_of(("FULLY_CONNECTED", [0, 6, 7], 1))
    graph.model.buffers[7].data = np.frombuffer(np.array([1, 2], np.float32).tobytes(), np.uint8)
    (operator,) = graph.subgraph.operators

    check_bias(graph, operator, "fc", torch.tensor([1.0, 2.0]))
    for other in (None, torch.tensor([1.0, 3.0])):
        with pytest.raises(ModelError, match="another bias for layer 'fc'"):
            check_bias(graph, operator, "fc", other)
    graph.model.buffers[7].data = np.zeros(8, np.uint8)
    check_bias(graph, operator, "fc", None)


def test_biases_are_whole_units_of_sums() -> None:
    """To the nearest; one that does not fit is refused by the layer's name."""
    assert layer([]).bias_codes() is not None
    codes = layer([], bias=torch.tensor([1.1, -2.0])).bias_codes()
    assert codes is not None
    assert codes.tolist() == [4, -16]  # of 0.25 and 0.125
    assert layer([], bias=None).bias_codes() is None
    with pytest.raises(
        ModelError, match="bias of layer 'fc' does not fit beside its sums into 32 bits"
    ):
        layer([], bias=torch.tensor([1e9, 0.0])).bias_codes()
    wide = layer([], WIDE, bias=torch.tensor([1e9, 0.0])).bias_codes()
    assert wide is not None
    assert wide.tolist() == [4 * 10**9, 0]
    with pytest.raises(
        ModelError, match="bias of layer 'fc' does not fit beside its sums into 64 bits"
    ):
        layer([], WIDE, bias=torch.tensor([1e15, 0.0])).bias_codes()


def test_zero_points_have_a_sign() -> None:
    """An affine range of 0 to 255 begins at -128; a symmetric one has its zero at 0."""

    def form(precision: str, low: float, high: float) -> Form:
        read = Precision.parse(precision).activation
        return form_of(static_grid(read, ActivationRange(low, high), torch.device("cpu")))

    assert form("w8a8", 0.0, 255.0) == Form(1.0, -128)
    assert form("w8a8", -255.0, 0.0) == Form(1.0, 127)
    assert form("w8a8s", -127.0, 127.0) == Form(1.0, 0)
    assert form("w8aint16s", -32767.0, 32767.0) == Form(1.0, 0, 16)
    ends = Form(1.0, 0, 16).cut(torch.tensor([-4e4, 3.0, 4e4]))
    assert ends.tolist() == [-32768, 3, 32767]
    kept = Form(1.0, -128).cut(torch.tensor([-5.0, 3.0, 300.0]))
    assert kept.tolist() == [0, 3, 255]


def test_outputs_are_measured_behind_what_cuts_them() -> None:
    """Of a layer with a ReLU in its operator, only what is above zero counts."""
    linear = torch.nn.Linear(1, 1, bias=False)
    linear.weight.data.fill_(2.0)
    module = torch.nn.Sequential(linear)
    batches = [Batch.of(torch.tensor([[-4.0], [51.0]]))]
    read = Precision.parse("w8a8").activation

    found = {
        cut: measured_forms(module, batches, {"0": Output(read, cut)}, "minmax")["0"]
        for cut in ("NONE", "RELU", "RELU6")
    }

    scales = {cut: form.scale * 255 for cut, form in found.items()}
    assert scales == pytest.approx({"NONE": 110, "RELU": 102, "RELU6": 6})
    assert [form.zero for form in found.values()] == [-128 + round(8 / 110 * 255), -128, -128]
    assert not linear._forward_hooks


def test_kernels_that_round_are_told_by_operator_and_bits() -> None:
    """XNNPACK has none for 4-bit convolutions, nor for half bytes at the end of a row."""
    graph = graph_of(
        ("FULLY_CONNECTED", [0, 6], 1), ("CONV_2D", [0, 6], 2), ("DEPTHWISE_CONV_2D", [0, 6], 3)
    )
    linear, plain, depthwise = graph.subgraph.operators

    assert layer([linear], bits=4).rounding(graph, 1, 32) is Rounding.ONCE
    assert layer([linear], bits=4).rounding(graph, 1, 33) is Rounding.TWICE_UP
    assert layer([plain], bits=8).rounding(graph, 2, 36) is Rounding.ONCE
    assert layer([plain], bits=4).rounding(graph, 1, 36) is Rounding.TWICE_UP
    assert layer([plain], bits=4).rounding(graph, 2, 36) is Rounding.TWICE_AWAY
    assert layer([depthwise], bits=4).rounding(graph, 8, 9) is Rounding.TWICE_UP
    for bits in (4, 8):
        assert layer([linear], WIDE, bits=bits).rounding(graph, 1, 33) is Rounding.FLOAT64
        assert layer([plain], WIDE, bits=bits).rounding(graph, 2, 36) is Rounding.SHORT
    assert layer([depthwise], WIDE).rounding(graph, 8, 9) is Rounding.SHORT


def test_a_scale_is_doubled_until_its_bias_fits() -> None:
    """Of a channel of almost nothing; one whose weights count keeps its codes, and is refused."""
    tensor_format = Precision.parse("w8").weight
    scale = torch.tensor([[1.0], [1e-9]])
    codes = Codes(
        tensor_format, torch.tensor([[1.0, 127.0], [-128.0, 5.0]]), scale,
        torch.zeros(2, 1, dtype=torch.int32), 2,
    )  # fmt: skip

    found = with_room_for(codes, torch.tensor([1.0, 3.0]), HALF, 2**30)

    # 3 / (0.5 * 1e-9) is 6e9, which three doublings bring below 2^30.
    assert found.scale[:, 0].tolist() == pytest.approx([1, 8e-9])
    assert found.integers().tolist() == [[1, 127], [-16, 1]]
    assert with_room_for(codes, None, HALF, 2**30) is codes
    assert with_room_for(codes, torch.tensor([1e12, 0.0]), HALF, 2**30) is codes


@pytest.mark.parametrize(
    ("kind", "bits", "reads", "largest"),
    [
        ("linear", 8, HALF, 2**30),
        ("linear", 4, HALF, 2**26),
        ("linear", 2, HALF, 2**30),
        ("conv2d", 4, HALF, 2**30),
        ("linear", 4, WIDE, 2**46),
    ],
)
def test_sums_of_four_bits_have_less_room(kind: str, bits: int, reads: Form, largest: int) -> None:
    """Of linear layers, as XNNPACK adds them up."""
    assert largest_bias(kind, bits, reads) == largest


def test_barriers_are_taken_out() -> None:
    """Before and behind a layer, in front of a ReLU6 that becomes its own, and at the output."""
    graph = graph_of(
        ("MAXIMUM", [0, 7], 1), ("FULLY_CONNECTED", [1, 6], 2), ("MAXIMUM", [2, 7], 3),
        ("RELU6", [3], 4), ("FULLY_CONNECTED", [4, 6], 5), ("MAXIMUM", [7, 5], 8), num_tensors=9,
    )  # fmt: skip
    graph.model.buffers[7].data = np.frombuffer(np.float32(BOUND).tobytes(), np.uint8)

    remove_barriers(graph)

    first, second = graph.subgraph.operators
    assert told(graph) == ["FULLY_CONNECTED", "FULLY_CONNECTED"]
    assert [list(first.inputs), list(first.outputs)] == [[0, 6], [4]]
    assert [list(second.inputs), list(second.outputs)] == [[4, 6], [8]]
    assert [activation_of(x) for x in (first, second)] == ["RELU6", "NONE"]
    assert graph.subgraph.outputs == [8]


def test_another_maximum_is_no_barrier() -> None:
    """And a function that two read stays an operator."""
    graph = graph_of(
        ("MAXIMUM", [0, 7], 1),
        ("FULLY_CONNECTED", [1, 6], 2),
        ("RELU6", [2], 3),
        ("ADD", [2, 3], 4),
    )
    graph.model.buffers[7].data = np.frombuffer(np.float32(-1).tobytes(), np.uint8)

    remove_barriers(graph)

    assert told(graph) == ["MAXIMUM", "FULLY_CONNECTED", "RELU6", "ADD"]
