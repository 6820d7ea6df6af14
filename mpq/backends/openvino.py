"""OpenVINO: its own files (IR), with 2-bit types that it reads from no other."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Final, final

import numpy as np
import torch
from torch import Tensor, nn

from mpq.backends.hugging_face import require
from mpq.backends.onnx.containers import Container, container_of
from mpq.backends.onnx.layer_tensors import Calls, as_traced, tensors_of
from mpq.backends.onnx.loaded import as_rows, written_calls, written_layers
from mpq.backends.onnx.qdq import (
    OnnxQdq,
    check_standard_graph,
    standard_graph,
    written_bits,
)
from mpq.backends.runtime import Loaded, run_in_parts
from mpq.backends.searched import Searched
from mpq.backends.target import LayerShape, Shipped, Target, rows_of
from mpq.network.examples import Batch
from mpq.quantization.codes import packed
from mpq.quantization.numerics import Numerics
from mpq.quantization.precision import Precision
from mpq.quantization.tensor_format import Granularity, TensorFormat

Array = np.ndarray[Any, Any]

FILE: Final = "network.xml"
LAYERS_FILE: Final = "layers.json"
EXACT: Final = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""Settings under which it computes what the simulation does."""


TYPES: Final = {
    "INT4": "i4", "UINT4": "u4", "INT8": "i8", "UINT8": "u8", "FLOAT8E4M3FN": "f8e4m3",
    "FLOAT8E5M2": "f8e5m2", "FLOAT16": "f16", "BFLOAT16": "bf16", "FLOAT": "f32",
}  # fmt: skip
"""What OpenVINO calls the element types of ONNX."""


