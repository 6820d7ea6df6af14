"""Deployment targets: what a tool can hold, how it is written, and how the tool itself runs it."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, Self, final

from torch import Tensor, nn

from mpq.backends._base import Backend, Exported
from mpq.backends.fused_layers import check_fused, linear_names
from mpq.backends.half_precision import DTYPE_NAMES, HALF, parameter_dtype
from mpq.backends.numbers_refusal import numbers_refusal
from mpq.backends.runtime import Loaded
from mpq.backends.simulate import prepared, quantizer_of
from mpq.errors import InputError, ModelError, PrecisionError
from mpq.network.examples import Batch, Calibration
from mpq.network.layer import WEIGHTLESS, Layer
from mpq.network.metric import OutputMetric, SquaredError
from mpq.network.metrics import METRICS
from mpq.network.named_outputs import NamedOutputs
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.codes import Codes
from mpq.quantization.microscaling import block_scales_bits
from mpq.quantization.numerics import OWN, Numerics
from mpq.quantization.precision import ORIGINAL, Precision
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.rounding import scale_type_of
from mpq.quantization.scale_formats import SCALE_FORMATS

HEADERS: Final = 65536
"""Bytes of names, shapes and paddings that a file may have beside its tensors."""
LARGEST: Final = "the largest difference"
MEDIAN: Final = "the median example"
"""Where a runtime rounds while running: numbers between two codes fall to either side."""
MEDIAN_OF_ROUNDED: Final = (
    "the median example where inputs are rounded, else the largest difference"
)
SQUARED_ERROR: Final = SquaredError()
"""Reads the output that networks are scored by where nothing is said: numbers of any kind."""


class LayerShape(Protocol):
    """What a target is asked about: a ``Layer`` of a search, or an ``AssignedLayer``."""

    @property
    def name(self) -> str:
        """As in ``Layer``."""

    @property
    def kind(self) -> str:
        """As in ``Layer``."""

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """As in ``Layer``."""

    @property
    def is_transposed(self) -> bool:
        """As in ``Layer``."""


@final
@dataclass(frozen=True, eq=False)
class Shipped:
    """A network and an assignment: what a target writes. Nothing is rounded again.

    Args:
        model: The network as the user gave it, for its configuration; it stays as it is.
        module: A copy, opened and folded as when it was searched, with the original weights.
        assignment: Its layers' precisions, with the target's numerics.
        quantizer: Gives the codes, as the simulation computes with them.
        calibration: Examples, for a target whose runtime stores more than layers' inputs.
        examples: Those that will be run, for targets that trace the network.
        made: What a target keeps from writing to comparing.
    """

    model: nn.Module
    module: nn.Module
    assignment: Assignment
    quantizer: Quantizer
    calibration: Calibration | None = None
    examples: tuple[Batch, ...] = ()
    made: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, assignment: Assignment) -> Self:
        """Without data. Raises what ``Backend.quantize`` does for another network.

        A weight that is computed and stays as it came is left to the network, whose files then have
        what it is computed from, under the names that readers ask for.
        """
        kept = (x for x in assignment.layers if not x.computed or x.precision != ORIGINAL)
        assignment = replace(assignment, layers=tuple(kept))
        return cls(model, prepared(model, assignment), assignment, quantizer_of(assignment))

    @cached_property
    def metric(self) -> OutputMetric:
        """Reads what the search compared; numbers also where they are no probabilities."""
        known = self.assignment.metadata.metric
        found = SQUARED_ERROR if known is None else METRICS.build(known)
        return found if isinstance(found, NamedOutputs) else SQUARED_ERROR

    @cached_property
    def quantized(self) -> tuple[AssignedLayer, ...]:
        """Layers whose weight does not stay as it came."""
        return tuple(x for x in self.assignment.layers if not x.precision.weight.is_exact)

    def check_shared(self, tool: str) -> None:
        """Refuses layers of one parameter in several precisions, for files that store it once.

        Args:
            tool: Who asks, for the message.

        Raises:
            ModelError: If there are such layers; names two.
        """
        known: dict[int, tuple[str, Precision]] = {}
        for layer in self.assignment.layers:
            weight = self.module.get_submodule(layer.name).weight
            name, precision = known.setdefault(id(weight), (layer.name, layer.precision))
            if precision.weight != layer.precision.weight:
                raise ModelError(
                    f"{tool}: {name!r} at {precision} shares its weight with {layer.name!r} at "
                    f"{layer.precision}; the file has one of both"
                )

    def codes(self, layer: AssignedLayer) -> Codes:
        """What a layer's weight is stored as, in a format that needs a scale."""
        layer_module = self.module.get_submodule(layer.name)
        return self.quantizer.codes(layer.name, layer_module, layer.precision.weight)


