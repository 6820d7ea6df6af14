"""LiteRT: ``.tflite`` files for phones, with layers that compute in integers or decode weights."""

import contextlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Final, final

import torch
from torch import Tensor, nn

from mpq.backends.hugging_face import require
from mpq.backends.litert.barriers import add_barriers, remove_barriers
from mpq.backends.litert.capabilities import CONTAINERS, Way, refusal, stored_bits, way_of
from mpq.backends.litert.flatbuffer import (
    Place,
    constant_bytes,
    decoded_weights,
    find_weight,
    read_model,
    store_codes,
    stored_types,
    written_model,
)
from mpq.backends.litert.graph import Graph
from mpq.backends.litert.padded import only_pads
from mpq.backends.litert.plan import Plan
from mpq.backends.litert.rounded import StoredLayer, store_outputs
from mpq.backends.litert.tracing import (
    computing,
    cut_outputs,
    layer_tensors,
    tensors_of,
    with_outputs,
)
from mpq.backends.runtime import Loaded, run_in_parts
from mpq.backends.searched import Searched
from mpq.backends.simulate import prepared, with_precisions
from mpq.backends.target import HEADERS, MEDIAN_OF_ROUNDED, LayerShape, Shipped, Target
from mpq.errors import InputError, ModelError
from mpq.network.examples import Batch
from mpq.network.outputs import scored_tensor
from mpq.network.own_forward import has_own_forward
from mpq.network.tracing import kind_of
from mpq.quantization.numerics import Numerics
from mpq.quantization.precision import Precision

FILE: Final = "network.tflite"
LAYERS_FILE: Final = "layers.json"
MADE: Final = "litert"
OPERATORS: Final = "litert operators"
WITHOUT_XNNPACK: Final = "without XNNPACK"


