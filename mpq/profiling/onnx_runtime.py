"""ONNX Runtime on the processor."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, final

import numpy as np

from mpq.backends.onnx import Stretch, kernel_of
from mpq.errors import InputError, MissingDependencyError, ModelError
from mpq.precision import Precision
from mpq.profiling.graphs import network_graph, nothing, stretch_graph
from mpq.profiling.runtime import Array, Program
from mpq.profiling.subject import Subject

if TYPE_CHECKING:
    import onnx

DISABLED: Final = "optimization.disable_specified_optimizers"
"""A session's setting."""
KEPT: Final = ("WeightBiasQuantization", "DoubleQDQPairsRemover")
"""What must be disabled for an assignment to be kept: ONNX Runtime makes an int8 layer of a float
one that stands between two int8 layers, with scales of its own, and merges two roundings."""
CHANNELS_LAST: Final = "NhwcTransformer"


@final
@dataclass(frozen=True)
class OnnxRuntime:
    """Runs ONNX graphs with float32, int8 and packed weights.

    Args:
        num_threads: Of one run.
        channels_last: Whether int8 convolutions run channels last, with transpositions that ONNX
            Runtime moves through the whole graph: good for networks that are int8 throughout, but
            mixed ones then pay for layouts as no sum over layers and neighbours can say.
    """

    name: ClassVar[str] = "onnxruntime"
    summary: ClassVar[str] = "ONNX Runtime: float32, int8 (QDQ), 2, 4, 8-bit weights (MatMulNBits)"
    package: ClassVar[str] = "onnxruntime"
    default_precisions: ClassVar[tuple[str, ...]] = (
        "fp32", "w7a8", "w8a8", "w2g32a8d", "w4g32a8d", "w8g32a8d",
    )  # fmt: skip
    runs_pairs: ClassVar[bool] = True
    num_threads: int = 1
    channels_last: bool = False

    def __post_init__(self) -> None:
        if self.num_threads < 1:
            raise InputError(f"onnxruntime needs num_threads >= 1; got {self.num_threads}")

    def can_run(self, kind: str, precision: Precision) -> bool:
        """Whether there is a kernel."""
        return kernel_of(kind, precision) is not None

    def kernel(self, kind: str, precision: Precision) -> str:
        """How the layer is written in ONNX."""
        kernel = kernel_of(kind, precision)
        return "" if kernel is None else kernel.value

    def stretch(
        self, subject: Subject, stretch: Stretch, precisions: Mapping[str, Precision]
    ) -> Program:
        """A part of the network."""
        return self._compile(*stretch_graph(subject, stretch, precisions))

    def network(self, subject: Subject, precisions: Mapping[str, Precision]) -> Program:
        """The whole network."""
        return self._compile(*network_graph(subject, precisions))

    def idle(self) -> Program:
        """An ``Identity`` of one number."""
        return self._compile(*nothing())

    def _compile(self, graph: "onnx.ModelProto", examples: list[Array]) -> Program:
        session = self._session(graph)
        names = [value.name for value in session.get_inputs()]
        feeds = dict(zip(names, examples, strict=True))

        def outputs(*values: Array) -> Array:
            return np.asarray(session.run(None, dict(zip(names, values, strict=True)))[0])

        return Program(lambda: session.run(None, feeds), outputs)

    def _session(self, graph: "onnx.ModelProto") -> Any:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingDependencyError(
                "the runtime onnxruntime is not installed: pip install 'mpq[onnx]'"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.num_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        layout = () if self.channels_last else (CHANNELS_LAST,)
        options.add_session_config_entry(DISABLED, ";".join((*KEPT, *layout)))
        failures = onnxruntime.capi.onnxruntime_pybind11_state
        try:
            return onnxruntime.InferenceSession(
                graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except (failures.Fail, failures.NotImplemented, failures.InvalidGraph) as error:
            raise ModelError(f"ONNX Runtime cannot load the graph: {error}") from error