@final
@dataclass(frozen=True)
class OpenVino(Target):
    """The file of ``onnx-qdq`` as OpenVINO reads it, saved as its own, with weights of 2 bits.

    Args:
        batch_size: Examples of one run; all shapes are fixed to those of the first example.
    """

    name: ClassVar[str] = "openvino"
    summary: ClassVar[str] = "OpenVINO's own files, for Intel's processors"
    extra: ClassVar[str] = "openvino"
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "openvino")
    readers: ClassVar[str] = "OpenVINO"
    holds: ClassVar[str] = (
        "linear layers, convolutions and embeddings: w2 to w8, w2z to w8z per tensor, channel or "
        "group, fp8, fp16, bf16, whole groups; inputs in floating point, a8 and a8s beside w2 to "
        "w7; all else as it came"
    )
    candidates: ClassVar[tuple[str, ...]] = ("w2g32", "w2", "w4g32", "w4", "w8")
    numerics: ClassVar[Numerics] = OnnxQdq.numerics
    judged: ClassVar[str] = OnnxQdq.judged
    needs_float32: ClassVar[bool] = True
    weight_suffixes: ClassVar[tuple[str, ...]] = (".bin",)
    notes: ClassVar[tuple[str, ...]] = (
        "It equals the simulation with INFERENCE_PRECISION_HINT=f32 and "
        "DYNAMIC_QUANTIZATION_GROUP_SIZE=0; its default settings are compared as well, in "
        "export.json.",
        "w3 is stored in 4 bits, w5, w6 and w7 in 8.",
        "w8a8 is refused: its int8 products saturate on processors without VNNI.",
        "Shapes and batch size are fixed to those of the examples.",
    )

    batch_size: int = 1

    def traced_batch(self, batches: Sequence[Batch]) -> Batch:
        """See ``Target.traced_batch``: the examples of one run."""
        return batches[0].slice(0, self.batch_size)

    def refusal(self, layer: LayerShape, precision: Precision) -> str:
        """See ``Target.refusal``."""
        why = OnnxQdq().refusal(layer, precision)
        weight, number = precision.weight, precision.activation.number
        _, num_inputs = rows_of(layer)
        if why:
            return why
        if weight.group_size and num_inputs % weight.group_size:
            return f"{num_inputs} inputs are no whole groups of {weight.group_size}"
        if weight.number.name == "int2" and weight.granularity is Granularity.TENSOR:
            return "OpenVINO 2026.4 multiplies with 2-bit weights of one scale wrongly"
        if number.name not in ("fp32", "int8"):
            return f"it rounds no inputs to {number.name}: a8, a8s"
        if number.name == "int8" and weight.number.name == "int8" and layer.kind != "embedding":
            return "its int8 products saturate at 8-bit weights on processors without VNNI: w7a8"
        return ""

    def module_refusal(self, module: nn.Module | None) -> str:
        """See ``Target.module_refusal``."""
        return OnnxQdq().module_refusal(module)

    def stored_bits(self, layer: LayerShape, precision: Precision) -> int:
        """See ``Target.stored_bits``."""
        return written_bits(layer, precision, _container(precision.weight), self.numerics)

    def stored_kind(self, layer: LayerShape, precision: Precision) -> str:  # noqa: ARG002
        """See ``Target.stored_kind``."""
        container = _container(precision.weight).name
        # Of 2 bits there is one type: from 0 on, and shifted where codes have a sign.
        return "u2" if container.endswith("INT2") else TYPES[container]

    def check_graph(self, searched: Searched) -> None:
        """See ``Traces.check_graph``: of the file that OpenVINO reads."""
        check_standard_graph(searched, self.batch_size)

    def write(self, shipped: Shipped, folder: Path) -> None:
        """See ``Target.write``."""
        require("openvino", self.extra)
        import openvino

        graph = standard_graph(shipped, self.batch_size, self.name, narrowest=4)
        layers = written_layers(graph)
        model = openvino.Core().read_model(graph.SerializeToString())
        narrow = {
            str(layers[x.name]["codes"])
            for x in shipped.quantized
            if x.precision.weight.number.name == "int2"
        }
        for operation in list(model.get_ops()):
            if operation.get_friendly_name() in narrow:
                _narrow(operation)
        openvino.save_model(model, folder / FILE, compress_to_fp16=False)
        told = {"weights": layers, "calls": written_calls(graph)}
        (folder / LAYERS_FILE).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")

    def load(self, folder: Path) -> Loaded:
        """See ``Target.load``."""
        return LoadedByOpenVino.of(folder, EXACT)

    def load_otherwise(self, folder: Path) -> Mapping[str, Callable[[], Loaded]]:
        """See ``Target.load_otherwise``: without any setting."""
        return {"OpenVINO without settings": partial(LoadedByOpenVino.of, folder, {})}


def _container(weight: TensorFormat) -> Container:
    # Not the last layer's: the number of outputs matters to ONNX Runtime alone.
    found = container_of(weight, "", 0)
    assert found is not None
    return found


def _narrow(constant: Any) -> None:
    """Puts a constant of 4-bit codes that need 2 into 2 bits, from 0 on."""
    import openvino
    from openvino import opset15

    is_signed = constant.get_element_type() == openvino.Type.i4
    shape = list(constant.get_output_shape(0))
    codes = _nibbles(constant, int(np.prod(shape)), is_signed)
    # A tensor of its own, which owns its memory; one made of an array would only point to it.
    stored = openvino.Tensor(openvino.Type.u2, shape)
    stream = packed(codes[None] + (2 if is_signed else 0), 2)[0]
    stored.data.reshape(-1)[:] = stream[: stored.data.size].numpy()
    narrow = opset15.constant(stored)
    narrow.set_friendly_name(constant.get_friendly_name())
    numbers = opset15.convert(narrow, "f32")
    shifted = opset15.subtract(numbers, np.float32(2.0)) if is_signed else numbers
    # They convert to floats, which these are already, or ask for the shape.
    for reader in constant.output(0).get_target_inputs():
        reader.replace_source_output(shifted.output(0))