@final
@dataclass(frozen=True)
class LiteRt(Target):
    """A file of LiteRT (TensorFlow Lite) whose weights are our codes.

    litert-torch converts the network in floating point, and never sees a format: where a layer's
    weight ended up is found by its numbers, and codes and scales are put there. Behind them is a
    ``DEQUANTIZE``, or an operator that computes in integers. Barriers (``barriers.py``) keep it
    from joining a layer with others.

    Args:
        batch_size: Examples of one run; all shapes are fixed to those of the first example.
    """

    name: ClassVar[str] = "litert"
    summary: ClassVar[str] = "LiteRT (TensorFlow Lite) files for phones, integer weights"
    extra: ClassVar[str] = "litert"
    packages: ClassVar[tuple[str, ...]] = ("litert_torch", "ai_edge_litert")
    readers: ClassVar[str] = "LiteRT on phones, tablets and processors"
    holds: ClassVar[str] = (
        "linear layers, convolutions and embeddings: w2 to w8 per tensor or channel, symmetric; "
        "inputs in floating point (a32), in 8 bits while running (a8d) or static in 8 or 16 (a8, "
        "a8s, aint16s from w3 on: outputs of these layers in as many bits as well); convolutions "
        "with integer inputs from w3 on; all else as it came"
    )
    candidates: ClassVar[tuple[str, ...]] = ("w2", "w4", "w8")
    judged: ClassVar[str] = MEDIAN_OF_ROUNDED
    numerics: ClassVar[Numerics] = Numerics(scale_sign="positive")
    needs_float32: ClassVar[bool] = True
    weight_suffixes: ClassVar[tuple[str, ...]] = (".tflite",)
    notes: ClassVar[tuple[str, ...]] = (
        "Outputs of layers with static inputs are stored in their bits, in the range that the next "
        "layer reads or that the examples have; what the search measures leaves them in floating "
        "point, and the export's simulation rounds them as well.",
        "w3 is stored in 4 bits, w5, w6 and w7 in 8; a channel takes 12 bytes more for its scale "
        "and zero point, and those of a static layer's bias 12 more. Beside inputs of 16 bits "
        "biases have 64.",
        "Compared with the simulation as XNNPACK computes, the default on phones; export.json says "
        "how far the same file is from it without XNNPACK.",
        "Codes reach from -128 to 127, where the format's specification says -127: XNNPACK takes "
        "them, other delegates are not asked here.",
        "Shapes and batch size are fixed to those of the examples.",
    )

    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"litert: batch_size is 1 or more, got {self.batch_size}")

    def refusal(self, layer: LayerShape, precision: Precision) -> str:
        """See ``Target.refusal``."""
        return refusal(layer, precision)

    def module_refusal(self, module: nn.Module | None) -> str:
        """See ``Target.module_refusal``: what is traced has a place, whatever its module."""
        if module is None or kind_of(module) is None or not has_own_forward(module):
            return ""
        if only_pads(module):
            return ""
        return (
            "its forward is another one than torch's, and does more than padding with zeros what "
            "it reads: what its operator in the file gives would not be what the layer gives"
        )

    def stored_bits(self, layer: LayerShape, precision: Precision) -> int:
        """See ``Target.stored_bits``."""
        return stored_bits(layer, precision)

    def stored_kind(self, layer: LayerShape, precision: Precision) -> str:  # noqa: ARG002
        """See ``Target.stored_kind``."""
        return f"INT{CONTAINERS[precision.weight.number.bits]}"

    def header_bytes(self, folder: Path) -> int:
        """See ``Target.header_bytes``: operators and names of the graph as well."""
        file = folder / FILE
        return HEADERS + file.stat().st_size - constant_bytes(file)

    def check_graph(self, searched: Searched) -> None:
        """See ``Traces.check_graph``: it is converted, and every weight found again."""
        self._converted(searched.network.module, searched.examples, searched.quantized)

    def _converted(
        self, module: nn.Module, examples: Sequence[Batch], names: Iterable[str]
    ) -> tuple[Graph, dict[str, Place]]:
        """The converted network in floating point, and where the weights of some layers are."""
        for package in self.packages:
            require(package, self.extra)
        network, marks = _marked(module, names)
        add_barriers(network, marks)
        graph = Graph(read_model(_file_of(network, _first(examples, self.batch_size))))
        remove_barriers(graph)
        return graph, {name: find_weight(graph.model, name, x) for name, x in marks.items()}

    def write(self, shipped: Shipped, folder: Path) -> None:
        """See ``Target.write``."""
        shipped.check_shared(self.name)
        names = [layer.name for layer in shipped.quantized]
        graph, places = self._converted(shipped.module, shipped.examples, names)
        plan = Plan.of(graph, shipped, places)
        operators = shipped.made[OPERATORS] = computing(graph, shipped, places)
        # Before weights are codes: what a layer's bias was is still a number.
        shipped.made[MADE] = plan.store_outputs(shipped)
        told, filled = {}, set[int]()
        for layer in shipped.quantized:
            place = places[layer.name]
            told[layer.name] = {
                "index": place.index, "order": place.order, "shape": layer.weight_shape,
                "is_integer": way_of(layer, layer.precision) is not Way.FLOAT,
            }  # fmt: skip
            if place.index not in filled:
                codes = plan.codes.get(layer.name) or shipped.codes(layer)
                store_codes(graph.model, place, codes, layer.weight_shape)
                filled.add(place.index)
        plan.apply()
        for name, entry in told.items():
            entry["calls"] = [tensors_of(graph, x) for x in operators.get(name, ())]
        (folder / FILE).write_bytes(written_model(graph.model))
        (folder / LAYERS_FILE).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")

    def reference(self, simulated: nn.Module, shipped: Shipped) -> nn.Module:
        """See ``Target.reference``: outputs of static layers are stored, and rounded."""
        stored: Mapping[str, StoredLayer] = shipped.made[MADE]
        if stored:
            own = prepared(shipped.model, shipped.assignment)
            simulated = with_precisions(own, shipped.assignment, shipped.quantizer)
        return cut_outputs(store_outputs(simulated, stored), shipped.made[OPERATORS])

    def traced_batch(self, batches: Sequence[Batch]) -> Batch:
        """See ``Target.traced_batch``: the examples of one run."""
        return batches[0].slice(0, self.batch_size)

    def load(self, folder: Path) -> Loaded:
        """See ``Target.load``."""
        return LoadedByLiteRt.of(folder)

    def load_otherwise(self, folder: Path) -> Mapping[str, Callable[[], Loaded]]:
        """See ``Target.load_otherwise``: what runs where XNNPACK does not."""
        layers = json.loads((folder / LAYERS_FILE).read_text(encoding="utf-8"))
        if not any(entry["is_integer"] for entry in layers.values()):
            return {}
        return {WITHOUT_XNNPACK: partial(LoadedByLiteRt.of, folder, has_delegates=False)}