class Target(Backend):
    """A tool that people deploy with: what it holds, and what it takes to get there.

    A subclass is one file, one line in ``BACKENDS``, one entry in the contract test. A search reads
    ``refusal``, ``stored_bits`` and ``numerics``; an export also ``write``, ``load`` and
    ``stored_kind``, and compares what comes out with the simulation before the folder appears.
    """

    extra: ClassVar[str]
    """What ``pip install 'mpq[...]'`` installs for it; empty where it needs no package."""
    packages: ClassVar[tuple[str, ...]]
    """Modules that its export imports."""
    readers: ClassVar[str]
    """The tools that load the file, for people."""
    holds: ClassVar[str]
    """What it can hold, in a sentence for ``mpq targets``."""
    candidates: ClassVar[tuple[str, ...]]
    """Precisions that a search for it tries where none are given."""
    numerics: ClassVar[Numerics] = OWN
    """What its runtime computes otherwise than mpq does by itself, of a network in float32."""
    tolerance: ClassVar[float] = 1e-4
    """Accepted difference from the simulation, in standard deviations of the outputs."""
    judged: ClassVar[str] = LARGEST
    """What is held against the tolerance: ``LARGEST``, ``MEDIAN`` or ``MEDIAN_OF_ROUNDED``."""
    last_digits: ClassVar[float] = 1e-6
    """Relative difference of its sums: of float32's, added up in another order."""
    needs_all: ClassVar[bool] = False
    """Whether every layer has to be in a format that it holds: none stays as it came."""
    holds_channels: ClassVar[bool] = False
    """Whether output channels of a weight may have bits of their own."""
    weight_suffixes: ClassVar[tuple[str, ...]] = (".safetensors",)
    """Of the files that count as weights."""
    takes_batches: ClassVar[bool] = True
    """Whether it runs several rows at once, which may then be one example."""
    needs_float32: ClassVar[bool] = False
    """Whether it refuses networks in half precision."""
    notes: ClassVar[tuple[str, ...]] = ()
    """What to know before deploying, for ``mpq targets --show``."""

    def export(
        self,
        assignment: Assignment,  # noqa: ARG002
        model: nn.Module | None,  # noqa: ARG002
        calibration: Any,  # noqa: ARG002
    ) -> Exported:
        """Refused: a target writes a folder, which is there only once its runtime has run it."""
        raise InputError(f"the target {self.name} writes no single file: use mpq.export")

    @abstractmethod
    def refusal(self, layer: LayerShape, precision: Precision) -> str:
        """Why the target cannot hold a layer at a precision; empty where it can.

        Args:
            layer: Its kind and shape.
            precision: Never fp32: every target holds layers as they came.
        """

    def check_network(self, model: nn.Module) -> None:
        """Refuses a network that the target has no place for, whatever its precisions.

        Asked before anything is estimated, and before anything is written.

        Args:
            model: The user's own.

        Raises:
            ModelError: Says why.
        """
        dtype = parameter_dtype(model)
        if self.needs_float32 and dtype in HALF:
            raise ModelError(
                f"{self.name} takes networks in float32, and this one is in {DTYPE_NAMES[dtype]}: "
                "search and export model.float(), which has the same numbers"
            )

    def ties(self, names: Sequence[str]) -> tuple[tuple[str, ...], ...]:  # noqa: ARG002
        """Layers that its readers fuse, and that therefore share a precision.

        Args:
            names: Of all layers that could be quantized, those that are not among them.
        """
        return ()

    def fitted(self, model: nn.Module) -> Self:  # noqa: ARG002
        """The target as it stores this network: what depends on the dtype of its parameters."""
        return self

    @property
    def arithmetic(self) -> Numerics:
        """``numerics``, of the network that it was ``fitted`` to."""
        return self.numerics

    def module_refusal(self, module: nn.Module | None) -> str:
        """Why the target's files have no place for a layer; empty where they have one.

        Args:
            module: The module of the layer's name in the user's own network; ``None`` where a layer
                is a part of another module (an expert of fused ones, a router's matrix).
        """
        if isinstance(module, nn.Linear | nn.Embedding):
            return ""
        if module is None:
            return f"in {self.name} it has no module of its own"
        return f"{self.name} knows Linear and Embedding, and this is a {type(module).__name__}"

    def stored_bits(self, layer: LayerShape, precision: Precision) -> int:
        """Bits of a weight in the target's file, scales and zero points included.

        Args:
            layer: A layer that the target holds at the precision.
            precision: Not fp32.
        """
        num_channels, num_inputs = rows_of(layer)
        codes = num_channels * num_inputs * precision.weight.number.bits
        return codes + self.scale_bits(layer, precision)

    def scale_bits(self, layer: LayerShape, precision: Precision) -> int:
        """Bits of a weight's scales and zero points; a zero point takes as many as a code."""
        num_channels, num_inputs = rows_of(layer)
        weight = precision.weight
        num_scales = weight.num_scales(num_channels * num_inputs, num_channels)
        if weight.number.is_microscaling:
            return block_scales_bits(weight, num_scales, self.arithmetic)
        scale = scale_type_of(weight, self.arithmetic)
        per_scale = SCALE_FORMATS[scale].bits + (0 if weight.symmetric else weight.number.bits)
        return num_scales * per_scale

    @abstractmethod
    def stored_kind(self, layer: LayerShape, precision: Precision) -> str:
        """What the runtime says that it holds a layer's weight as: bits, or an element type.

        Args:
            layer: A layer that the target holds at the precision.
            precision: Whose weight is not as it came.

        Returns:
            Whole words of what ``Loaded.kinds`` has for the layer.
        """

    def constant_bytes(self, tensor: Tensor) -> int:
        """Bytes of a tensor that is no quantized weight: as it came, unless the target differs."""
        return tensor.numel() * tensor.element_size()

    def header_bytes(self, folder: Path) -> int:  # noqa: ARG002
        """Bytes that its files may have beside their tensors: names, shapes, paddings.

        What cannot be told exactly is at most ``HEADERS``.
        """
        return HEADERS

    def adapt(self, simulated: nn.Module, model: nn.Module) -> None:
        """Makes a simulation compute what the runtime computes otherwise outside of layers.

        Args:
            simulated: A network of its own in float32, changed in place.
            model: The user's own, in its own dtype.
        """

    def reference(self, simulated: nn.Module, shipped: Shipped) -> nn.Module:
        """What the runtime's outputs are compared with: the simulation after ``adapt``."""
        self.adapt(simulated, shipped.model)
        return simulated

    def file_bytes(self, folder: Path) -> int:
        """Bytes of what it wrote that count as weights, headers included."""
        files = (file for file in folder.rglob("*") if file.suffix in self.weight_suffixes)
        return sum(file.stat().st_size for file in files)

    def figures(self, folder: Path) -> dict[str, int]:  # noqa: ARG002
        """More numbers for ``export.json``, by name with the unit; most targets have none."""
        return {}

    def compared(self, outputs: Tensor, batch: Batch) -> Tensor:  # noqa: ARG002
        """The simulation's outputs for a batch, as ``Loaded.run`` gives the runtime's."""
        return outputs

    @abstractmethod
    def write(self, shipped: Shipped, folder: Path) -> None:
        """Writes the file, or files, that the tool loads.

        Args:
            shipped: All layers have been asked for their ``refusal``.
            folder: An empty folder.

        Raises:
            ModelError: If the network is none that the tool knows.
            MissingDependencyError: If a package is missing; names the pip line.
        """

    @abstractmethod
    def load(self, folder: Path) -> Loaded:
        """Loads it with the tool's own reader; called in a process that has seen nothing else.

        Raises:
            MissingDependencyError: If the runtime is not installed; names the pip line.
        """

    def load_otherwise(self, folder: Path) -> Mapping[str, Callable[[], Loaded]]:  # noqa: ARG002
        """Loads the same files under other settings, by what these are called in ``export.json``.

        How far their outputs are from the simulation is written down, and not judged; one that
        cannot be loaded or run is a warning.
        """
        return {}

    def has_ties(self, assignment: Assignment) -> bool:
        """Whether the median example is judged, and not the largest difference."""
        if self.judged == MEDIAN_OF_ROUNDED:
            return assignment.rounds_inputs
        return self.judged == MEDIAN

    def traced_batch(self, batches: Sequence[Batch]) -> Batch:
        """What is run once more where outputs differ, to look at layers: of what was run."""
        return batches[0].slice(0, 1)

    def why_not(
        self, layer: LayerShape, precision: Precision, modules: Mapping[str, nn.Module] | None
    ) -> str:
        """``refusal``, and ``module_refusal`` where modules are known; or of what has no weight."""
        if layer.kind in WEIGHTLESS:
            return self.weightless_refusal(layer.kind, precision)
        of_numbers = numbers_refusal(precision, self.arithmetic, self.holds_channels)
        why = of_numbers or self.refusal(layer, precision)
        return why if why or modules is None else self.module_refusal(modules.get(layer.name))

    def check(
        self, layers: Sequence[AssignedLayer], modules: Mapping[str, nn.Module] | None = None
    ) -> None:
        """Refuses an assignment that the target cannot hold, before anything is written.

        Args:
            layers: The assignment's.
            modules: Name to module of the user's network; ``None``: not asked for.

        Raises:
            PrecisionError: Names the layers and the reasons.
        """
        asked = [x for x in layers if self.needs_all or x.precision != ORIGINAL]
        found = ((x, self.why_not(x, x.precision, modules)) for x in asked)
        refused = [f"layer {x.name!r} at {x.precision}: {why}" for x, why in found if why]
        if refused:
            more = f" (and {len(refused) - 3} more)" if len(refused) > 3 else ""
            raise PrecisionError(
                f"{self.name} cannot hold the assignment: {'; '.join(refused[:3])}{more}; search "
                f"with --to {self.name}, which takes what it can hold"
            )
        chosen = {x.name: x.precision for x in layers}
        check_fused(self.name, self.ties(linear_names(chosen, modules)), chosen)


def rows_of(layer: LayerShape) -> tuple[int, int]:
    """``O`` output channels and ``K`` weights of each, of a layer that is no transposed one."""
    if isinstance(layer, Layer):
        return layer.num_channels, layer.num_weights // layer.num_channels
    num_channels, *rest = layer.weight_shape
    return num_channels, prod(rest)


def not_linear(layer: LayerShape, tool: str) -> str:
    """The sentence of targets that quantize matrices of linear layers only."""
    if layer.kind == "linear" and not layer.is_transposed:
        return ""
    found = "a matrix [I, O]" if layer.kind == "linear" else f"a layer of the kind {layer.kind}"
    return f"{tool} holds linear layers in fewer bits, and this is {found}"