def _nibbles(constant: Any, count: int, is_signed: bool) -> Tensor:
    """``[N]`` int32 codes of a constant of 4-bit types, the first in the lowest bits."""
    data = torch.from_numpy(np.array(constant.data).view(np.uint8).reshape(-1).copy())
    codes = torch.stack([data & 15, data >> 4], 1).reshape(-1)[:count].to(torch.int32)
    return torch.where(codes > 7, codes - 16, codes) if is_signed else codes


@final
@dataclass(frozen=True, eq=False)
class LoadedByOpenVino:
    """See ``mpq.backends.runtime.Loaded``.

    Args:
        model: As it was read.
        compiled: For the processor.
        layers: Layer name to where its decoded weight is.
        calls: Layer name to the tensors that it reads and gives.
    """

    model: Any
    compiled: Any
    layers: Mapping[str, Mapping[str, Any]]
    calls: Calls

    @classmethod
    def of(cls, folder: Path, settings: Mapping[str, str]) -> "LoadedByOpenVino":
        """Loads a folder.

        Raises:
            MissingDependencyError: If OpenVINO is not installed.
        """
        require("openvino", OpenVino.extra)
        import openvino

        core = openvino.Core()
        model = core.read_model(folder / FILE)
        told = json.loads((folder / LAYERS_FILE).read_text(encoding="utf-8"))
        compiled = core.compile_model(model, "CPU", dict(settings))
        return cls(model, compiled, told["weights"], told["calls"])

    @property
    def versions(self) -> Mapping[str, str]:
        """See ``Loaded.versions``."""
        return {"openvino": version("openvino")}

    @property
    def kinds(self) -> Mapping[str, str]:
        """See ``Loaded.kinds``: element types as OpenVINO has them."""
        types = {
            x.get_friendly_name(): x.get_element_type().get_type_name()
            for x in self.model.get_ops()
            if x.get_type_name() == "Constant"
        }
        return {name: types.get(str(x["codes"]), "?") for name, x in self.layers.items()}

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """See ``Loaded.weights``."""
        if not self.layers:
            return {}
        wanted = [str(x["tensor"]) for x in self.layers.values()]
        decoded = self._computed(wanted, [], [])
        return {name: as_rows(decoded[str(x["tensor"])], x) for name, x in self.layers.items()}

    def run(self, batch: Batch) -> Tensor:
        """See ``Loaded.run``."""
        return next(iter(self.run_all(batch).values()))

    def run_all(self, batch: Batch) -> Mapping[str, Tensor]:
        """See ``ManyOutputs.run_all``."""
        shapes = [list(x.get_shape()) for x in self.model.inputs]

        def run(part: Batch) -> list[Tensor]:
            made = self.compiled([x.cpu().numpy() for x in part.tensors])
            return [torch.from_numpy(made[index].copy()) for index in range(len(ends))]

        ends = [x.get_any_name() for x in self.model.outputs]
        return dict(zip(ends, run_in_parts(batch, shapes, run), strict=True))

    def traced(self, batch: Batch) -> Mapping[str, Tensor]:
        """See ``Traceable.traced``: of another model on the same nodes, whose outputs they are."""
        numbers = [x.cpu().numpy() for x in batch.tensors]
        found = self._computed(tensors_of(self.calls), self.model.get_parameters(), numbers)
        return as_traced(self.calls, {name: torch.from_numpy(x) for name, x in found.items()})

    def _computed(
        self, names: Sequence[str], inputs: Sequence[Any], numbers: Sequence[Array]
    ) -> dict[str, Array]:
        """Tensors within the network, by name.

        Args:
            names: Of tensors.
            inputs: Nodes of the model that these depend on.
            numbers: What these nodes give.
        """
        import openvino

        ends = {
            name: output
            for operation in self.model.get_ops()
            for output in operation.outputs()
            for name in output.get_names() & set(names)
        }
        part = openvino.Model(list(ends.values()), list(inputs), "part")
        made = openvino.Core().compile_model(part, "CPU", EXACT)(list(numbers))
        return {name: made[index].copy() for index, name in enumerate(ends)}
