"""A file of standard operators as ONNX Runtime reads it."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, final

import numpy as np
import torch
from torch import Tensor

from mpq.backends.onnx.graph import CALLS
from mpq.backends.onnx.layer_tensors import as_traced, tensors_of
from mpq.backends.onnx.session import outputs_of, session_of
from mpq.backends.onnx.template import feeds_of
from mpq.backends.runtime import run_in_parts
from mpq.network.examples import Batch

if TYPE_CHECKING:
    import onnx

LAYERS: Final = "mpq_layers"
"""Key of a file's metadata: where the decoded weights of layers are."""
SETTINGS: Final = "mpq_onnxruntime_settings"
"""Key of a file's metadata: a session's settings under which it equals the simulation."""


def written_layers(model: "onnx.ModelProto") -> dict[str, dict[str, Any]]:
    """Layer name to where its decoded weight is, as ``weights_json`` has it."""
    return _told(model, LAYERS)


def written_calls(model: "onnx.ModelProto") -> dict[str, list[list[str]]]:
    """Layer name to the tensors of its calls, as ``calls_of`` has them."""
    return _told(model, CALLS)


def stored_settings(file: Path) -> dict[str, str]:
    """A session's settings under which a file equals the simulation."""
    import onnx

    return _told(onnx.load(file), SETTINGS)


def _told(model: "onnx.ModelProto", key: str) -> dict[str, Any]:
    return {
        name: value
        for prop in model.metadata_props
        if prop.key == key
        for name, value in json.loads(prop.value).items()
    }


def message_bytes(file: Path) -> int:
    """Bytes of a file besides its constants' numbers."""
    import onnx

    model = onnx.load(file)
    return file.stat().st_size - sum(len(x.raw_data) for x in model.graph.initializer)


def decoding_graph(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The part of a file that decodes weights: no inputs, an output per layer."""
    import onnx
    from onnx import helper

    wanted = dict.fromkeys(str(x["tensor"]) for x in written_layers(model).values())
    makers = {name: node for node in model.graph.node for name in node.output}
    needed, waiting = set[str](), list(wanted)
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting.extend(makers[name].input if name in makers else ())
    nodes = [node for node in model.graph.node if node.output[0] in needed]
    constants = [x for x in model.graph.initializer if x.name in needed]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in wanted]
    found = onnx.ModelProto()
    found.CopyFrom(model)
    found.graph.CopyFrom(helper.make_graph(nodes, "weights", [], ends, constants))
    return found


def with_layers(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """A file that also gives what its layers read and give."""
    import onnx
    from onnx import helper

    found = onnx.ModelProto()
    found.CopyFrom(model)
    made = {name for node in model.graph.node for name in node.output}
    given = {value.name for value in model.graph.output}
    for name in tensors_of(written_calls(model)):
        # Inputs of the graph are known to who runs it.
        if name in made - given:
            end = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            found.graph.output.append(end)
    return found


def as_rows(decoded: np.ndarray[Any, Any], entry: Mapping[str, Any]) -> Tensor:
    """``[O, K]`` of a decoded weight."""
    found = torch.from_numpy(np.ascontiguousarray(decoded)).float()
    return found.flatten(1) if entry["has_rows"] else found.t()


@final
@dataclass(frozen=True, eq=False)
class LoadedByOnnxRuntime:
    """See ``mpq.backends.runtime.Loaded``.

    Args:
        file: What was loaded.
        session: Of ONNX Runtime.
        ran: The graph that it runs, without numbers.
    """

    file: Path
    session: Any
    ran: "onnx.ModelProto"

    @classmethod
    def of(cls, file: Path, settings: Mapping[str, str] | None = None) -> Self:
        """Loads a file, under its own settings or others.

        Raises:
            MissingDependencyError: If ONNX Runtime is not installed.
            ModelError: If it cannot load the file.
        """
        import onnx

        with tempfile.TemporaryDirectory() as place:
            optimized = f"{place}/optimized.onnx"
            given = stored_settings(file) if settings is None else settings
            session = session_of(str(file), given, optimized_model_filepath=optimized)
            ran = onnx.load(optimized, load_external_data=False)
        del ran.graph.initializer[:]
        return cls(file, session, ran)

    @property
    def versions(self) -> Mapping[str, str]:
        """See ``Loaded.versions``."""
        return {name: version(name) for name in ("onnx", "onnxruntime")}

    @property
    def kinds(self) -> Mapping[str, str]:
        """See ``Loaded.kinds``: the element type, and the operator that the runtime made of it."""
        import onnx

        model = onnx.load(self.file)
        readers = {name: node.name for node in model.graph.node for name in node.input}
        # What is fused into a node keeps its name, with another one behind it.
        running = {node.name.partition("/")[0]: node.op_type for node in self.ran.graph.node}
        types = {
            x.name: onnx.TensorProto.DataType.Name(x.data_type) for x in model.graph.initializer
        }
        return {
            name: f"{types.get(x['codes'], 'computed')} "
            f"{running.get(readers[x['tensor']], 'in a fused operator')}"
            for name, x in written_layers(model).items()
        }

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """See ``Loaded.weights``: by ONNX Runtime's ``DequantizeLinear``."""
        import onnx

        model = onnx.load(self.file)
        layers = written_layers(model)
        if not layers:
            return {}
        session = session_of(decoding_graph(model).SerializeToString(), {})
        names = [value.name for value in session.get_outputs()]
        decoded = dict(zip(names, outputs_of(session, {}), strict=True))
        return {name: as_rows(decoded[x["tensor"]], x) for name, x in layers.items()}

    def run(self, batch: Batch) -> Tensor:
        """See ``Loaded.run``."""
        return next(iter(self.run_all(batch).values()))

    def run_all(self, batch: Batch) -> Mapping[str, Tensor]:
        """See ``ManyOutputs.run_all``."""
        values = self.session.get_inputs()
        names = [value.name for value in values]

        def run(part: Batch) -> list[Tensor]:
            return [torch.as_tensor(x) for x in outputs_of(self.session, feeds_of(names, part))]

        found = run_in_parts(batch, [list(value.shape) for value in values], run)
        ends = [value.name for value in self.session.get_outputs()]
        return dict(zip(ends, found, strict=True))

    def traced(self, batch: Batch) -> Mapping[str, Tensor]:
        """See ``Traceable.traced``: of a copy of the file, whose outputs they are."""
        import onnx

        model = onnx.load(self.file)
        graph = with_layers(model).SerializeToString()
        session = session_of(graph, stored_settings(self.file))
        feeds = feeds_of([value.name for value in session.get_inputs()], batch)
        ends = [value.name for value in session.get_outputs()]
        tensors = feeds | dict(zip(ends, outputs_of(session, feeds), strict=True))
        known = {name: torch.as_tensor(x) for name, x in tensors.items()}
        return as_traced(written_calls(model), known)
