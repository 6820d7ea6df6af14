"""AIMET: encodings of weights and inputs, beside the ONNX graph whose tensors they name."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import nn

from mpq.backends.input_grid import input_grid
from mpq.backends.onnx.refusal import refusal
from mpq.backends.onnx.template import quiet, require_onnx
from mpq.backends.recipes._base import Recipe
from mpq.backends.target import Shipped
from mpq.errors import InputError, ModelError, PrecisionError
from mpq.network.examples import Batch, Calibration
from mpq.network.modules import weight_of
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.tensor_format import Granularity

if TYPE_CHECKING:
    import onnx

VERSION = "1.0.0"
"""Of the format of encodings."""
GRAPH = "model.onnx"


@final
@dataclass(frozen=True)
class Aimet(Recipe):
    """``load_encodings_to_sim(QuantizationSimModel(onnx.load("model.onnx")), "encodings.json")``.

    The scales are mpq's own, rounded codes are not in the file: AIMET, and Qualcomm's converter,
    round the weights of the graph by these scales. Weights that were rounded with regard to data
    are in the graph as their codes' numbers, which round to themselves.
    """

    name: ClassVar[str] = "aimet"
    summary: ClassVar[str] = "a recipe for AIMET and QNN: encodings beside an ONNX graph; no codes"
    file: ClassVar[str] = "encodings.json"
    needs_network: ClassVar[bool] = True
    note: ClassVar[str] = (
        "a recipe of mpq: scales and offsets are those that were searched, the tool rounds by them "
        "itself, so these are not our codes; QNN was not run"
    )
    rounded: ClassVar[str] = "weights in the graph are numbers of codes, found by {rounding}"

    def refusal(self, layer: AssignedLayer) -> str:
        """See ``Recipe.refusal``."""
        weight, read = layer.precision.weight, layer.precision.activation
        if layer.kind not in ("linear", "conv1d", "conv2d", "conv3d") or layer.is_transposed:
            return f"a {layer.kind} layer like this was not tried"
        if weight.number.is_float and not weight.is_exact:
            return f"encodings here are of integers, and this is {weight.number.name}"
        for number in (weight.number, read.number):
            if not number.is_float and number.bits > 8:
                return f"integers of more than 8 bits were not tried, and this is {number.name}"
        if weight.group_size:
            return "blocks of a channel were not tried"
        if read.is_exact:
            return ""
        if read.granularity is not Granularity.TENSOR or read.number.is_float:
            return "its inputs are static integers: a8, a8s"
        return ""

    def text(self, layers: Sequence[AssignedLayer], note: str) -> str:  # noqa: ARG002
        """Refused: encodings name the tensors of a graph."""
        raise InputError(f"the recipe {self.name} needs the network and examples")

    def files(
        self, assignment: Assignment, model: nn.Module | None, calibration: Any
    ) -> Mapping[str, bytes]:
        """See ``Recipe.files``.

        Raises:
            ModelError: If a layer's weight is not found in the graph.
            PrecisionError: If a weight's scales are negative.
        """
        layers = self.check(assignment)
        if assignment.weights is not None:
            assignment.weights.check_positive(self.name)
        if model is None or calibration is None:
            raise InputError(f"the recipe {self.name} needs the network and examples")
        require_onnx()
        shipped = Shipped.of(model, assignment)
        graph = _graph(shipped.module, next(iter(Calibration.of(calibration))))
        found = _Encodings.of(shipped, layers, graph.graph)
        _round(shipped, graph.graph)
        data = {
            "version": VERSION,
            "producer": {"package": "mpq", "version": version("mpq")},
            "note": self.note_of(assignment),
            "activation_encodings": list(found.inputs.values()),
            "param_encodings": list(found.weights.values()),
        }
        return {
            self.file: (json.dumps(data, indent=1) + "\n").encode(),
            GRAPH: graph.SerializeToString(),
        }


@final
@dataclass(frozen=True)
class _Encodings:
    """Name of a tensor to its entry."""

    weights: dict[str, dict[str, Any]]
    inputs: dict[str, dict[str, Any]]

    @classmethod
    def of(
        cls, shipped: Shipped, layers: Sequence[AssignedLayer], graph: "onnx.GraphProto"
    ) -> "_Encodings":
        """Raises ``PrecisionError`` where a tensor would need two entries, or has other readers."""
        known = _constants(graph)
        readers: dict[str, list[str]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                readers[name].append(node.name)
        weights: dict[str, dict[str, Any]] = {}
        inputs: dict[str, dict[str, Any]] = {}
        served: dict[str, set[str]] = defaultdict(set)
        for layer in layers:
            name = _weight_name(shipped, layer, known)
            nodes = [node for node in graph.node if name in node.input]
            _put(weights, name, layer, _weight_entry(shipped, layer, name))
            if layer.activation_range is None:
                continue
            for node in nodes:
                read = next(x for x in node.input if x != name)
                served[read].add(node.name)
                _put(inputs, read, layer, _input_entry(layer, read))
        for read, nodes_served in served.items():
            if others := set(readers[read]) - nodes_served:
                raise PrecisionError(
                    f"aimet: {read!r} is rounded for {', '.join(sorted(nodes_served))}, and AIMET "
                    f"would round it for {', '.join(sorted(others))}, too"
                )
        return cls({n: x for n, x in weights.items() if x}, inputs)


def _graph(module: nn.Module, batch: Batch) -> "onnx.ModelProto":
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                module, batch.args, kwargs=dict(batch.kwargs), dynamo=True, verbose=False
            )
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        raise ModelError(refusal(error, module)) from error
    assert program is not None
    return program.model_proto


def _constants(graph: "onnx.GraphProto") -> dict[str, torch.Tensor]:
    from onnx import numpy_helper

    return {x.name: torch.from_numpy(numpy_helper.to_array(x).copy()) for x in graph.initializer}


def _round(shipped: Shipped, graph: "onnx.GraphProto") -> None:
    """Puts weights that were rounded with regard to data in place of the original ones."""
    from onnx import numpy_helper

    weights = shipped.assignment.weights
    if weights is None:
        return
    known = _constants(graph)
    places = {x.name: x for x in graph.initializer}
    for layer in shipped.quantized:
        if layer.name not in weights.by_layer:
            continue
        name = _weight_name(shipped, layer, known)
        layer_module = shipped.module.get_submodule(layer.name)
        rounded = shipped.quantizer.weight(layer.name, layer_module, layer.precision.weight)
        is_own = name == f"{layer.name}.weight"
        numbers = (rounded if is_own else rounded.t()).detach().cpu().contiguous().numpy()
        places[name].CopyFrom(numpy_helper.from_array(numbers, name))


def _weight_name(shipped: Shipped, layer: AssignedLayer, known: Mapping[str, torch.Tensor]) -> str:
    """The constant that a layer's weight became: under its name, or turned round and renamed."""
    if f"{layer.name}.weight" in known:
        return f"{layer.name}.weight"
    weight = weight_of(shipped.module.get_submodule(layer.name)).detach().cpu()
    found = [name for name, t in known.items() if weight.ndim == 2 and torch.equal(t, weight.t())]
    if len(found) != 1:
        raise ModelError(
            f"aimet: the graph has {len(found)} constants that are the weight of layer "
            f"{layer.name!r}, where one is needed"
        )
    return found[0]