def _marked(module: nn.Module, names: Iterable[str]) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy whose quantized weights have numbers of their own, and these by layer name.

    By them they are found again: weights as they came may be alike in two layers.
    """
    network = deepcopy(module).cpu()
    draws = torch.Generator().manual_seed(0)
    marks: dict[str, Tensor] = {}
    drawn = set[int]()
    for name in names:
        weight = network.get_submodule(name).weight
        assert isinstance(weight, nn.Parameter)
        if id(weight) not in drawn:
            drawn.add(id(weight))
            # From 1 to 2, where no initial weights are: those of a seed may be in the network.
            weight.data = 1 + torch.rand(weight.shape, generator=draws)
        marks[name] = weight.detach()
    return network, marks


class _Positional(nn.Module):
    """A network that is given its tensors one by one, and gives the one that is compared."""

    def __init__(self, network: nn.Module, num_args: int, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.num_args, self.names = network, num_args, names

    def forward(self, *tensors: Tensor) -> Tensor:
        given = tensors[: self.num_args]
        named = dict(zip(self.names, tensors[self.num_args :], strict=True))
        return scored_tensor(self.network(*given, **named))


def _first(examples: Sequence[Batch], size: int) -> Batch:
    if not examples:
        raise InputError("the target litert needs examples, to trace the network")
    batch = examples[0].to(torch.device("cpu"))
    return batch.repeated(-(-size // batch.size)).slice(0, size)


def _file_of(network: nn.Module, batch: Batch) -> bytes:
    """The bytes of a network in floating point, as litert-torch converts it."""
    import litert_torch

    given = [*batch.args, *batch.kwargs.values()]
    if not all(isinstance(x, Tensor) for x in given):
        raise ModelError("litert: its networks read tensors, and the examples have others")
    wrapped = _Positional(network, len(batch.args), tuple(batch.kwargs)).eval()
    # It prints its progress, and standard output is ours.
    try:
        with contextlib.redirect_stdout(io.StringIO()), TemporaryDirectory(prefix="mpq-") as place:
            file = Path(place, FILE)
            litert_torch.convert(wrapped, tuple(given)).export(str(file))
            return file.read_bytes()
    except (RuntimeError, ValueError, NotImplementedError, TypeError) as error:
        said = str(error).strip().partition("\n")[0]
        raise ModelError(f"litert: litert-torch cannot convert the network: {said}") from error


@final
@dataclass(frozen=True, eq=False)
class LoadedByLiteRt:
    """See ``mpq.backends.target.Loaded``.

    Args:
        file: What was loaded.
        runner: Of the interpreter, which keeps it.
        layers: Layer name to where its weight is.
    """

    file: Path
    runner: Any
    layers: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, folder: Path, has_delegates: bool = True) -> "LoadedByLiteRt":
        """Loads a folder.

        Args:
            folder: What ``LiteRt.write`` wrote.
            has_delegates: Whether XNNPACK takes operators over, as by default.

        Raises:
            MissingDependencyError: If LiteRT is not installed.
            ModelError: If it cannot load the file.
        """
        require("ai_edge_litert", LiteRt.extra)
        layers = json.loads((folder / LAYERS_FILE).read_text(encoding="utf-8"))
        _, runner = _interpreter(has_delegates, model_path=str(folder / FILE))
        return cls(folder / FILE, runner, layers)

    @property
    def versions(self) -> Mapping[str, str]:
        """See ``Loaded.versions``."""
        return {"ai-edge-litert": version("ai-edge-litert")}

    @property
    def kinds(self) -> Mapping[str, str]:
        """See ``Loaded.kinds``: element types of the schema.

        Of 2 and 4 bits the interpreter tells the type that they are decoded to, int8.
        """
        return stored_types(read_model(self.file.read_bytes()), self.layers)

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """See ``Loaded.weights``: by the schema's own reader."""
        return decoded_weights(read_model(self.file.read_bytes()), self.layers)

    def run(self, batch: Batch) -> Tensor:
        """See ``Loaded.run``."""
        details = self.runner.get_input_details()
        names, shapes = self._inputs()

        def run(part: Batch) -> list[Tensor]:
            given = {
                name: x.cpu().numpy().astype(details[name]["dtype"])
                for name, x in zip(names, part.tensors, strict=True)
            }
            try:
                (output,) = self.runner(**given).values()
            except (RuntimeError, ValueError) as error:
                raise ModelError(f"litert: LiteRT cannot run the file: {error}") from error
            return [torch.from_numpy(output.copy())]

        return run_in_parts(batch, shapes, run)[0]

    def traced(self, batch: Batch) -> dict[str, Tensor]:
        """See ``Traceable.traced``: of the layers that are not as they came."""
        content = with_outputs(read_model(self.file.read_bytes()), self.layers)
        interpreter, runner = _interpreter(True, model_content=content)
        replace(self, runner=runner).run(batch)
        _, (shape, *_) = self._inputs()
        return layer_tensors(interpreter, self.layers, batch.size / shape[batch.first_axis])

    def _inputs(self) -> tuple[list[str], list[list[int]]]:
        """Their names, in the order of the network's arguments, and shapes."""
        details = self.runner.get_input_details()
        names = sorted(details, key=lambda name: int(name.rpartition("_")[2]))
        return names, [[int(n) for n in details[name]["shape"]] for name in names]


def _interpreter(has_delegates: bool, **model: Any) -> tuple[Any, Any]:
    """An interpreter of a file or its bytes, and what runs it.

    Raises:
        ModelError: If it cannot load them.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    known = OpResolverType
    resolver = known.AUTO if has_delegates else known.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        interpreter = Interpreter(**model, experimental_op_resolver_type=resolver)
        return interpreter, interpreter.get_signature_runner()
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"litert: LiteRT cannot load the file: {error}") from error