def _put(
    entries: dict[str, dict[str, Any]], name: str, layer: AssignedLayer, entry: dict[str, Any]
) -> None:
    if entries.setdefault(name, entry) != entry:
        raise PrecisionError(
            f"aimet: layer {layer.name!r} at {layer.precision} reads {name!r}, which another layer "
            "has otherwise; a tensor has one encoding"
        )


def _weight_entry(shipped: Shipped, layer: AssignedLayer, name: str) -> dict[str, Any]:
    weight = layer.precision.weight
    if weight.is_exact:
        return {}
    codes = shipped.codes(layer)
    is_whole = weight.granularity is Granularity.TENSOR
    rows = slice(0, 1) if is_whole else slice(None)
    points = codes.unsigned_zero_points()[rows, 0]
    return {
        "name": name,
        "bw": weight.number.bits,
        "dtype": "INT",
        "enc_type": "PER_TENSOR" if is_whole else "PER_CHANNEL",
        "is_sym": weight.symmetric,
        "scale": codes.scale[rows, 0].tolist(),
        "offset": (-points).tolist(),
    }


def _input_entry(layer: AssignedLayer, name: str) -> dict[str, Any]:
    read, grid = layer.precision.activation, input_grid(layer)
    return {
        "name": name,
        "bw": read.number.bits,
        "dtype": "INT",
        "enc_type": "PER_TENSOR",
        "is_sym": read.symmetric,
        "scale": grid.scale.flatten().tolist(),
        "offset": (-grid.unsigned_zero_point).tolist(),
    }
